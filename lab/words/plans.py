"""What a kind of word problem is, and how its plans are carried out.

A plan is written as its labelled steps, "half=a/2 now=half+b"; one letter is a number of the problem, a word the result
of an earlier step.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LIMIT = 1000
"""All results stay below it."""

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    # A division with a rest counts as 0, which no plan may reach.
    "/": lambda left, right: 0 if left % right else left // right,
}


class Step(NamedTuple):
    """One labelled operation."""

    label: str
    left: str
    """A number's letter, an earlier label or a literal."""
    sign: str
    right: str


@dataclass(frozen=True)
class Plan:
    """A way to work a kind of problem out."""

    belief: str
    """What it rests on, "right" or in a few words what is wrong."""
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Skill:
    """A kind of word problem."""

    name: str
    numbers: Mapping[str, Sequence[int]]
    """Letter -> what it is drawn from."""
    derived: tuple[Step, ...]
    """How further numbers of the problem follow from the drawn ones."""
    plans: tuple[Plan, Plan, Plan, Plan]
    """The right one first."""


class Work(NamedTuple):
    """A plan carried out."""

    calculations: list[str]
    """For example "58/2=29", "29+18=47"."""
    result: int


class Drawn(NamedTuple):
    """The numbers of one problem and its plans carried out."""

    numbers: dict[str, int]
    works: list[Work]


def draw(skill: Skill, rng: random.Random) -> Drawn:
    """Draw numbers until all plans of a kind work out and differ in their first operation and in their result."""
    while True:
        numbers = {letter: rng.choice(known) for letter, known in skill.numbers.items()}
        if skill.derived and not _carry_out(skill.derived, numbers):
            continue
        works: list[Work] = []
        for plan in skill.plans:
            work = _carry_out(plan.steps, numbers.copy())
            if work is None or any(
                work.result == other.result or work.calculations[0] == other.calculations[0] for other in works
            ):
                break
            works.append(work)
        else:
            return Drawn(numbers, works)


def kind(
    name: str, numbers: Mapping[str, Sequence[int]], right: str, wrong: Mapping[str, str], derived: str = ""
) -> Skill:
    """Build a kind of problem from its plans as they are written, the wrong ones by their beliefs."""
    first, second, third = (Plan(belief, _parsed(written)) for belief, written in wrong.items())
    return Skill(name, numbers, _parsed(derived), (Plan("right", _parsed(right)), first, second, third))


def _carry_out(steps: tuple[Step, ...], values: dict[str, int]) -> Work | None:
    """Carry steps out and add their results to the values; None where one is no whole number from 1 below the limit."""
    calculations = []
    result = 0
    for label, left_name, sign, right_name in steps:
        left = values[left_name] if left_name in values else int(left_name)
        right = values[right_name] if right_name in values else int(right_name)
        result = values[label] = _OPERATIONS[sign](left, right)
        if not 0 < result < LIMIT:
            return None
        calculations.append(f"{left}{sign}{right}={result}")
    return Work(calculations, result)


def _parsed(written: str) -> tuple[Step, ...]:
    """Read "half=a/2 now=half+b"."""
    steps = []
    for part in written.split():
        label, formula = part.split("=")
        sign = next(sign for sign in _OPERATIONS if sign in formula)
        left, right = formula.split(sign)
        steps.append(Step(label, left, sign, right))
    return tuple(steps)
