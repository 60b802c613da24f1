"""LaTeX as people and models write it -> plain text that can be compared or parsed."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.boxes import closing

FUNCTIONS = r"(?:sqrt|binom|pi|log|ln|exp|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|oo)(?![a-zA-Z])"
"""Names that are mathematics and no product of letters."""
_NAMES = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "\\binom"),
    **dict.fromkeys(("cdot", "times"), "*"),
    **{"div": "/", "pi": "pi", "infty": "oo", "pm": "±", "approx": "≈", "lt": "<", "gt": ">"},
    **{"neq": "!=", "ne": "!=", "cup": "∪", "in": "∈", "lbrace": "{", "rbrace": "}", "langle": "(", "rangle": ")"},
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
_MEMBER = re.compile(r"^\(?[a-zA-Z](?:,\s*[a-zA-Z])*\)?(?:\s*∈|\s+in\s)\s*")


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
    text = re.sub(r"\\((?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp)(?![a-z])(?:\s*\{([^{}]*)\})?", _call, text)
    text = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", text)
    text = re.sub(r"(sin|cos|tan|cot|sec|csc) \^\(?(\d)\)?\s*(\([^()]*\)|[a-z]\b)", r" \1(\3)^\2", text)
    text = re.sub(r"_\s*\{([^{}]*)\}", r"_\1", text)
    text = _MEMBER.sub("", text.strip())
    text = re.sub(r"^\$(?=[\d.])", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if not re.search(r",\s|\d,\d{1,2}(?!\d)", text) else text
    text = re.sub(r"(?<=\d)\s*:\s*(?=\d)", ":", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".。").strip()


def _call(function: re.Match[str]) -> str:
    """Return a function's name, and what stands in braces behind it in brackets."""
    return f" {function[1]} " + (f"({function[2]})" if function[2] else "")


def _unwrap(text: str) -> str:
    while match := _WRAPPED.search(text):
        end = closing(text, match.end())
        if end is None:
            break
        text = text[: match.start()] + text[match.end() + 1 : end] + text[end + 1 :]
    return text


_BUILT = {
    "frac": (2, "(({0})/({1}))"),
    "binom": (2, " binom({0},{1})"),
    "log_": (1, "(1/ log({0}))* log "),
    "sqrt": (1, " sqrt({0})"),
    "root": (2, "(({1})^(1/{0}))"),
}
"""Commands with arguments: how many, and what plain text has for them."""
_COMMAND = re.compile(r"\\(frac|binom|log_|sqrt|root)")
_CHOSEN = (
    (re.compile(r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}|(?<![A-Za-z])C\s?\((\d+),\s*(\d+)\)"), r"\\binom{\1\3}{\2\4}"),
    (re.compile(r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\sqrt\s*\[(\w+)\]"), r"\\root{\1}"),
    (re.compile(r"\\?(?<![a-z])log\s*_"), r"\\log_"),
)
"""Other ways to write some of them."""


def _arguments(text: str) -> str:
    """Rewrite commands with arguments, innermost last."""
    for pattern, instead in _CHOSEN:
        text = pattern.sub(instead, text)
    for _ in range(40):
        match = next(reversed(list(_COMMAND.finditer(text))), None)
        if match is None:
            break
        count, form = _BUILT[match[1]]
        values, end = [], match.end()
        for _ in range(count):
            value, end = _argument(text, end)
            values.append(value)
        built = form.format(*values)
        if match[1] == "log_" and text[end : end + 1] == "{":
            value, end = _argument(text, end)
            built += f"({value})"
        before = "+" if match[1] == "frac" and re.search(r"\d\s*$", text[: match.start()]) else ""
        text = text[: match.start()] + before + built + text[end:]
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


def rows(text: str) -> list[list[str]]:
    """Return the cells of a matrix, row by row, as plain text."""
    if nested := re.fullmatch(r"\s*\[\s*(\[.*\])\s*\]\s*", text, re.S):
        return [[plain(cell) for cell in row.strip("[] ").split(",")] for row in re.split(r"\]\s*,\s*\[", nested[1])]
    inner = re.sub(r"^.*?\\begin\{(?:[a-zA-Z]*matrix|array)\}(?:\{[clr|]*\})?|\\end\{.*$", "", text, flags=re.S)
    return [[plain(cell) for cell in row.split("&")] for row in re.split(r"\\\\(?:\[\d+\w*\])?", inner) if row.strip()]
