"""Calculations of the Mathematics form, in English and Chinese, with one right and three wrong ways each.

`drafts` says what a way is and writes terms; `polynomials`, `integers` and `lists` hold the kinds of calculation.
"""

from __future__ import annotations

import random

from lab.algebra import integers, lists, polynomials
from lab.algebra.drafts import Draft, Skill, Way
from lab.items import Item, Solution

__all__ = ["SKILLS", "make"]

_TABLE: tuple[Skill, ...] = (*polynomials.TABLE, *integers.TABLE, *lists.TABLE)

SKILLS: tuple[str, ...] = tuple(skill.name for skill in _TABLE)
"""The kinds of calculation, the same names in both languages."""


def make(rng: random.Random) -> Item:
    """Make one calculation.

    Example: "Find the derivative of 9*x**3 + 6*x." -> "9*3=27, 6*1=6." and "Answer: 27*x**2 + 6".
    """
    skill = rng.choice(_TABLE)
    is_english = rng.random() < 0.5
    draft = _draw(skill, rng)
    beliefs = ("right", *skill.beliefs)
    right, first, second, third = (
        _solution(belief, way, is_english=is_english) for belief, way in zip(beliefs, draft.ways, strict=True)
    )
    return Item(
        kind="mathematics",
        skill=skill.name,
        subject=skill.name,
        question=rng.choice(skill.english if is_english else skill.chinese).format(**draft.fields),
        reference=draft.ways[0].answer,
        right=right,
        wrong=(first, second, third),
    )


def _draw(skill: Skill, rng: random.Random) -> Draft:
    """Draw until the four ways differ in their first step and in their answer."""
    while True:
        draft = skill.draw(rng)
        if draft is None:
            continue
        starts = {steps[0] for steps, _ in draft.ways}
        answers = {answer for _, answer in draft.ways}
        if len(starts) == len(answers) == len(draft.ways):
            return draft


def _solution(belief: str, way: Way, *, is_english: bool) -> Solution:
    steps, answer = way
    return Solution(
        belief=belief,
        thought=" ".join([step.replace(" mod ", "%") for step in steps if not step.startswith("gcd")]),
        steps=", ".join(steps) + "." if is_english else "，".join(steps) + "。",
        final=f"Answer: {answer}" if is_english else f"答案：{answer}",
    )
