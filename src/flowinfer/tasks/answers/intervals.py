"""Unions of intervals, written with brackets or as inequalities."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from flowinfer.tasks.answers.expressions import equal, parse_expression
from flowinfer.tasks.answers.latex import split_top

Item = TypeVar("Item")
_BUILT = re.compile(r"\{\s*[a-zA-Z]\s*(?:∈[^|:]*)?(?:\\mid|[|:])\s*(.+)\}")
_UNEQUAL = re.compile(r"[a-zA-Z]\s*(?:!=|≠)\s*([^,=<>≠!]+)")
_INEQUALITY = re.compile(r"(?:([^<>=]+?)\s*(<=?|>=?)\s*)?[a-zA-Z]\s*(<=?|>=?)\s*([^<>=]+)")


class Interval(NamedTuple):
    """One interval; its ends are texts that parse as expressions."""

    low: str
    high: str
    has_low: bool
    has_high: bool


def read_intervals(text: str) -> tuple[Interval, ...] | None:
    """Read a plain text (see latex.plain) as a union of intervals, or return None."""
    text = re.sub(r"^[a-zA-Z]\s*(?:∈|=(?=\s*[(\[]))\s*", "", text.strip()).strip()
    if built := _BUILT.fullmatch(text):
        text = built[1]
    if unequal := _UNEQUAL.fullmatch(text):
        text = f"(-oo,{unequal[1]})∪({unequal[1]},oo)"
    parts = re.split(r"∪|\bU\b", text)
    if (len(parts) == 1 and "<" in text) or ">" in text:
        parts = re.split(r"\s*(?:,|\bor\b|或)\s*", text)
    found = [_interval(part.strip()) for part in parts]
    known = tuple(interval for interval in found if interval is not None)
    return known if len(known) == len(found) else None


def _interval(text: str) -> Interval | None:
    if re.fullmatch(r"[(\[].*[)\]]", text):
        ends = split_top(text[1:-1])
        found = Interval(ends[0], ends[-1], text[0] == "[", text[-1] == "]") if len(ends) == 2 else None
    elif (match := _INEQUALITY.fullmatch(text)) and (match[2] or match[3])[0] == match[3][0]:
        first, one, two, last = match.groups()
        has_first = "=" in (one or "")
        if two[0] == "<":
            found = Interval(first or "-oo", last, has_first, "=" in two)
        else:
            found = Interval(last, first or "oo", "=" in two, has_first)
    else:
        found = None
    return found if found and parse_expression(found.low) and parse_expression(found.high) else None


def same_intervals(left: tuple[Interval, ...] | None, right: tuple[Interval, ...] | None) -> bool:
    """Return whether two unions list the same intervals, in any order; what is none equals none."""
    return left is not None and right is not None and same_items(left, right, _same, is_ordered=False)


def _same(left: Interval, right: Interval) -> bool:
    ends = [(parse_expression(a), parse_expression(b)) for a, b in ((left.low, right.low), (left.high, right.high))]
    return left[2:] == right[2:] and all(a and b and (a.text == b.text or equal(a, b)) for a, b in ends)


def same_items(
    left: Sequence[Item], right: Sequence[Item], is_same: Callable[[Item, Item], bool], *, is_ordered: bool
) -> bool:
    """Return whether two lists hold the same items, each once."""
    if len(left) != len(right):
        return False
    if is_ordered:
        return all(map(is_same, left, right))
    rest = list(right)
    for item in left:
        at = next((at for at, other in enumerate(rest) if is_same(item, other)), None)
        if at is None:
            return False
        del rest[at]
    return True
