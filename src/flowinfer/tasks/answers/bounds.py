"""Bounds: "more than 12" is no 12, but where a bound is asked for."""

from __future__ import annotations

import re

_THAN = r"\b(?:more|greater|larger|bigger|higher|less|fewer|smaller|lower)\s+than(?:\s+or\s+equal\s+to)?"
_WORDS = rf"{_THAN}|\bat (?:least|most)\b|[大小多少高低]于(?:等于)?|超过|至[少多](?:[是为有])?"
_OPENING = rf"{_WORDS}|\b(?:over|under|above|below|up to)\b|(?<![-=])[<>≤≥]=?"
"""How an announced bound begins; within a sentence these words have other uses: "spread over 12 months"."""
_OPENS = re.compile(rf"[\s*$]*(?:(?:well|just|slightly|no|not|any|不)\s*)?(?:{_OPENING})", re.I)
_BEFORE = re.compile(
    rf"(?:{_WORDS}|(?:(?:answer|result|solution)\W+(?:is|are|was)\s+|[:#]\s*)(?:{_OPENING}))[\s*$€£¥(]*$", re.I
)
_ASKED = re.compile(
    r"\b(?:least|most|minimum|maximum|min|max|fewest|smallest|largest|greatest|highest|lowest|needs?|needed|must"
    r"|required?)\b|[至最][少多大小高低]|需要?|才能",
    re.I,
)


def opens_bound(tail: str, question: str) -> bool:
    """Return whether what an answer is announced to be is a bound that the question does not ask for."""
    return bool(_OPENS.match(tail)) and not _ASKED.search(question)


def is_bound(before: str, question: str) -> bool:
    """Return whether what stands before a number makes it a bound that the question does not ask for."""
    return bool(_BEFORE.search(before)) and not _ASKED.search(question)


def ends_in_bound(sentence: str, question: str) -> bool:
    """Return whether the last number of a sentence is a bound that the question does not ask for."""
    last = re.search(r"-?\d[\d,.]*\D*$", sentence)
    return last is not None and is_bound(sentence[: last.start()], question)
