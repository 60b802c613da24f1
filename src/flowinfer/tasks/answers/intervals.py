"""Unions of intervals, written with brackets or as inequalities."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flowinfer.tasks.answers.expressions import equal, parse_expression
from flowinfer.tasks.answers.latex import split_top


@dataclass(frozen=True)
class Interval:
    """One interval; its ends are texts that parse as expressions."""

    low: str
    high: str
    has_low: bool
    has_high: bool


_BUILT = re.compile(r"\{\s*[a-zA-Z]\s*(?:∈[^|:]*)?(?:\\mid|[|:])\s*(.+)\}")
_UNEQUAL = re.compile(r"[a-zA-Z]\s*(?:!=|≠)\s*([^,=<>≠!]+)")
_CHAIN = re.compile(r"([^<>=]+?)\s*(<=?|>=?)\s*([a-zA-Z])\s*(<=?|>=?)\s*([^<>=]+)")
_HALF = re.compile(r"([a-zA-Z])\s*(<=?|>=?)\s*([^<>=]+)")


def read_intervals(text: str) -> tuple[Interval, ...] | None:
    """Read a plain text (see latex.plain) as a union of intervals, or return None."""
    text = re.sub(r"^[a-zA-Z]\s*∈\s*", "", text.strip()).strip()
    if built := _BUILT.fullmatch(text):
        text = built[1]
    if unequal := _UNEQUAL.fullmatch(text):
        text = f"(-oo,{unequal[1]})∪({unequal[1]},oo)"
    parts = re.split(r"∪|\bU\b", text)
    if (len(parts) == 1 and "<" in text) or ">" in text:
        parts = re.split(r"\s*(?:,|\bor\b|或)\s*", text)
    found = [_bracketed(part.strip()) or _inequality(part.strip()) for part in parts]
    known = tuple(interval for interval in found if interval is not None)
    return known if known and len(known) == len(found) else None


def _bracketed(text: str) -> Interval | None:
    if not re.fullmatch(r"[(\[].*[)\]]", text):
        return None
    ends = split_top(text[1:-1])
    if len(ends) != 2 or any(parse_expression(end) is None for end in ends):
        return None
    return Interval(ends[0], ends[1], text[0] == "[", text[-1] == "]")


def _inequality(text: str) -> Interval | None:
    if match := _CHAIN.fullmatch(text):
        first, one, _, two, last = match.groups()
        if one[0] != two[0] or parse_expression(first) is None or parse_expression(last) is None:
            return None
        if one[0] == "<":
            return Interval(first, last, "=" in one, "=" in two)
        return Interval(last, first, "=" in two, "=" in one)
    match = _HALF.fullmatch(text)
    if match and parse_expression(match[3]) is not None:
        if match[2][0] == "<":
            return Interval("-oo", match[3], False, "=" in match[2])
        return Interval(match[3], "oo", "=" in match[2], False)
    return None


def same_intervals(left: tuple[Interval, ...], right: tuple[Interval, ...]) -> bool:
    """Return whether two unions list the same intervals, in any order."""
    rest = list(right)
    for one in left:
        match = next((other for other in rest if _same(one, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


def _same(left: Interval, right: Interval) -> bool:
    if (left.has_low, left.has_high) != (right.has_low, right.has_high):
        return False
    ends = [(parse_expression(a), parse_expression(b)) for a, b in ((left.low, right.low), (left.high, right.high))]
    return all(a is not None and b is not None and (a.text == b.text or equal(a, b)) for a, b in ends)
