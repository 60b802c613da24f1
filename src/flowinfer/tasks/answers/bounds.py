"""Bounds: "more than 12" is no 12, but where a bound is asked for."""

from __future__ import annotations

import re

_THAN = r"\b(?:more|greater|larger|bigger|higher|less|fewer|smaller|lower)\s+than(?:\s+or\s+equal\s+to)?"
_WORDS = (
    rf"{_THAN}|\bat (?:least|most)\b|\bexceed(?:s|ing)?\b|[大小多少高低]于(?:等于)?|超过|不[到足]|至[少多](?:[是为有])?"
)
_OPENING = rf"{_WORDS}|\b(?:over|under|above|below|up to)\b|(?<![-=])(?!<[^<>]+>)[<>≤≥]=?|\\[gl](?:eq?|t)\b"
"""How an announced bound begins; within a sentence these words have other uses: "spread over 12 months"."""
_OPENS = re.compile(rf"[\s*$]*(?:(?:well|just|slightly|no|not|any|不)\s*)?(?:{_OPENING})", re.I)
_BEFORE = re.compile(
    rf"(?:{_WORDS}|(?:(?:answer|result|solution)\W+(?:is|are|was|lies)\s+|[:#]\s*)(?:{_OPENING}))[\s*$€£¥(]*$", re.I
)
_BEHIND = re.compile(
    r"\s*(?:[a-z]+\s+)?(?:\+(?!\s*[\d(a-z])|or (?:more|less|fewer|greater|higher|above|over|below)\b)|个?以[上下]", re.I
)
_ONLY = re.compile(r"[\s*$€£¥]*\d[\d,.]*")
_ASKED = re.compile(
    r"\b(?:least|most|minimum|maximum|min|max|fewest|smallest|largest|greatest|highest|lowest|needs?|needed|must"
    r"|required?)\b|[至最][少多大小高低]|需要?|才能",
    re.I,
)


def holds_bound(stretch: str, question: str) -> bool:
    """Return whether what stands where an answer stands is a bound that the question does not ask for."""
    number = _ONLY.match(stretch)
    is_bound = _OPENS.match(stretch) or (number and _BEHIND.match(stretch, number.end()))
    return bool(is_bound) and not _ASKED.search(question)


def is_bound(sentence: str, begin: int, end: int, question: str) -> bool:
    """Return whether what stands around a number makes it a bound that the question does not ask for."""
    is_bound = _BEFORE.search(sentence[:begin]) or _BEHIND.match(sentence, end)
    return bool(is_bound) and not _ASKED.search(question)


def has_only_bounds(sentence: str, question: str) -> bool:
    """Return whether the numbers of a sentence, if it has any, are bounds that the question does not ask for."""
    numbers = list(re.finditer(r"-?\d+(?:[,.]\d+)*", sentence))
    return bool(numbers) and all(is_bound(sentence, *number.span(), question) for number in numbers)
