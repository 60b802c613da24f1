"""Calculations with a letter: derivatives, integrals, values, equations, like terms and brackets."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from lab.algebra.drafts import LETTERS, LIMIT, Draft, Sheet, Skill, Way, polynomial, signed

_REACHES = ((1, 11), (1, 11), (1, 11), (2, 7), (2, 7), (3, 5))
"""Exponents of an integral, each with what its limits stay below; more often the one that leaves most choice."""


def _draw_terms(rng: random.Random, exponents: tuple[int, ...], most: int) -> dict[int, int]:
    """Draw a coefficient for each exponent; all but the first may be negative."""
    first, *rest = exponents
    return {first: rng.randrange(2, most), **{exponent: _nonzero(rng, most) for exponent in rest}}


def _nonzero(rng: random.Random, most: int) -> int:
    value = rng.randrange(1, most)
    return -value if rng.random() < 0.3 else value


def _derived(
    terms: Mapping[int, int], letter: str, down: int, factor: Callable[[int], int], *, is_sum: bool = False
) -> Way:
    """Take each term's exponent down, its coefficient times (or plus) a factor of the exponent."""
    sheet = Sheet()
    found = {}
    for exponent, coefficient in terms.items():
        if exponent >= down:
            write = sheet.add if is_sum else sheet.multiply
            found[exponent - down] = write(coefficient, factor(exponent))
    return sheet.way(polynomial(found, letter))


def _draw_derivative(rng: random.Random) -> Draft:
    letter = rng.choice(LETTERS)
    terms = _draw_terms(rng, rng.choice(((2, 1, 0), (3, 1), (3, 2), (2, 1), (3, 0), (3, 1, 0), (4, 1))), 13)
    lowered = Sheet()
    kept = {lowered.subtract(exponent, 1): value for exponent, value in terms.items() if exponent}
    ways = (
        _derived(terms, letter, 1, lambda exponent: exponent),
        _derived(terms, letter, 1, lambda exponent: exponent + 1),
        _derived(terms, letter, 1, lambda exponent: exponent, is_sum=True),
        lowered.way(polynomial(kept, letter)),
    )
    return Draft({"f": polynomial(terms, letter), "v": letter}, ways)


def _draw_second(rng: random.Random) -> Draft:
    letter = rng.choice(LETTERS)
    terms = _draw_terms(rng, rng.choice(((3, 2), (3, 2, 1), (3, 2, 0), (4, 2), (3, 1), (4, 1, 0))), 13)
    ways = (
        _derived(terms, letter, 2, lambda exponent: exponent * (exponent - 1)),
        _derived(terms, letter, 1, lambda exponent: exponent),
        _derived(terms, letter, 2, lambda exponent: exponent * exponent),
        _derived(terms, letter, 2, lambda exponent: exponent * (exponent - 1), is_sum=True),
    )
    return Draft({"f": polynomial(terms, letter), "v": letter}, ways)


def _draw_value(rng: random.Random) -> Draft:
    letter = rng.choice(LETTERS)
    a, b, c, at = rng.randrange(2, 8), rng.randrange(2, 13), _nonzero(rng, 20), rng.randrange(3, 7)
    right, linear, added, doubled = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.add(right.multiply(right.add(right.multiply(a, at), b), at), c)),
        linear.way(linear.add(linear.multiply(linear.add(a, b), at), c)),
        added.way(added.add(added.add(added.add(a, at), b), c)),
        doubled.way(doubled.add(doubled.add(doubled.multiply(a, doubled.multiply(at, 2)), doubled.multiply(b, at)), c)),
    )
    return Draft({"f": polynomial({2: a, 1: b, 0: c}, letter), "v": letter, "n": at}, ways)


def _draw_equation(rng: random.Random) -> Draft | None:
    letter = rng.choice(LETTERS)
    a, b, root = rng.randrange(2, 13), _nonzero(rng, 31), rng.randrange(-6, 17)
    c = a * root + b
    if not 0 < c * a < LIMIT - 30 or a == abs(b):
        return None
    right, signs, less, times = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.divide(right.subtract(c, b), a)),
        signs.way(signs.subtract(signs.add(c, b), a)),
        less.way(less.subtract(less.subtract(c, a), b)),
        times.way(times.subtract(times.multiply(c, a), b)),
    )
    return Draft({"f": polynomial({1: a, 0: b}, letter), "v": letter, "c": c}, ways)


def _draw_integral(rng: random.Random) -> Draft | None:
    letter = rng.choice(LETTERS)
    exponent, bound = rng.choice(_REACHES)
    low, high = sorted(rng.sample(range(bound), 2))
    above = exponent + 1
    most = min(15, (LIMIT - 1) // (above * (high**above - low**above)))
    if not most:
        return None
    factor = rng.randint(1, most)
    whole = factor * above
    right = Sheet()
    scale = right.divide(whole, above)
    right_way = right.way(right.multiply(_limits(right, low, high, above), scale))
    kept, put, width = Sheet(), Sheet(), Sheet()
    ways = (
        right_way,
        kept.way(kept.multiply(_limits(kept, low, high, above), whole)),
        put.way(put.multiply(_limits(put, low, high, exponent), whole)),
        width.way(width.multiply(width.subtract(high, low), whole)),
    )
    return Draft({"f": polynomial({exponent: whole}, letter), "v": letter, "a": low, "b": high}, ways)


def _limits(sheet: Sheet, low: int, high: int, exponent: int) -> int:
    """Put both limits into a power."""
    return sheet.subtract(sheet.power(high, exponent), sheet.power(low, exponent))


def _draw_collect(rng: random.Random) -> Draft | None:
    letter = rng.choice(LETTERS)
    a, b, c, d = rng.randrange(2, 16), _nonzero(rng, 20), _nonzero(rng, 16), _nonzero(rng, 20)
    if 0 in (a + c, b + d, a - c, b - d):
        return None
    right, mixed, times, other = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(polynomial({1: right.add(a, c), 0: right.add(b, d)}, letter)),
        mixed.way(polynomial({1: mixed.add(mixed.add(mixed.add(a, b), c), d)}, letter)),
        times.way(polynomial({1: times.multiply(a, c), 0: times.add(b, d)}, letter)),
        other.way(polynomial({1: other.subtract(a, c), 0: other.subtract(b, d)}, letter)),
    )
    third = f"{polynomial({1: abs(c)}, letter)}"
    return Draft(
        {"f": f"{polynomial({1: a, 0: b}, letter)} {'-' if c < 0 else '+'} {third}{signed(d)}", "v": letter}, ways
    )


def _draw_expand(rng: random.Random) -> Draft | None:
    letter = rng.choice(LETTERS)
    a, b = _nonzero(rng, 13), _nonzero(rng, 13)
    if 0 in (a + b, a - b):
        return None
    right, swapped, square, gap = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(polynomial({2: 1, 1: right.add(a, b), 0: right.multiply(a, b)}, letter)),
        swapped.way(polynomial({2: 1, 1: swapped.multiply(a, b), 0: swapped.add(a, b)}, letter)),
        square.way(polynomial({2: 1, 1: square.multiply(2, a), 0: square.multiply(a, a)}, letter)),
        gap.way(polynomial({2: 1, 1: gap.subtract(a, b), 0: gap.multiply(a, b)}, letter)),
    )
    return Draft({"f": f"({letter}{signed(a)})*({letter}{signed(b)})", "v": letter}, ways)


TABLE: tuple[Skill, ...] = (
    Skill(
        "derivative",
        _draw_derivative,
        ("multiplies by exponent plus one", "adds the exponent", "lowers the exponent only"),
        (
            "Find the derivative of {f}.",
            "Differentiate {f} with respect to {v}.",
            "What is the first derivative of {f}?",
        ),
        ("求 {f} 对 {v} 的导数。", "求函数 {f} 的导函数。", "对 {v} 求导：{f}"),
    ),
    Skill(
        "second-derivative",
        _draw_second,
        ("derives once only", "squares the exponent", "adds instead of multiplying"),
        (
            "What is the second derivative of {f}?",
            "Find the second derivative of {f} with respect to {v}.",
            "Differentiate {f} twice.",
        ),
        ("求 {f} 的二阶导数。", "求函数 {f} 对 {v} 的二阶导数。", "对 {f} 求导两次。"),
    ),
    Skill(
        "evaluate",
        _draw_value,
        ("forgets the square", "adds instead of multiplying", "doubles instead of squaring"),
        ("Let f({v}) = {f}. What is f({n})?", "Calculate {f} for {v} = {n}.", "Suppose f({v}) = {f}. Give f({n})."),
        ("设 f({v}) = {f}，求 f({n})。", "当 {v} = {n} 时，求 {f} 的值。", "已知 f({v}) = {f}，f({n}) 等于多少？"),
    ),
    Skill(
        "linear-equation",
        _draw_equation,
        ("keeps the constant's sign", "takes the factor away", "multiplies by the factor"),
        ("Solve {f} = {c} for {v}.", "Let {f} = {c}. What is {v}?", "Find {v} so that {c} = {f}."),
        ("解方程 {f} = {c}。", "已知 {f} = {c}，求 {v}。", "若 {c} = {f}，{v} 是多少？"),
    ),
    Skill(
        "integral",
        _draw_integral,
        ("forgets to divide", "puts the limits in at once", "takes the width times the factor"),
        (
            "Calculate the definite integral of {f} from {a} to {b}.",
            "Integrate {f} with respect to {v} from {a} to {b}.",
            "What is the integral of {f} for {v} from {a} to {b}?",
        ),
        (
            "求 {f} 从 {a} 到 {b} 的定积分。",
            "计算 {f} 在区间 {a} 到 {b} 上对 {v} 的积分。",
            "对 {v} 从 {a} 到 {b} 积分 {f}。",
        ),
    ),
    Skill(
        "collect",
        _draw_collect,
        ("adds everything", "multiplies the first terms", "takes away instead of adding"),
        ("Simplify {f}.", "Collect the terms in {f}.", "Write {f} with as few terms as possible."),
        ("化简 {f}。", "合并同类项：{f}", "把 {f} 写成最简形式。"),
    ),
    Skill(
        "expand",
        _draw_expand,
        ("swaps sum and product", "squares the first bracket", "takes the difference"),
        ("Expand {f}.", "Multiply out {f}.", "Write {f} without brackets."),
        ("展开 {f}。", "把 {f} 去括号。", "将 {f} 展开成多项式。"),
    ),
)
