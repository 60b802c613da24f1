"""Calculations: true arithmetic, references that an oracle confirms, three wrong ways that part at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

import pytest
import sympy

from lab.algebra.drafts import fraction, polynomial
from lab.items import Item
from lab.tests import drawn
from lab.tests.drawn import is_chinese, solutions

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
def items() -> tuple[Item, ...]:
    return drawn.items("mathematics")


def _formula(item: Item) -> str:
    """Return the longest stretch of the question that is made of numbers, letters and signs."""
    return max(_FORMULA.findall(item.question), key=len)


def _letter(text: str) -> sympy.Symbol:
    return sympy.Symbol(re.findall("[xyztuw]", text)[0])


def _numbers(item: Item) -> list[int]:
    return [int(number) for number in re.findall(r"(?<![\w*])-?\d+", item.question.replace("base 10", "base"))]


def test_every_step_is_a_true_operation_on_small_numbers(items: tuple[Item, ...]) -> None:
    for item in items:
        for solution in solutions(item):
            steps = _STEP.findall(solution.steps)
            assert len(steps) == solution.steps.count("="), solution
            for left, sign, right, result in steps:
                assert _OPERATIONS[sign](int(left), int(right)) == int(result), solution
                assert abs(int(result)) < 1000, solution


def test_the_thought_is_the_bare_calculation(items: tuple[Item, ...]) -> None:
    for item in items:
        for solution in solutions(item):
            assert re.fullmatch(r"[-\d+*/%=<>; ]+", solution.thought), solution
            assert solution.thought.count("=") == solution.steps.count("=")


def test_the_four_solutions_part_at_the_first_step(items: tuple[Item, ...]) -> None:
    for item in items:
        firsts = {re.split("[,，。]|[.]$", s.steps)[0] for s in solutions(item)}
        finals = {s.final for s in solutions(item)}
        assert len(firsts) == len(finals) == 4, item


def test_items_say_what_they_are(items: tuple[Item, ...]) -> None:
    for item in items:
        mark = "答案：" if is_chinese(item) else "Answer: "
        assert item.right.final == mark + item.reference
        assert all(s.final.startswith(mark) and "\n" not in s.steps for s in solutions(item))


def test_numbers_are_small(items: tuple[Item, ...]) -> None:
    plain = [int(item.reference) for item in items if re.fullmatch(r"-?\d+", item.reference)]
    assert sum(abs(number) < 300 for number in plain) / len(plain) > 0.95


@pytest.mark.parametrize(
    ("skill", "times"), [("derivative", 1), ("second-derivative", 2), ("collect", 0), ("expand", 0)]
)
def test_sympy_confirms_polynomials(items: tuple[Item, ...], skill: str, times: int) -> None:
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
def test_an_oracle_confirms_numbers(items: tuple[Item, ...], skill: str, oracle: Callable[[list[int]], int]) -> None:
    for item in items:
        if item.skill == skill:
            assert int(item.reference) == oracle(_numbers(item)), item


def test_sympy_confirms_sums_powers_and_roots(items: tuple[Item, ...]) -> None:
    for skill in ("add-subtract", "powers", "square-root"):
        for item in [item for item in items if item.skill == skill][:15]:
            assert sympy.sympify(_formula(item)) == int(item.reference), item


def test_products_and_binary_numbers_are_right(items: tuple[Item, ...]) -> None:
    for item in items:
        numbers = re.findall(r"\d+", re.sub(r"base \d+", "", item.question))
        if item.skill == "product":
            assert int(item.reference) == int(numbers[0]) * int(numbers[1]), item
        elif item.skill == "binary":
            more, digits = sorted(numbers, key=len)
            assert int(item.reference) == int(digits, 2) + int(more), item


def test_roots_solve_their_equations(items: tuple[Item, ...]) -> None:
    for item in [item for item in items if item.skill == "linear-equation"][:20]:
        left, right = (sympy.sympify(side) for side in _formula(item).split("="))
        assert (left - right).subs(_letter(_formula(item)), int(item.reference)) == 0, item


def test_values_are_those_of_the_polynomial(items: tuple[Item, ...]) -> None:
    for item in [item for item in items if item.skill == "evaluate"][:20]:
        shown = _formula(item).split("= ")[-1]
        at = re.findall(r"f\((\d+)\)|= (\d)(?!\*)", item.question)[-1]
        assert sympy.sympify(shown).subs(_letter(shown), int(at[0] or at[1])) == int(item.reference), item


def test_integrals_are_right(items: tuple[Item, ...]) -> None:
    for item in [item for item in items if item.skill == "integral"][:15]:
        term = _formula(item)
        low, high = (int(number) for number in re.findall(r"\d+", item.question.replace(term, "")))
        assert sympy.integrate(sympy.sympify(term), (_letter(term), low, high)) == int(item.reference), item


def test_chances_are_shares_of_the_whole(items: tuple[Item, ...]) -> None:
    for item in items:
        if item.skill == "probability":
            share = Fraction(item.reference)
            first, second = (int(number) for number in re.findall(r"\d+", item.question))
            assert share in (Fraction(first, first + second), Fraction(second, first + second)), item


def test_ranks_are_right(items: tuple[Item, ...]) -> None:
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
