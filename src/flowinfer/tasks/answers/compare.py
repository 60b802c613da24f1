"""Whether an answer equals a mathematics reference, by its kind."""

from __future__ import annotations

import re
from fractions import Fraction

from flowinfer.tasks.answers.expressions import equal, parse_expression, proportional
from flowinfer.tasks.answers.kinds import TIME, TRUTHS, Gold, read_intervals, same_intervals, same_items
from flowinfer.tasks.answers.latex import FUNCTIONS, rows, split_top
from flowinfer.tasks.answers.maths import signs
from flowinfer.tasks.answers.numbers import asks_percent, gold_number
from flowinfer.tasks.answers.wordings import folded, time_text

_ORDERED = re.compile(
    r"(?i)\b(?:sort|order|ascending|descending|increasing|decreasing|arrange|put)\b|升序|降序|从[小大]到"
)
_BASE = re.compile(r"_\(?(\d+)\)?$")
_EULER = re.compile(r"(?<![a-zA-Z])e(?![a-zA-Z])(?:\^(\([^()]*\)|-?\w+))?")
_EXPONENT = re.compile(rf"\^\([^()]*\)|(?<![a-zA-Z]){FUNCTIONS}\([^()]*\)")


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
        case "words":
            return folded(shown) == folded(target)
        case "number":
            return _same_number(shown, gold)
        case "list":
            wanted_items = [sign for item in split_top(target) for sign in signs(item)]
            return _same_list(split_top(shown), wanted_items, is_ordered=bool(_ORDERED.search(gold.question)))
        case "intervals":
            return same_intervals(read_intervals(shown), read_intervals(target))
        case "bracketed":
            return _same_bracketed(shown, target)
        case "matrix":
            return _same_matrix(shown, gold.string)
        case "equation":
            left, right = (parse_expression(f"({text.replace('=', ')-(')})") for text in (shown, target))
            is_one = shown.count("=") == 1 and left is not None and right is not None
            return is_one and (equal(left, right) or proportional(left, right))  # type: ignore[arg-type]
    return _same_expression(shown, target) and _has_asked_form(shown, gold)


def _same_number(shown: str, gold: Gold) -> bool:
    """Compare numbers: 25% is 25 and 0.25, but 0.5% is 0.5 only where percent are asked for or meant."""
    base, shown_base = _BASE.search(gold.plain), _BASE.search(shown)
    if shown_base and (base[1] != shown_base[1] if base else "base" not in gold.question.lower()):
        return False
    wanted = parse_expression(gold_number(_BASE.sub("", gold.plain)) or gold.plain)
    bare, is_percent = _BASE.sub("", shown.removesuffix("%").strip()), shown.endswith("%")
    left = parse_expression(bare)
    if left is None or wanted is None:
        return False
    is_part = left.value is not None and 0 < abs(left.value) < 1
    means_percent = gold.plain.endswith("%") or asks_percent(gold.question)
    factors = [Fraction(1)] if not (is_percent and is_part) or means_percent else []
    factors += [Fraction(1, 100)] if is_percent and not gold.plain.endswith("%") else []
    factors += [Fraction(100)] if gold.plain.endswith("%") and not is_percent else []
    scaled = [parse_expression(f"({bare})*({factor})") for factor in factors]
    return any(one is not None and equal(one, wanted) for one in scaled)


def _same_bracketed(shown: str, target: str) -> bool:
    if re.search(r"[<>]", shown):
        return same_intervals(read_intervals(shown), read_intervals(target))
    is_set = target[0] == "{"
    if is_set and shown[:1] not in tuple("([{"):  # its members alone
        shown = f"{{{shown}}}"
    is_alike = bool(shown) and shown[0] + shown[-1] == target[0] + target[-1]
    return is_alike and _same_list(split_top(shown[1:-1]), split_top(target[1:-1]), is_ordered=not is_set)


def _same_expression(shown: str, target: str) -> bool:
    if "exp" in shown + target:
        shown, target = (_EULER.sub(lambda m: f"exp({(m[1] or '1').strip('()')})", text) for text in (shown, target))
    left, right = parse_expression(shown), parse_expression(target)
    return left is not None and right is not None and equal(left, right)


def _has_asked_form(shown: str, gold: Gold) -> bool:
    """Return whether an expression is factored, expanded or collected where the question asks for that."""
    shown, target = shown.replace(" ", "").replace("**", "^"), gold.plain.replace(" ", "")
    if re.match(r"\s*(?:factor|因式分解)", gold.question, re.I):
        return _num_terms(shown) <= _num_terms(target)
    if re.match(r"\s*(?:expand|collect|simplify|展开|化简)", gold.question, re.I):
        bare = _EXPONENT.sub("", shown)
        is_open = "(" in target or not re.search(r"[a-z]\w*\)|\([^()]*[a-z][^()]*[-+]", bare)
        return is_open and _num_terms(bare) <= _num_terms(target)
    return True


def _num_terms(text: str) -> int:
    """Count the terms of a sum that stand outside brackets."""
    while (inner := re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "1", text)) != text:
        text = inner
    return len(re.findall(r"(?<=[^-+*/^])[-+]", text)) + 1


def _same_matrix(shown: str, target: str) -> bool:
    """Compare matrices cell by cell; a vector may be written as a tuple."""
    theirs = rows(target)
    if re.fullmatch(r"[(\[][^\[\]]*[)\]]", shown):
        is_vector = min(len(theirs), max(map(len, theirs), default=0)) == 1
        return is_vector and _same_list(split_top(shown[1:-1]), [cell for row in theirs for cell in row])
    ours = rows(shown)
    return len(ours) == len(theirs) and all(map(_same_list, ours, theirs))


def _same_list(shown: list[str], target: list[str], is_ordered: bool = True) -> bool:
    return same_items(shown, target, _same_item, is_ordered=is_ordered)


def _same_item(shown: str, target: str) -> bool:
    left, right = parse_expression(shown), parse_expression(target)
    if left is not None and right is not None:
        return equal(left, right)
    if shown[:1] + shown[-1:] == target[:1] + target[-1:] and shown[:1] in ("(", "["):
        return _same_list(split_top(shown[1:-1]), split_top(target[1:-1]))
    return folded(shown) == folded(target)
