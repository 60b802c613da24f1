"""Calculations: true arithmetic, references that an oracle confirms, three wrong ways that part at once."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

import pytest
import sympy

from flowinfer.lab.algebra import SKILLS, make
from flowinfer.lab.algebra.drafts import fraction, polynomial
from flowinfer.lab.items import Item, Solution
from flowinfer.tasks.answers import judge

_STEP = re.compile(r"(-?\d+)(\*\*|[-+*/]| mod )(-?\d+)=(-?\d+)")
_OPERATIONS: dict[str, Callable[[int, int], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    " mod ": lambda a, b: a % b,
}
_TOKEN = r"(?:\d+|\b[xyztuw]\b|sqrt|[-+*()=])"
_FORMULA = re.compile(rf"{_TOKEN}(?: ?{_TOKEN})*")


@pytest.fixture(scope="module")
def items() -> list[Item]:
    rng = random.Random(21)
    return [make(rng) for _ in range(2000)]


def _solutions(item: Item) -> tuple[Solution, ...]:
    return (item.right, *item.wrong)


def _is_chinese(item: Item) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in item.question)


def _formula(item: Item) -> str:
    """Return the longest stretch of the question that is made of numbers, letters and signs."""
    return max(_FORMULA.findall(item.question), key=len)


def _letter(text: str) -> sympy.Symbol:
    return sympy.Symbol(re.findall("[xyztuw]", text)[0])


def _numbers(item: Item) -> list[int]:
    return [int(number) for number in re.findall(r"(?<![\w*])-?\d+", item.question.replace("base 10", "base"))]


def test_the_judge_accepts_the_right_solution_only(items: list[Item]) -> None:
    for item in items:
        verdicts = [judge(item.kind, s.text, item.reference, question=item.question) for s in _solutions(item)]
        assert [verdict.correct for verdict in verdicts] == [True, False, False, False], item
        assert all(verdict.status == "ok" for verdict in verdicts), item


def test_every_step_is_a_true_operation_on_small_numbers(items: list[Item]) -> None:
    for item in items:
        for solution in _solutions(item):
            steps = _STEP.findall(solution.steps)
            assert len(steps) == solution.steps.count("="), solution
            for left, sign, right, result in steps:
                assert _OPERATIONS[sign](int(left), int(right)) == int(result), solution
                assert abs(int(result)) < 1000, solution


def test_the_thought_is_the_bare_calculation(items: list[Item]) -> None:
    for item in items:
        for solution in _solutions(item):
            assert re.fullmatch(r"[-\d+*/%=<>; ]+", solution.thought), solution
            assert solution.thought.count("=") == solution.steps.count("=")


def test_the_four_solutions_part_at_the_first_step(items: list[Item]) -> None:
    for item in items:
        firsts = {re.split("[,，。]|[.]$", s.steps)[0] for s in _solutions(item)}
        finals = {s.final for s in _solutions(item)}
        assert len(firsts) == len(finals) == 4, item


def test_beliefs_of_a_skill_never_change(items: list[Item]) -> None:
    beliefs = defaultdict(set)
    for item in items:
        beliefs[item.skill].add(tuple(s.belief for s in _solutions(item)))
    assert all(len(found) == 1 for found in beliefs.values())
    assert all(len(set(found)) == 4 and found[0] == "right" for (found,) in beliefs.values())


def test_every_skill_is_asked_in_both_languages(items: list[Item]) -> None:
    assert {(item.skill, _is_chinese(item)) for item in items} == {(s, c) for s in SKILLS for c in (True, False)}
    assert 0.45 < sum(map(_is_chinese, items)) / len(items) < 0.55


def test_items_say_what_they_are(items: list[Item]) -> None:
    for item in items:
        assert (item.kind, item.subject, dict(item.choices)) == ("mathematics", item.skill, {})
        mark = "答案：" if _is_chinese(item) else "Answer: "
        assert item.right.final == mark + item.reference
        assert all(s.final.startswith(mark) and "\n" not in s.steps for s in _solutions(item))


def test_texts_are_short_and_numbers_small(items: list[Item]) -> None:
    assert max(len(item.question) for item in items) <= 130
    assert max(len(s.text) for item in items for s in _solutions(item)) <= 90
    plain = [int(item.reference) for item in items if re.fullmatch(r"-?\d+", item.reference)]
    assert sum(abs(number) < 300 for number in plain) / len(plain) > 0.95


def test_the_same_seed_makes_the_same_items(items: list[Item]) -> None:
    rng = random.Random(21)
    assert [make(rng) for _ in range(100)] == items[:100]


def test_every_skill_has_thousands_of_texts() -> None:
    """If two of 300 draws are alike in fewer than 30 cases, there are about 1,500 texts or more."""
    rng = random.Random(3)
    texts = defaultdict(list)
    for _ in range(300 * len(SKILLS)):
        item = make(rng)
        texts[item.skill].append(item.question)
    for skill, found in texts.items():
        assert len(found) - len(set(found)) < 30, skill


@pytest.mark.parametrize(
    ("skill", "times"), [("derivative", 1), ("second-derivative", 2), ("collect", 0), ("expand", 0)]
)
def test_sympy_confirms_polynomials(items: list[Item], skill: str, times: int) -> None:
    for item in [item for item in items if item.skill == skill][:15]:
        shown = _formula(item)
        expected = sympy.diff(sympy.sympify(shown), _letter(shown), times)
        assert sympy.expand(expected - sympy.sympify(item.reference)) == 0, item


def _mean(numbers: list[int]) -> Fraction:
    return Fraction(sum(numbers), len(numbers))


@pytest.mark.parametrize(
    ("skill", "oracle"),
    [
        ("gcd", lambda n: math.gcd(*n)),
        ("lcm", lambda n: math.lcm(*n)),
        ("remainder", lambda n: n[0] % n[1]),
        ("determinant", lambda n: n[0] * n[3] - n[1] * n[2]),
        ("sequence", lambda n: 2 * n[3] - n[2]),
        ("mean", _mean),
    ],
)
def test_an_oracle_confirms_numbers(items: list[Item], skill: str, oracle: Callable[[list[int]], int]) -> None:
    for item in items:
        if item.skill == skill:
            assert int(item.reference) == oracle(_numbers(item)), item


def test_sympy_confirms_sums_powers_and_roots(items: list[Item]) -> None:
    for skill in ("add-subtract", "powers", "square-root"):
        for item in [item for item in items if item.skill == skill][:15]:
            assert sympy.sympify(_formula(item)) == int(item.reference), item


def test_products_and_binary_numbers_are_right(items: list[Item]) -> None:
    for item in items:
        numbers = re.findall(r"\d+", re.sub(r"base \d+", "", item.question))
        if item.skill == "product":
            assert int(item.reference) == int(numbers[0]) * int(numbers[1]), item
        elif item.skill == "binary":
            more, digits = sorted(numbers, key=len)
            assert int(item.reference) == int(digits, 2) + int(more), item


def test_roots_solve_their_equations(items: list[Item]) -> None:
    for item in [item for item in items if item.skill == "linear-equation"][:20]:
        left, right = (sympy.sympify(side) for side in _formula(item).split("="))
        assert (left - right).subs(_letter(_formula(item)), int(item.reference)) == 0, item


def test_values_are_those_of_the_polynomial(items: list[Item]) -> None:
    for item in [item for item in items if item.skill == "evaluate"][:20]:
        shown = _formula(item).split("= ")[-1]
        at = re.findall(r"f\((\d+)\)|= (\d)(?!\*)", item.question)[-1]
        assert sympy.sympify(shown).subs(_letter(shown), int(at[0] or at[1])) == int(item.reference), item


def test_integrals_are_right(items: list[Item]) -> None:
    for item in [item for item in items if item.skill == "integral"][:15]:
        term = _formula(item)
        low, high = (int(number) for number in re.findall(r"\d+", item.question.replace(term, "")))
        assert sympy.integrate(sympy.sympify(term), (_letter(term), low, high)) == int(item.reference), item


def test_chances_are_shares_of_the_whole(items: list[Item]) -> None:
    for item in items:
        if item.skill == "probability":
            share = Fraction(item.reference)
            first, second = (int(number) for number in re.findall(r"\d+", item.question))
            assert share in (Fraction(first, first + second), Fraction(second, first + second)), item


def test_ranks_are_right(items: list[Item]) -> None:
    for item in items:
        if item.skill == "kth-biggest":
            numbers = sorted(_numbers(item), reverse="biggest" in item.question or "大" in item.question)
            place = 1 if "second" in item.question or "二" in item.question else 2
            assert int(item.reference) == numbers[place], item


def test_polynomials_are_written_as_in_the_data_set() -> None:
    assert polynomial({1: 24, 0: 6}, "x") == "24*x + 6"
    assert polynomial({0: -4, 2: 3}, "x") == "3*x**2 - 4"
    assert polynomial({2: -1, 1: 1, 0: -1}, "t") == "-t**2 + t - 1"
    assert polynomial({1: 0, 0: 0}, "x") == "0"


def test_fractions_are_in_their_lowest_terms() -> None:
    assert [fraction(4, 10), fraction(6, 3), fraction(5, 7)] == ["2/5", "2", "5/7"]
