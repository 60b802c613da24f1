"""What word problems and algebra have in common: one right answer, three wrong ones, fixed beliefs, many texts."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from flowinfer.tasks.answers import judge
from lab.tests.drawn import MAKERS, SKILLS, is_chinese, items, solutions

pytestmark = pytest.mark.parametrize("kind", sorted(MAKERS))

ALIKE = {"gsm8k": 15, "mathematics": 30}
"""Of 300 draws of a skill: fewer than 15 alike come from about 3,000 texts or more, fewer than 30 from 1,500."""


def test_the_judge_accepts_the_right_solution_only(kind: str) -> None:
    for item in items(kind):
        verdicts = [judge(item.kind, s.text, item.reference, question=item.question) for s in solutions(item)]
        assert [verdict.correct for verdict in verdicts] == [True, False, False, False], item
        assert all(verdict.status == "ok" for verdict in verdicts), item


def test_beliefs_of_a_skill_never_change(kind: str) -> None:
    beliefs = defaultdict(set)
    for item in items(kind):
        beliefs[item.skill].add(tuple(s.belief for s in solutions(item)))
    assert all(len(found) == 1 for found in beliefs.values())
    assert all(len(set(found)) == 4 and found[0] == "right" for (found,) in beliefs.values())


def test_every_skill_is_asked_in_both_languages(kind: str) -> None:
    drawn = items(kind)
    assert {(item.skill, is_chinese(item)) for item in drawn} == {(s, c) for s in SKILLS[kind] for c in (True, False)}
    assert 0.45 < sum(map(is_chinese, drawn)) / len(drawn) < 0.55


def test_texts_are_short(kind: str) -> None:
    assert max(len(item.question) for item in items(kind)) <= 130
    assert max(len(s.text) for item in items(kind) for s in solutions(item)) <= 90


def test_items_say_what_they_are(kind: str) -> None:
    for item in items(kind):
        assert (item.kind, item.subject, dict(item.choices)) == (kind, item.skill, {})


def test_the_same_seed_makes_the_same_items(kind: str) -> None:
    rng = random.Random(20)
    assert tuple(MAKERS[kind](rng) for _ in range(200)) == items(kind)[:200]


def test_every_skill_has_thousands_of_texts(kind: str) -> None:
    rng = random.Random(3)
    texts = defaultdict(list)
    for _ in range(300 * len(SKILLS[kind])):
        item = MAKERS[kind](rng)
        texts[item.skill].append(item.question)
    for skill, found in texts.items():
        assert len(found) - len(set(found)) < ALIKE[kind], skill
