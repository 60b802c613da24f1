"""LaTeX as people and models write it -> plain text that can be compared or parsed."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.boxes import closing

_NAMES = {
    **dict.fromkeys(("dfrac", "tfrac"), "\\frac"),
    **dict.fromkeys(("cdot", "times"), "*"),
    **{"div": "/", "pi": "pi", "infty": "oo", "pm": "±", "approx": "≈", "lt": "<", "gt": ">"},
    **{"neq": "!=", "ne": "!=", "cup": "∪", "in": "∈", "lbrace": "{", "rbrace": "}"},
    **dict.fromkeys(("rightarrow", "Rightarrow", "implies", "to"), "→"),
    **dict.fromkeys(("leq", "le", "leqslant"), "<="),
    **dict.fromkeys(("geq", "ge", "geqslant"), ">="),
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "displaystyle", *"!,()[]"), ""),
    **dict.fromkeys(("quad", "qquad", *"; :"), " "),
    **{sign: sign for sign in "%${}"},
}
_NAME = re.compile(r"\\([a-zA-Z]+|[^\w\s]|[ ])")
"""Commands, and what plain text has for them; others stay."""
_SIGNS = (("≤", "<="), ("≥", ">="), ("{,}", ","), ("{:}", ":"), ("π", "pi"), ("∞", "oo"), ("**", "^"), ("~", " "))
_DROPPED = re.compile(r"\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\circ|°")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed|operatorname)\s*(?=\{)")
_MEMBER = re.compile(r"^\(?[a-zA-Z](?:,\s*[a-zA-Z])*\)?\s*(?:∈|in\s)\s*")


def plain(text: str) -> str:
    """Return LaTeX without its layout: fractions as (a)/(b), roots as sqrt(a), powers with ^."""
    text = text.strip().strip("`").strip().rstrip(".。").rstrip()
    text = re.sub(r"^\*+(?=\S)|(?<=\S)\*+$", "", text).strip().strip("$").strip()
    text = re.sub(r",\s*\\[!,;:]\s*(?=\d{3})", ",", _DROPPED.sub("", text))
    text = re.sub(r"\\(?:pmod|bmod|mod)\b\s*\{?", " mod ", text)
    text = _unwrap(text)
    text = _NAME.sub(lambda match: _NAMES.get(match[1], match[0]), text)
    for old, new in _SIGNS:
        text = text.replace(old, new)
    text = re.sub(r"(?<=[\w)}\]])\s?[·⋅∙]\s?(?=[\w(\\])", "*", text)
    text = re.sub(r"√\s*(\d+|[a-z]|\([^()]*\))", r"sqrt(\1)", _arguments(text))
    text = re.sub(r"\\(sin|cos|tan|cot|sec|csc|log|ln|exp)(?![a-z])", r" \1 ", text)
    text = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", text)
    text = re.sub(r"_\s*\{([^{}]*)\}", r"_\1", text)
    text = _MEMBER.sub("", text.strip())
    text = re.sub(r"^\$(?=[\d.])", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if not re.search(r",\s|\d,\d{1,2}(?!\d)", text) else text
    return re.sub(r"\s+", " ", text).strip().rstrip(".。").strip()


def _unwrap(text: str) -> str:
    while match := _WRAPPED.search(text):
        end = closing(text, match.end())
        if end is None:
            break
        text = text[: match.start()] + text[match.end() + 1 : end] + text[end + 1 :]
    return text


def _arguments(text: str) -> str:
    """Rewrite \\frac and \\sqrt, innermost last."""
    for _ in range(40):
        at = max(text.rfind("\\frac"), text.rfind("\\sqrt"))
        if at < 0:
            break
        rest = at + 5
        if text.startswith("\\sqrt", at):
            root = re.match(r"\s*\[(\w+)\]", text[rest:])
            rest += root.end() if root else 0
            value, end = _argument(text, rest)
            inner = f"(({value})^(1/{root[1]}))" if root else f" sqrt({value})"
        else:
            top, middle = _argument(text, rest)
            bottom, end = _argument(text, middle)
            before = "+" if re.search(r"\d\s*$", text[:at]) else ""
            inner = f"{before}(({top})/({bottom}))"
        text = text[:at] + inner + text[end:]
    return text


def _argument(text: str, at: int) -> tuple[str, int]:
    """Return the argument that starts at a place, braced or a single character, and where it ends."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at < len(text) and text[at] == "{":
        end = closing(text, at)
        if end is not None:
            return text[at + 1 : end], end + 1
    return text[at : at + 1], at + 1


def split_top(text: str) -> list[str]:
    """Split at commas that stand outside brackets."""
    items, depth, last = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth <= 0:
            items.append(text[last:index].strip())
            last = index + 1
    return [*items, text[last:].strip()]
