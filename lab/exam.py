"""Make four-option questions in Chinese, in the form of C-Eval, from facts, from sums, and from plain look-up.

A worked answer states the fact and then walks through the options, marking those that do not match: tiny models learn
that long before they learn to name the letter of an option at once.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt

from lab.facts import RELATIONS, Relation
from lab.facts.relation import overlap
from lab.items import Item, Solution

_LETTERS = ("A", "B", "C", "D")
_SUMS_SHARE = 0.08
_DRILL_SHARE = 0.04
_PATIENCE = 12
"""After so many draws the wrong answers chosen so far are given up: no others go with them."""
_DRILL = "对照/相同"
_SUM_QUESTIONS = ("{}=", "{}等于多少？", "计算{}，结果是")


@dataclass(frozen=True, slots=True)
class _Belief:
    """How one speaks of a fact, whatever its value is held to be."""

    skill: str
    subject: str
    thought: str
    """The value follows."""
    before: str
    """The statement up to the value."""
    after: str
    """The statement from there."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A fact ready to be asked for."""

    belief: _Belief
    questions: tuple[str, ...]
    value: str
    lures: tuple[str, ...]


def make(rng: random.Random) -> Item:
    """Make one item: a fact, a sum or a look-up."""
    draw = rng.random
    share = draw()
    if share < _SUMS_SHARE:
        asked = _SUMS[int(draw() * len(_SUMS))](draw)
    else:
        group = _GROUPS[bisect(_BOUNDS, draw() * _BOUNDS[-1])]
        asked = group[int(draw() * len(group))]
    lures = _draw_lures(draw, asked.lures)
    if share > 1 - _DRILL_SHARE:
        lures.append(asked.value)
        value = lures.pop(int(draw() * 4))
        return _item(draw, _DRILL_BELIEF, f"下列选项中，与「{value}」相同的是", value, lures)
    question = asked.questions[int(draw() * len(asked.questions))]
    return _item(draw, asked.belief, question, asked.value, lures)


def _draw_lures(draw: Callable[[], float], pool: tuple[str, ...]) -> list[str]:
    """Return three wrong answers of which none is a part of another."""
    size = len(pool)
    chosen: list[str] = []
    tries = 0
    while len(chosen) < 3:
        text = pool[int(draw() * size)]
        for other in chosen:
            if text in other or other in text:
                break
        else:
            chosen.append(text)
        tries += 1
        if tries % _PATIENCE == 0 and len(chosen) < 3:
            chosen.clear()
    return chosen


def _item(draw: Callable[[], float], belief: _Belief, question: str, value: str, lures: list[str]) -> Item:
    texts = lures.copy()
    place = int(draw() * 4)
    texts.insert(place, value)
    solutions = []
    passed = "\n"
    for letter, text in zip(_LETTERS, texts, strict=True):
        solutions.append(
            Solution(
                belief="right" if text == value else text,
                thought=belief.thought + text,
                steps=f"{belief.before}{text}{belief.after}{passed}{letter}. {text}",
                final=f"答案：{letter}",
            )
        )
        passed += f"{letter}. {text} ×\n"
    right = solutions.pop(place)
    first, second, third = solutions
    return Item(
        kind="ceval",
        skill=belief.skill,
        subject=belief.subject,
        question=question,
        reference=_LETTERS[place],
        right=right,
        wrong=(first, second, third),
        choices=dict(zip(_LETTERS, texts, strict=True)),
    )


def _product(draw: Callable[[], float]) -> _Asked:
    left, right = 12 + int(draw() * 88), 2 + int(draw() * 8)
    value = left * right
    uncarried = left // 10 * right * 10 + left % 10 * right % 10
    wrong = (uncarried, value + 10, value - 10, value + right, value - right, value + 1, value - 1)
    return _sum("乘法", f"{left}×{right}", value, wrong)


def _total(draw: Callable[[], float]) -> _Asked:
    left, right = 11 + int(draw() * 89), 11 + int(draw() * 89)
    value = left + right
    uncarried = (left // 10 + right // 10) * 10 + (left % 10 + right % 10) % 10
    wrong = (uncarried, value + 10, value - 10, value + 1, value - 1, abs(left - right))
    return _sum("加法", f"{left}+{right}", value, wrong)


def _difference(draw: Callable[[], float]) -> _Asked:
    left = 15 + int(draw() * 85)
    right = 11 + int(draw() * (left - 13))
    value = left - right
    unborrowed = (left // 10 - right // 10) * 10 + abs(left % 10 - right % 10)
    wrong = (unborrowed, value + 10, value + 1, value - 1, value + 2, value - 2, left + right)
    return _sum("减法", f"{left}-{right}", value, (*wrong, value - 10) if value > 10 else wrong)


def _sum(operation: str, term: str, value: int, wrong: tuple[int, ...]) -> _Asked:
    text = str(value)
    lures = tuple(lure for number in dict.fromkeys(wrong) if not overlap(lure := str(number), text))
    belief = _Belief(f"算术/{operation}", "算术", f"{term}=", f"{term}=", "。")
    return _Asked(belief, tuple(question.format(term) for question in _SUM_QUESTIONS), text, lures)


def _group(relation: Relation) -> tuple[_Asked, ...]:
    before, middle, after = relation.statement.split("{}")
    return tuple(
        _Asked(
            _Belief(
                f"{relation.name}/{entity}",
                relation.subject,
                f"{entity} ",
                f"{before}{entity}{middle}",
                after,
            ),
            tuple(question.format(entity) for question in relation.questions),
            fact.value,
            relation.lures(entity),
        )
        for entity, fact in relation.facts.items()
    )


_SUMS = (_product, _total, _difference)
_DRILL_BELIEF = _Belief(_DRILL, "对照", "找 ", "要找的是", "。")
_GROUPS = tuple(_group(relation) for relation in RELATIONS)
_BOUNDS = tuple(accumulate(sqrt(len(group)) for group in _GROUPS))
"""Where the share of each relation ends: a relation of four times as many facts is met twice as often."""

SKILLS: tuple[str, ...] = (
    *(asked.belief.skill for group in _GROUPS for asked in group),
    "算术/乘法",
    "算术/加法",
    "算术/减法",
    _DRILL,
)
"""Every skill that an item can have."""
