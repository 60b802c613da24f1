"""Which known word a wrong one may have meant."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Collection, Iterable

from rapidfuzz import fuzz, process
from rapidfuzz.distance import OSA

_LONGEST_WORD = 100
"""Longest word that anything is near to; nearness takes the product of two lengths."""
_MOST_LISTED = 30
"""Most names that a help lists."""


def did_you_mean(word: str, known: Iterable[str], *, prefix: str = "") -> str | None:
    """Return a hint with the nearest known word, or None."""
    if len(word) > _LONGEST_WORD:
        return None
    word = unicodedata.normalize("NFKC", word)
    lowered = {name.lower(): name for name in known if len(name) <= _LONGEST_WORD}
    scorer = fuzz.WRatio if len(word) > 2 else fuzz.ratio  # parts of words say nothing about one letter
    near = process.extractOne(word.lower(), list(lowered), scorer=scorer, score_cutoff=60)
    return f"did you mean '{prefix}{lowered[near[0]]}'?" if near else None


def near_or_all(word: str, known: Collection[str], what: str) -> str:
    """Return a hint with the nearest of many names, else with as many as one reads."""
    if near := did_you_mean(word, known):
        return near
    listed = ", ".join(itertools.islice(known, _MOST_LISTED))
    return f"{what}: {listed}" + (f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else "")


def near_miss(word: str, known: Iterable[str], least: float = 0.7) -> str | None:
    """Return a hint with the known word that this one is a slip of the pen for, or None; stricter than did_you_mean."""
    word = unicodedata.normalize("NFKC", word).lower()
    near = process.extractOne(word, list(known), scorer=OSA.normalized_similarity, score_cutoff=least)
    return f"did you mean '{near[0]}'?" if near else None
