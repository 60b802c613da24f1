"""Word problems: true arithmetic, one right answer, three wrong ones that part from it at once."""

from __future__ import annotations

import re

import pytest

from lab.items import Item
from lab.tests import drawn
from lab.tests.drawn import is_chinese, solutions
from lab.words import SKILLS
from lab.words.kinds import TABLE
from lab.words.languages import LANGUAGES

_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    return drawn.items("gsm8k")


def test_every_step_is_a_true_operation_and_the_last_one_gives_the_answer(items: tuple[Item, ...]) -> None:
    for item in items:
        for solution in solutions(item):
            steps = _STEP.findall(solution.steps)
            assert len(steps) == solution.steps.count("=") >= 1
            for left, sign, right, result in steps:
                a, b, c = int(left), int(right), int(result)
                true = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[sign]
                assert true, solution
                assert 0 < c < 1000, solution
            assert solution.final == f"#### {steps[-1][3]}"
            assert solution.thought == " ".join(f"{a}{sign}{b}={c}" for a, sign, b, c in steps)


def test_every_number_of_a_right_solution_comes_from_the_question_or_a_step(items: tuple[Item, ...]) -> None:
    """Only the numbers of things that everybody knows may be added: pairs, legs, tenths, means of three."""
    for item in items:
        known = {int(number) for number in re.findall(r"\d+", item.question)} | {2, 3, 4, 10}
        if item.skill == "discount":
            known |= {number // 10 for number in known}
        for left, _, right, result in _STEP.findall(item.right.steps):
            assert {int(left), int(right)} <= known, item
            known.add(int(result))


def test_the_four_solutions_part_at_the_first_step(items: tuple[Item, ...]) -> None:
    for item in items:
        firsts = {s.thought.split()[0] for s in solutions(item)}
        finals = {s.final for s in solutions(item)}
        assert len(firsts) == len(finals) == 4, item


@pytest.mark.parametrize("language", LANGUAGES, ids=["English", "Chinese"])
def test_the_first_labels_of_a_kind_differ_in_both_languages(language: object) -> None:
    labels = getattr(language, "labels", {})
    for skill in TABLE:
        words = {labels.get(plan.steps[0].label, plan.steps[0].label) for plan in skill.plans}
        assert len(words) == 4, skill.name


def test_all_labels_have_a_chinese_word() -> None:
    labels = {step.label for skill in TABLE for plan in skill.plans for step in plan.steps}
    assert labels == set(LANGUAGES[1].labels)


def test_every_skill_has_phrasings_in_both_languages() -> None:
    for language in LANGUAGES:
        assert set(language.phrasings) == set(SKILLS)
        assert all(2 <= len(phrasings) <= 3 for phrasings in language.phrasings.values())


def test_steps_are_in_the_language_of_the_question(items: tuple[Item, ...]) -> None:
    for item in items:
        for solution in solutions(item):
            assert ("：" in solution.steps) == is_chinese(item)
            assert solution.steps.isascii() != is_chinese(item)
            assert "\n" not in solution.steps


def test_numbers_are_small(items: tuple[Item, ...]) -> None:
    assert sum(int(item.reference) < 300 for item in items) / len(items) > 0.95


def test_items_say_what_they_are(items: tuple[Item, ...]) -> None:
    for item in items:
        assert "{" not in item.question
        assert item.right.final == f"#### {item.reference}"
