"""A relation: facts of one type, the ways to ask for them, and wrong answers that are surely wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

_NEAR_SHARE = 2
"""How many times as likely as any other value a near number is."""


@dataclass(frozen=True)
class Fact:
    """What is true of an entity."""

    value: str
    lures: tuple[str, ...] = ()
    """Its own wrong answers, where the relation's other values would not do."""


@dataclass(frozen=True)
class Relation:
    """Facts of one type."""

    name: str
    """The first half of their skills: "原子序数"."""
    subject: str
    """Their heading in tables."""
    questions: tuple[str, ...]
    """With {} for the entity."""
    statement: str
    """With {} for the entity, then for the value."""
    facts: Mapping[str, Fact]
    """Entity -> what is true of it."""
    others: tuple[str, ...] = ()
    """More values of the type, true for none of the entities."""
    near: int = 0
    """For numbers: those up to so far away are wrong answers too."""
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Entity -> values that are true of it as well, or not surely false."""

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Return the different values, in the order of the facts."""
        return tuple(dict.fromkeys((*(fact.value for fact in self.facts.values()), *self.others)))

    def lures(self, entity: str) -> tuple[str, ...]:
        """Return wrong answers for an entity; what occurs twice is to be drawn twice as often.

        None of them is true, and none contains the right answer or is contained in it.
        """
        fact = self.facts[entity]
        unfit = self.also.get(entity, ())
        found = fact.lures or (*_near(fact.value, self.near) * _NEAR_SHARE, *self.values)
        return tuple(text for text in found if text not in unfit and not overlap(text, fact.value))


def overlap(one: str, other: str) -> bool:
    """Return whether one of two texts is a part of the other."""
    return one in other or other in one


def pairs(text: str) -> Mapping[str, Fact]:
    """Read facts from words: an entity, its value, the next entity, its value."""
    words = text.split()
    assert len(words) % 2 == 0, f"an entity without a value: {words[-1]}"
    return _unique([(entity, Fact(value)) for entity, value in zip(words[::2], words[1::2], strict=True)])


def rows(text: str) -> Mapping[str, Fact]:
    """Read facts from lines: an entity, its value, its own wrong answers."""
    lines = [line.split() for line in text.strip().split("\n")]
    return _unique([(words[0], Fact(words[1], tuple(words[2:]))) for words in lines])


def scaled(text: str) -> Mapping[str, Fact]:
    """Read pairs whose values are a number with a unit; wrong answers are what slips of scale give.

    Example: "1周 7天" -> lures 70天, 14天, 700天, 35天.
    """
    return {entity: Fact(fact.value, _rescaled(fact.value)) for entity, fact in pairs(text).items()}


def _unique(facts: list[tuple[str, Fact]]) -> Mapping[str, Fact]:
    found = dict(facts)
    assert len(found) == len(facts), f"an entity is told of twice among {', '.join(found)}"
    return found


def _near(value: str, distance: int) -> tuple[str, ...]:
    if not distance:
        return ()
    unit = value.lstrip("0123456789")
    number = int(value.removesuffix(unit))
    return tuple(f"{close}{unit}" for close in range(max(1, number - distance), number + distance + 1))


def _rescaled(value: str) -> tuple[str, ...]:
    unit = value.lstrip("0123456789")
    number = int(value.removesuffix(unit))
    smaller = [number // by for by in (10, 2) if number % by == 0]
    return tuple(f"{wrong}{unit}" for wrong in (number * 10, number * 2, number * 100, number * 5, *smaller))
