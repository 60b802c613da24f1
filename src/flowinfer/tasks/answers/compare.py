"""Whether an answer equals a mathematics reference, by its kind."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.expressions import Expression, equal, parse_expression, proportional
from flowinfer.tasks.answers.intervals import read_intervals, same_intervals
from flowinfer.tasks.answers.kinds import TIME, TRUTHS, Gold
from flowinfer.tasks.answers.latex import plain, split_top
from flowinfer.tasks.answers.numbers import gold_number
from flowinfer.tasks.answers.readers import signs
from flowinfer.tasks.answers.wordings import folded, time_text

_ORDERED = re.compile(
    r"\b(?:sort|order|ascending|descending|increasing|decreasing|arrange|put)\b|升序|降序|从[小大]到", re.I
)


def is_same(shown: str, gold: Gold) -> bool:
    """Return whether an answer that was read for a reference's kind equals it."""
    target = gold.plain
    match gold.kind:
        case "truth":
            return shown in ("True", "False") and (shown == "True") == TRUTHS[target.lower()]
        case "time":
            wanted = TIME.search(target)
            return wanted is not None and shown == time_text(wanted)
        case "letter":
            return shown.strip("()").lower() == target.strip("()").lower()
        case "digits":
            return shown.lstrip("+") == re.sub(r"(?<![\da-f])0[xbo](?=[\da-f])", "", target.lower())
        case "number":
            return _same_number(shown, gold)
        case "list":
            is_ordered = bool(_ORDERED.search(gold.question))
            wanted_items = [sign for item in split_top(target) for sign in signs(item)]
            return _same_items(split_top(shown), wanted_items, is_ordered=is_ordered)
        case "bracketed":
            ours, theirs = read_intervals(shown), read_intervals(target)
            if re.search(r"[<>]", shown):
                return ours is not None and theirs is not None and same_intervals(ours, theirs)
            brackets = bool(shown) and shown[0] + shown[-1] == target[0] + target[-1]
            is_set = target[0] == "{"
            if is_set and shown[:1] not in tuple("([{"):  # its members alone
                return _same_items(split_top(shown), split_top(target[1:-1]), is_ordered=False)
            return brackets and _same_items(split_top(shown[1:-1]), split_top(target[1:-1]), is_ordered=not is_set)
        case "intervals":
            ours, theirs = read_intervals(shown), read_intervals(target)
            return ours is not None and theirs is not None and same_intervals(ours, theirs)
        case "matrix":
            return _same_matrix(shown, gold.string)
        case "words":
            return folded(shown) == folded(target)
        case "equation":
            if shown.count("=") != 1:
                return False
            left, right = (parse_expression(f"({text.replace('=', ')-(')})") for text in (shown, target))
            return left is not None and right is not None and (equal(left, right) or proportional(left, right))
    return _same_expression(shown, target) and _has_asked_form(shown, gold)


def _same_number(shown: str, gold: Gold) -> bool:
    bare, is_percent = shown.removesuffix("%").strip(), shown.endswith("%")
    base = re.search(r"_\(?(\d+)\)?$", gold.plain)
    shown_base = re.search(r"_\(?(\d+)\)?$", shown)
    if base and shown_base and base[1] != shown_base[1]:
        return False
    wanted = parse_expression(gold_number(re.sub(r"_\(?\d+\)?$", "", gold.plain)) or gold.plain)
    left = parse_expression(re.sub(r"_\(?\d+\)?$", "", bare))
    if left is None or wanted is None:
        return False
    if equal(left, wanted) and not (is_percent and _is_part(left) and not gold.plain.endswith("%")):
        return True
    hundredth = parse_expression(f"({bare})/100") if is_percent else None
    if hundredth is not None and not gold.plain.endswith("%"):
        return equal(hundredth, wanted)
    hundredfold = parse_expression(f"({bare})*100") if gold.plain.endswith("%") and not is_percent else None
    return hundredfold is not None and equal(hundredfold, wanted)


_EULER = re.compile(r"(?<![a-zA-Z])e(?![a-zA-Z])(?:\^(\([^()]*\)|-?\w+))?")


def _is_part(value: Expression) -> bool:
    """Return whether a number is between 0 and 1, so that with a percent sign it is another."""
    return value.value is not None and 0 < abs(value.value) < 1


def _same_expression(shown: str, target: str) -> bool:
    if "exp" in shown + target:
        shown, target = (
            _EULER.sub(lambda match: f"exp({(match[1] or '1').strip('()')})", text) for text in (shown, target)
        )
    left, right = parse_expression(shown), parse_expression(target)
    return left is not None and right is not None and equal(left, right)


def _has_asked_form(shown: str, gold: Gold) -> bool:
    """Return whether an expression is factored, expanded or collected where the question asks for that."""
    shown = shown.replace(" ", "").replace("**", "^")
    if re.match(r"\s*(?:factor|因式分解)", gold.question, re.I):
        return _num_terms(shown) <= _num_terms(gold.plain.replace(" ", ""))
    if re.match(r"\s*(?:expand|collect|simplify|展开|化简)", gold.question, re.I):
        return _num_terms(re.sub(r"\^\([^()]*\)", "", shown)) <= max(_num_terms(gold.plain.replace(" ", "")), 1) and (
            "(" in gold.plain
            or not re.search(r"[a-z]\w*\)|\([^()]*[a-z][^()]*[-+]", re.sub(r"\^\([^()]*\)", "", shown))
        )
    return True


def _num_terms(text: str) -> int:
    """Count the terms of a sum that stand outside brackets."""
    count, depth = 1, 0
    for index, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        count += character in "+-" and depth == 0 and index > 0 and text[index - 1] not in "+-*/^("
    return count


def _same_matrix(shown: str, target: str) -> bool:
    ours, theirs = _rows(shown), _rows(target)
    return [len(row) for row in ours] == [len(row) for row in theirs] and all(
        _same_expression(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)
    )


def _rows(text: str) -> list[list[str]]:
    if nested := re.fullmatch(r"\s*\[\s*(\[.*\])\s*\]\s*", text, re.S):
        return [[plain(cell) for cell in row.strip("[] ").split(",")] for row in re.split(r"\]\s*,\s*\[", nested[1])]
    inner = re.sub(r"^.*?\\begin\{[a-zA-Z]*matrix\}|\\end\{.*$", "", text, flags=re.S)
    return [[plain(cell) for cell in row.split("&")] for row in re.split(r"\\\\(?:\[\d+\w*\])?", inner) if row.strip()]


def _same_items(shown: list[str], target: list[str], *, is_ordered: bool) -> bool:
    if len(shown) != len(target):
        return False
    if is_ordered:
        return all(_same_item(a, b) for a, b in zip(shown, target, strict=True))
    rest = list(target)
    for item in shown:
        match = next((other for other in rest if _same_item(item, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_item(shown: str, target: str) -> bool:
    left, right = parse_expression(shown), parse_expression(target)
    if left is not None and right is not None:
        return equal(left, right)
    if shown[:1] + shown[-1:] == target[:1] + target[-1:] and shown[:1] in ("(", "["):
        return _same_items(split_top(shown[1:-1]), split_top(target[1:-1]), is_ordered=True)
    return folded(shown) == folded(target)
