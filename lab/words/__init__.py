"""Word problems of the GSM8K form, in English and Chinese, with one right and three wrong plans each.

`kinds` says how each kind of problem is worked out, rightly and wrongly (`plans` carries it out); `phrases` and
`languages` say how it is told.
"""

from __future__ import annotations

import random

from lab.items import Item, Solution
from lab.words.kinds import TABLE
from lab.words.languages import LANGUAGES, Language
from lab.words.plans import Plan, Work, draw

__all__ = ["SKILLS", "make"]

SKILLS: tuple[str, ...] = tuple(skill.name for skill in TABLE)
"""The kinds of word problems, the same names in both languages."""


def make(rng: random.Random) -> Item:
    """Make one word problem.

    Example: "Ben has 58 cards, gives half of them to Mia and then buys 18 more. ..." -> "half: 58/2=29. now: 29+18=47."
    """
    skill = rng.choice(TABLE)
    language = rng.choice(LANGUAGES)
    drawn = draw(skill, rng)
    phrasing = rng.choice(language.phrasings[skill.name])
    scene = language.scene(phrasing, rng)
    right, first, second, third = (
        _solution(plan, work, language) for plan, work in zip(skill.plans, drawn.works, strict=True)
    )
    return Item(
        kind="gsm8k",
        skill=skill.name,
        subject=skill.name,
        question=phrasing.format(**drawn.numbers, **scene),
        reference=str(drawn.works[0].result),
        right=right,
        wrong=(first, second, third),
    )


def _solution(plan: Plan, work: Work, language: Language) -> Solution:
    return Solution(
        belief=plan.belief,
        thought=" ".join(work.calculations),
        steps=language.worked([step.label for step in plan.steps], work.calculations),
        final=f"#### {work.result}",
    )
