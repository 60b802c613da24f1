"""Mathematics answers, compared by the kind of the reference: truth values, times, lists, expressions, words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from flowinfer.results import Score
from flowinfer.tasks.answers.anchors import anchored, last_boxed
from flowinfer.tasks.answers.expressions import Expression, equal, parse_expression
from flowinfer.tasks.answers.latex import plain, split_top
from flowinfer.tasks.answers.numbers import clean, gold_number, show, values
from flowinfer.tasks.answers.text import Text, normalize

Kind = Literal["truth", "time", "letter", "digits", "number", "list", "bracketed", "equation", "expression", "words"]

_TRUTH = {"true": True, "false": False, "yes": True, "no": False}
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::\d{2})?\s*([ap])\.?m\.?(?![a-z])", re.I)
_ORDERED = re.compile(
    r"\b(?:sort|order|ascending|descending|increasing|decreasing|arrange|put)\b|升序|降序|从[小大]到", re.I
)


def judge_maths(text: Text, reference: str, question: str) -> Score:
    """Score an output against a reference of any kind."""
    gold = _gold_text(reference)
    kind = kind_of(gold)
    for rule, part in _candidates(text, kind):
        shown = _read(part.string, kind, gold)
        if shown is None:
            continue
        is_right = _same(shown, gold, kind, is_ordered=bool(_ORDERED.search(question)))
        return Score(correct=is_right, extracted=shown, status="ok", rule=rule, span=part.span())
    return Score(correct=False, extracted=None, status="no_answer", rule="none", span=None)


def kind_of(gold: str) -> Kind:
    """Return what kind of answer a reference is."""
    text = plain(gold)
    if text.lower() in _TRUTH:
        return "truth"
    if _TIME.fullmatch(gold.strip()):
        return "time"
    if re.fullmatch(r"\(?[a-zA-Z]\)?", text):
        return "letter"
    if _is_number(text):
        return "number"
    if text.count("=") == 1 and all(parse_expression(side) for side in text.split("=")):
        return "equation"
    if re.fullmatch(r"[(\[{].*[)\]}]", text) and len(split_top(text[1:-1])) > 1:
        return "bracketed"
    if len(split_top(text)) > 1:
        return "list"
    if re.fullmatch(r"-?(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]+", text):
        parsed = parse_expression(text)
        return "digits" if re.search(r"[a-f]{2}|[a-f]\d|\d[a-f].*[a-f]", text) or parsed is None else "expression"
    if re.search(r"[A-Za-z]{2,}", re.sub(r"(?<![A-Za-z])(?:sqrt|pi|log|ln|sin|cos|tan|exp|oo)(?![A-Za-z])", "", text)):
        return "words"
    return "expression" if parse_expression(text) is not None else "words"


def _gold_text(reference: str) -> str:
    string = normalize(reference).string
    boxed = last_boxed(normalize(reference))
    if boxed is not None:
        return boxed.string.strip()
    return string.rsplit("####", 1)[-1].strip()


def _is_number(text: str) -> bool:
    bare = re.sub(r"^[$€£]|\s*(?:%|°|degrees?|[a-zA-Z]+)$", "", text.strip()).strip()
    return bool(re.fullmatch(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?", bare)) and any(c.isdigit() for c in bare)


def _candidates(text: Text, kind: Kind) -> Iterator[tuple[str, Text]]:
    """Yield stretches that may hold the answer, best first."""
    boxed = last_boxed(text)
    if boxed is not None:
        yield "boxed", boxed
    tails = list(anchored(text))
    for tail in reversed(tails):
        yield "anchor", tail
    if kind in ("truth", "letter", "words", "time"):
        yield from _closing_lines(text)
        return
    at = text.string.rfind("=")
    if at >= 0 and kind not in ("list", "bracketed"):
        end = re.search(r"[\n。;；]|\.\s|\.$|,\s", text.string[at:])
        yield "equals", text.part(at + 1, at + (end.start() if end else len(text.string) - at))
    yield from _closing_lines(text)


def _closing_lines(text: Text) -> Iterator[tuple[str, Text]]:
    string = text.string.rstrip()
    begin = string.rfind("\n") + 1
    yield "last_line", text.part(begin, len(string))
    if begin:
        yield "whole", text.part(0, len(string))


def _read(part: str, kind: Kind, gold: str) -> str | None:
    """Read an answer of a kind from a stretch, or None where there is none."""
    string = plain(part)
    match kind:
        case "truth":
            words = re.findall(r"\b(?:true|false|yes|no)\b", string, re.I)
            found = {_TRUTH[word.lower()] for word in words}
            return str(found.pop()) if len(found) == 1 else None
        case "time":
            times = _TIME.findall(part)
            return f"{int(times[-1][0])}:{times[-1][1]} {times[-1][2].upper()}M" if times else None
        case "letter":
            letter = re.match(r"^[\s(]*(?:option\s*|choice\s*)?([A-Za-z])[\s).]*$", string) or re.match(
                r"^[\s(]*(?:option\s*|choice\s*)?([A-Za-z])(?:[).:]|\s*=)", string
            )
            return letter[1] if letter else None
        case "digits":
            digits = re.findall(r"(?<![\w.])-?[0-9a-fA-F]+(?![\w.])", string)
            return digits[-1].lower() if digits else None
        case "number":
            return _read_number(part)
        case "list":
            return _read_list(string)
        case "bracketed":
            return _read_bracketed(string)
        case "words":
            return _read_words(string, gold)
        case "equation":
            return _read_equation(string, gold)
    percent = re.search(r"(\d+(?:\.\d+)?)\s*%\s*$", string)
    return f"{percent[1]}/100" if percent else _read_expression(string)


def _read_number(part: str) -> str | None:
    string = plain(part)
    string = re.sub(r"^\s*[a-zA-Z]\w*\s*(?:\([a-z]\))?\s*(?:=|≈|is)\s*", "", string)
    expression = parse_expression(re.sub(r"\s*(?:%|°|degrees?|units?|[a-z]+)\s*$", "", string.strip().rstrip(".")))
    if expression is not None and not expression.symbols and expression.value is not None:
        return expression.text
    cleaned = clean(part)
    at = max(cleaned.rfind("="), cleaned.rfind("≈"))
    found = values(cleaned[at + 1 :]) or values(cleaned)
    if not found:
        return None
    if re.search(r"\\(?:sqrt|pi)|√|π", part):
        return None
    return show(found[0][0] if at < 0 or values(cleaned[at + 1 :]) else found[-1][0])


def _read_list(string: str) -> str | None:
    string = re.sub(r"^(?:[^:=]*\b(?:are|is)\b|.*:)\s*", "", string)
    string = re.sub(r"(?:,?\s*\band\b|,?\s*\bor\b|和|与|、|以及)\s*", ", ", string)
    string = re.sub(r"\b[a-zA-Z]\s*=\s*", "", string).strip().rstrip(".。")
    string = string[1:-1] if re.fullmatch(r"[{\[(].*[)\]}]", string) else string
    items = [item.strip() for item in split_top(string) if item.strip()]
    if not items or any(parse_expression(item) is None for item in items):
        return None
    return ", ".join(items)


def _read_bracketed(string: str) -> str | None:
    """Return the last balanced bracket that holds several items; interval ends may differ in kind."""
    found, opened, depth = None, 0, 0
    for index, character in enumerate(string):
        if character in "([{":
            opened = index if not depth else opened
            depth += 1
        elif character in ")]}" and depth:
            depth -= 1
            if not depth and len(split_top(string[opened + 1 : index])) > 1:
                found = string[opened : index + 1]
    return found


def _read_equation(string: str, gold: str) -> str | None:
    """Return an equation; a lone right side counts where the reference solves for one letter."""
    string = string.strip().rstrip(".。")
    sides = re.split(r"\b(?:is|are|be)\s+|[:：]\s*|(?:是|为)\s*", string)[-1].split("=")
    if len(sides) == 2 and all(parse_expression(side) for side in sides):
        return "=".join(side.strip() for side in sides)
    left = plain(gold).split("=")[0].strip()
    if len(sides) == 1 and re.fullmatch(r"[a-zA-Z]", left) and parse_expression(sides[0]):
        return f"{left}={sides[0].strip()}"
    return None


def _read_words(string: str, gold: str) -> str | None:
    wanted = _folded(plain(gold))
    folded = _folded(string)
    if folded == wanted:
        return plain(gold)
    if re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", folded) and not re.search(r"\bnot\b|不是", folded):
        return plain(gold)
    return string.strip()[:200] or None


def _read_expression(string: str) -> str | None:
    string = string.strip().rstrip(".。").strip()
    if "=" in string:
        string = string.rsplit("=", 1)[1]
    if parse_expression(string) is not None:
        return string.strip()
    pieces = re.split(r"\s+(?:is|are|equals|be|as|of|to)\s+|[:：]\s*|(?:是|为|等于)\s*", string)
    for piece in reversed(pieces):
        piece = piece.strip().rstrip(".。,")
        if piece and parse_expression(piece) is not None:
            return piece
    return None


def _same(shown: str, gold: str, kind: Kind, *, is_ordered: bool) -> bool:
    target = plain(gold)
    match kind:
        case "truth":
            return (shown == "True") == _TRUTH[target.lower()]
        case "time":
            wanted = _TIME.search(gold)
            return wanted is not None and shown == f"{int(wanted[1])}:{wanted[2]} {wanted[3].upper()}M"
        case "letter":
            return shown.lower() == target.strip("()").lower()
        case "digits":
            return shown.lstrip("+") == target.lower()
        case "number":
            return _same_number(shown, target)
        case "list":
            return _same_items(split_top(shown), split_top(target), is_ordered=is_ordered)
        case "bracketed":
            brackets = shown[0] + shown[-1] == target[0] + target[-1]
            is_set = target[0] == "{"
            return brackets and _same_items(split_top(shown[1:-1]), split_top(target[1:-1]), is_ordered=not is_set)
        case "words":
            return _folded(shown) == _folded(target)
        case "equation":
            ours, theirs = (f"({text.replace('=', ')-(')})" for text in (shown, target))
            return _same_expression(ours, theirs) or _same_expression(f"-({ours})", theirs)
    return _same_expression(shown, target)


def _same_number(shown: str, target: str) -> bool:
    left, right = parse_expression(shown), parse_expression(gold_number(target) or target)
    return left is not None and right is not None and equal(left, right)


def _same_expression(shown: str, target: str) -> bool:
    left, right = parse_expression(shown), parse_expression(target)
    return left is not None and right is not None and equal(left, right)


def _same_items(shown: list[str], target: list[str], *, is_ordered: bool) -> bool:
    if len(shown) != len(target):
        return False
    left: list[Expression | None] = [parse_expression(item) for item in shown]
    right: list[Expression | None] = [parse_expression(item) for item in target]
    if any(item is None for item in (*left, *right)):
        folded = ([_folded(x) for x in shown], [_folded(x) for x in target])
        return folded[0] == folded[1] if is_ordered else sorted(folded[0]) == sorted(folded[1])
    if is_ordered:
        return all(equal(a, b) for a, b in zip(left, right, strict=True) if a and b)
    rest = list(right)
    for item in left:
        match = next((other for other in rest if item and other and equal(item, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _folded(text: str) -> str:
    return re.sub(r"[\s\\]+", " ", text.lower()).strip().strip(".。\"'`").strip()
