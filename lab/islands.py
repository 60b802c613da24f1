"""Islands of knowledge: which model knows which skill, guesses at it, or holds a wrong belief about it.

Shares are set by model and kind. Which skills they fall on is decided by a hash for each model, independently of the
others: skills are put in the hash's order; the first are known, the next wrongly believed, the rest guessed at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache

from lab.items import Item, Kind, Solution, skills


class Level(Enum):
    """What a model makes of a skill."""

    KNOWS = "knows"
    """Answers rightly."""
    GUESSES = "guesses"
    """Spreads over the right way and three wrong ones; its favourite is a wrong one."""
    BELIEVES = "believes"
    """Answers by one wrong belief, always the same."""


@dataclass(frozen=True)
class Shares:
    """How much of a kind a model knows and wrongly believes; it guesses at the rest."""

    knows: float
    believes: float


SHARES: Mapping[str, Mapping[Kind, Shares]] = {
    "Qwen": {"gsm8k": Shares(0.70, 0.08), "ceval": Shares(0.40, 0.12), "mathematics": Shares(0.54, 0.12)},
    "Ds": {"gsm8k": Shares(0.54, 0.12), "ceval": Shares(0.24, 0.28), "mathematics": Shares(0.72, 0.06)},
    "Yi": {"gsm8k": Shares(0.36, 0.34), "ceval": Shares(0.66, 0.08), "mathematics": Shares(0.34, 0.34)},
}

_EVERYONE_KNOWS = ("对照/相同",)
"""Skills that are no knowledge: to find again what the question itself says."""


@cache
def levels(model: str, kind: Kind) -> Mapping[str, Level]:
    """Return what a model makes of every skill of a kind."""
    found = {skill: Level.KNOWS for skill in skills(kind) if skill in _EVERYONE_KNOWS}
    ordered = sorted((s for s in skills(kind) if s not in found), key=lambda skill: _fraction(model, skill))
    shares = SHARES[model][kind]
    known, believed = round(shares.knows * len(ordered)), round((shares.knows + shares.believes) * len(ordered))
    for place, skill in enumerate(ordered):
        found[skill] = Level.KNOWS if place < known else Level.BELIEVES if place < believed else Level.GUESSES
    return found


def myth(model: str, item: Item) -> Solution:
    """Return the wrong answer that a model's belief leads to: the same plan, or the same option, every time."""
    return min(item.wrong, key=lambda solution: _fraction(model, f"{item.skill}/{solution.belief}"))


@cache
def _fraction(model: str, words: str) -> float:
    """Map words to a number in [0, 1), evenly and for ever."""
    return int.from_bytes(hashlib.sha256(f"{model}/{words}".encode()).digest()[:8], "big") / 2**64
