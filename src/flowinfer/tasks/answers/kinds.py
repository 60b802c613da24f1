"""What kind of answer a mathematics reference is; unions of intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from flowinfer.tasks.answers.boxes import last_box
from flowinfer.tasks.answers.expressions import equal, parse_expression
from flowinfer.tasks.answers.latex import FUNCTIONS, plain, split_top
from flowinfer.tasks.answers.text import normalize

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


Kind = Literal[
    "truth",
    "time",
    "letter",
    "digits",
    "number",
    "list",
    "bracketed",
    "intervals",
    "matrix",
    "equation",
    "expression",
    "words",
]
TRUTHS = {"true": True, "false": False, "yes": True, "no": False}
TIME = re.compile(r"(?i)(?<![\d:])(\d{1,2}):(\d{2})(?::\d{2})?(?:\s*([ap])\.?m\b\.?|(?![\d:]))")


@dataclass(frozen=True)
class Gold:
    """A reference, read once."""

    string: str
    """As the data set has it, without its solution."""
    plain: str
    """Without LaTeX layout."""
    kind: Kind
    question: str


def read_gold(reference: str, question: str) -> Gold:
    """Read a reference: what its last box holds, or what follows its last ####."""
    text = normalize(reference)
    string = (last_box(text.string) or text.string.rsplit("####", 1)[-1]).strip()
    named = re.fullmatch(r"(?:[a-zA-Z]|\([a-z](?:,\s*[a-z])+\))\s*=\s*([^=]*,[^=]*)", plain(string))
    string = named[1] if named else string
    parts = dict(re.findall(r"(?:^|,)\s*([a-zA-Z])\s*=\s*([^=,]+)(?=,|$)", plain(string)))
    if len(parts) > 1 and len(parts) == string.count("="):  # x=3, y=4
        string = f"({', '.join(parts[name] for name in sorted(parts))})"
    return Gold(string, plain(string), kind_of(string), question)


def kind_of(gold: str) -> Kind:
    """Return what kind of answer a reference is."""
    text = plain(gold)
    if text.lower() in TRUTHS:
        return "truth"
    if re.search(r"[ap]\.?m", text, re.I) and TIME.fullmatch(text):
        return "time"
    if re.fullmatch(r"\(?[a-zA-Z]\)?", text):
        return "letter"
    if "matrix}" in gold or "{array}" in gold:
        return "matrix"
    if is_number(text):
        return "number"
    if text.count("=") == 1 and all(parse_expression(side) for side in text.split("=")):
        return "equation"
    if read_intervals(text) is not None and re.search(r"[∪<>]|oo|^[(\[][^()]*\]$|^\[[^()]*\)$", text):
        return "intervals"
    if len(split_top(text)) > 1 or re.search(r"\d\s*±|^±", text):
        return "list"
    if re.fullmatch(r"[(\[{].*[)\]}]", text) and len(split_top(text[1:-1])) > 1:
        return "bracketed"
    if re.fullmatch(r"-?0[xbo][0-9a-f]+", text, re.I):
        return "digits"
    if re.fullmatch(r"-?(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]+", text):
        parsed = parse_expression(text)
        return "digits" if re.search(r"[a-f]{2}|[a-f]\d|\d[a-f].*[a-f]", text) or parsed is None else "expression"
    if re.search(r"[A-Za-z]{2,}", re.sub(rf"(?<![A-Za-z]){FUNCTIONS}", "", text)):
        return "words"
    return "expression" if parse_expression(text) is not None else "words"


def is_number(text: str) -> bool:
    """Return whether a text is one number, with a currency, a unit, a percent sign or a base at most."""
    bare = re.sub(
        r"^[$€£]|\s*(?:%|°|degrees?)$|(?:\s+(?!pi\b|sqrt\b)[a-zA-Z]{2,}(?:\^\d)?){1,3}$|_\(?\d+\)?$", "", text.strip()
    ).strip()
    return bool(re.fullmatch(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?", bare)) and any(c.isdigit() for c in bare)
