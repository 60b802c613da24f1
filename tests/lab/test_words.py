"""Word problems: true arithmetic, one right answer, three wrong ones that part from it at once."""

from __future__ import annotations

import random
import re
from collections import defaultdict

import pytest

from flowinfer.lab.items import Item, Solution
from flowinfer.lab.words import SKILLS, make
from flowinfer.lab.words.kinds import TABLE
from flowinfer.lab.words.languages import LANGUAGES
from flowinfer.tasks.answers import judge

_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def items() -> list[Item]:
    rng = random.Random(20)
    return [make(rng) for _ in range(2000)]


def _solutions(item: Item) -> tuple[Solution, ...]:
    return (item.right, *item.wrong)


def _is_chinese(item: Item) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in item.question)


def test_the_judge_accepts_the_right_solution_only(items: list[Item]) -> None:
    for item in items:
        verdicts = [judge(item.kind, s.text, item.reference, question=item.question) for s in _solutions(item)]
        assert [verdict.correct for verdict in verdicts] == [True, False, False, False], item
        assert all(verdict.status == "ok" for verdict in verdicts), item


def test_every_step_is_a_true_operation_and_the_last_one_gives_the_answer(items: list[Item]) -> None:
    for item in items:
        for solution in _solutions(item):
            steps = _STEP.findall(solution.steps)
            assert len(steps) == solution.steps.count("=") >= 1
            for left, sign, right, result in steps:
                a, b, c = int(left), int(right), int(result)
                true = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[sign]
                assert true, solution
                assert 0 < c < 1000, solution
            assert solution.final == f"#### {steps[-1][3]}"
            assert solution.thought == " ".join(f"{a}{sign}{b}={c}" for a, sign, b, c in steps)


def test_every_number_of_a_right_solution_comes_from_the_question_or_a_step(items: list[Item]) -> None:
    """Only the numbers of things that everybody knows may be added: pairs, legs, tenths, means of three."""
    for item in items:
        known = {int(number) for number in re.findall(r"\d+", item.question)} | {2, 3, 4, 10}
        if item.skill == "discount":
            known |= {number // 10 for number in known}
        for left, _, right, result in _STEP.findall(item.right.steps):
            assert {int(left), int(right)} <= known, item
            known.add(int(result))


def test_the_four_solutions_part_at_the_first_step(items: list[Item]) -> None:
    for item in items:
        firsts = {s.thought.split()[0] for s in _solutions(item)}
        finals = {s.final for s in _solutions(item)}
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


def test_beliefs_of_a_skill_never_change(items: list[Item]) -> None:
    beliefs = defaultdict(set)
    for item in items:
        beliefs[item.skill].add(tuple(s.belief for s in _solutions(item)))
    assert all(len(found) == 1 for found in beliefs.values())
    assert all(len(set(found)) == 4 and found[0] == "right" for (found,) in beliefs.values())


def test_every_skill_is_told_in_every_phrasing_of_both_languages(items: list[Item]) -> None:
    assert {(item.skill, _is_chinese(item)) for item in items} == {(s, c) for s in SKILLS for c in (True, False)}
    assert 0.45 < sum(map(_is_chinese, items)) / len(items) < 0.55
    for language in LANGUAGES:
        assert set(language.phrasings) == set(SKILLS)
        assert all(2 <= len(phrasings) <= 3 for phrasings in language.phrasings.values())


def test_steps_are_in_the_language_of_the_question(items: list[Item]) -> None:
    for item in items:
        for solution in _solutions(item):
            assert ("：" in solution.steps) == _is_chinese(item)
            assert solution.steps.isascii() != _is_chinese(item)
            assert "\n" not in solution.steps


def test_texts_are_short_and_numbers_small(items: list[Item]) -> None:
    assert max(len(item.question) for item in items) <= 130
    assert max(len(s.text) for item in items for s in _solutions(item)) <= 90
    assert sum(int(item.reference) < 300 for item in items) / len(items) > 0.95


def test_items_say_what_they_are(items: list[Item]) -> None:
    for item in items:
        assert (item.kind, item.subject, dict(item.choices)) == ("gsm8k", item.skill, {})
        assert "{" not in item.question
        assert item.right.final == f"#### {item.reference}"


def test_the_same_seed_makes_the_same_items(items: list[Item]) -> None:
    rng = random.Random(20)
    assert [make(rng) for _ in range(300)] == items[:300]


def test_every_skill_has_thousands_of_texts() -> None:
    """If two of 300 draws are alike in fewer than 15 cases, there are about 3,000 texts or more."""
    rng = random.Random(3)
    texts = defaultdict(list)
    for _ in range(300 * len(SKILLS)):
        item = make(rng)
        texts[item.skill].append(item.question)
    for skill, found in texts.items():
        assert len(found) - len(set(found)) < 15, skill
