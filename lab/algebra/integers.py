"""Calculations with whole numbers: divisors, sums, products, rests, powers, roots and binary numbers."""

from __future__ import annotations

import random
from math import gcd

from lab.algebra.drafts import LIMIT, Draft, Sheet, Skill, Way, signed


def _euclid(sheet: Sheet, left: int, right: int) -> int:
    """Write Euclid's lines for the greatest common divisor, the larger number first."""
    left, right = max(left, right), min(left, right)
    while right:
        left, right = right, sheet.rest(left, right)
    return left


def _draw_gcd(rng: random.Random) -> Draft | None:
    common = rng.randrange(2, 16)
    a, b = common * rng.randrange(1, 13), common * rng.randrange(1, 13)
    high, low = max(a, b), min(a, b)
    if high == low or low % 2 or high > 120:
        return None
    right, gap, total, half = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(_euclid(right, a, b)),
        gap.way(gap.subtract(high, low)),
        total.way(total.add(high, low)),
        half.way(half.divide(low, 2)),
    )
    return Draft({"a": a, "b": b}, ways) if len(right.steps) < 5 else None


def _draw_lcm(rng: random.Random) -> Draft | None:
    a, b = rng.randrange(4, 51), rng.randrange(4, 51)
    common = gcd(a, b)
    if a == b or common == 1 or a * b >= LIMIT:
        return None
    right, times, divisor, total = Sheet(), Sheet(), Sheet(), Sheet()
    right.steps.append(f"gcd {common}")
    ways = (
        right.way(right.multiply(right.divide(a, common), b)),
        times.way(times.multiply(a, b)),
        divisor.way(_euclid(divisor, a, b)),
        total.way(total.add(a, b)),
    )
    return Draft({"a": a, "b": b}, ways)


def _draw_sum(rng: random.Random) -> Draft:
    a, b, c = rng.randrange(-30, 100), rng.randrange(2, 80), rng.randrange(2, 80)
    c = c if rng.random() < 0.5 else -c
    right, last, signs, turned = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.add(right.subtract(a, b), c)),
        last.way(last.subtract(a, last.add(b, c))),
        signs.way(signs.subtract(signs.add(a, b), c)),
        turned.way(turned.add(turned.subtract(b, a), c)),
    )
    return Draft({"f": f"{a} - {b}{signed(c)}"}, ways)


def _draw_product(rng: random.Random) -> Draft:
    a, tens, ones = rng.randrange(3, 10), rng.randrange(1, 6), rng.randrange(1, 10)
    b = 10 * tens + ones
    right, plus, flat, once = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.add(right.multiply(a, 10 * tens), right.multiply(a, ones))),
        plus.way(plus.add(a, b)),
        flat.way(flat.add(flat.multiply(a, tens), flat.multiply(a, ones))),
        once.way(once.add(once.multiply(a, ones), 10 * tens)),
    )
    pair = (a, b) if rng.random() < 0.5 else (b, a)
    return Draft({"a": pair[0], "b": pair[1]}, ways)


def _draw_remainder(rng: random.Random) -> Draft | None:
    b, times = rng.randrange(4, 21), rng.randrange(2, 13)
    left_over = rng.randrange(1, b)
    a = b * times + left_over
    if b == 10:
        return None
    right, once, digit, over = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.subtract(a, right.multiply(b, times))),
        once.way(once.subtract(a, b)),
        digit.way(digit.rest(a, 10)),
        over.way(over.subtract(over.multiply(b, times + 1), a)),
    )
    return Draft({"a": a, "b": b}, ways)


def _draw_power(rng: random.Random) -> Draft | None:
    base, m, n = rng.choice((2, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9)), rng.randrange(1, 6), rng.randrange(1, 6)
    if m + n < 3 or base ** (m + n) > 400 or base ** (m * n) >= LIMIT - 80:
        return None
    more = rng.randrange(2, 80) * rng.choice((1, -1))
    right, product, apart, flat = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.add(right.power(base, right.add(m, n)), more)),
        product.way(product.add(product.power(base, product.multiply(m, n)), more)),
        apart.way(apart.add(apart.add(apart.power(base, m), apart.power(base, n)), more)),
        flat.way(flat.add(flat.multiply(flat.multiply(base, m), flat.multiply(base, n)), more)),
    )
    return Draft({"f": f"{base}**{m}*{base}**{n}{signed(more)}"}, ways)


def _draw_binary(rng: random.Random) -> Draft | None:
    value, more = rng.randrange(9, 128), rng.randrange(2, 31)
    digits = f"{value:b}"
    places = [len(digits) - index for index, digit in enumerate(digits) if digit == "1"]
    if len(places) < 2 or len(places) > 5:
        return None
    summands = (
        [2 ** (place - 1) for place in places],
        [1] * len(places),
        [2 ** (len(digits) - place) for place in places],
        places,
    )
    right, ones, turned, plain = (_summed([*numbers, more]) for numbers in summands)
    return Draft({"a": digits, "b": more}, (right, ones, turned, plain))


def _summed(numbers: list[int]) -> Way:
    sheet = Sheet()
    total = numbers[0]
    for number in numbers[1:]:
        total = sheet.add(total, number)
    return sheet.way(total)


def _draw_root(rng: random.Random) -> Draft:
    root, more = rng.randrange(2, 22), rng.randrange(2, 61) * rng.choice((1, -1))
    square = root * root
    right, skipped, doubled, above = Sheet(), Sheet(), Sheet(), Sheet()
    right.multiply(root, root)
    above.multiply(root + 1, root + 1)
    ways = (
        right.way(right.add(root, more)),
        skipped.way(skipped.add(square, more)),
        doubled.way(doubled.add(doubled.multiply(square, 2), more)),
        above.way(above.add(root + 1, more)),
    )
    return Draft({"f": f"sqrt({square}){signed(more)}"}, ways)


TABLE: tuple[Skill, ...] = (
    Skill(
        "gcd",
        _draw_gcd,
        ("takes the difference", "adds the numbers", "halves the smaller number"),
        (
            "Calculate the greatest common divisor of {a} and {b}.",
            "What is the highest common factor of {a} and {b}?",
            "Find the greatest common factor of {a} and {b}.",
        ),
        ("求 {a} 和 {b} 的最大公约数。", "{a} 与 {b} 的最大公因数是多少？", "计算 {a}、{b} 的最大公约数。"),
    ),
    Skill(
        "lcm",
        _draw_lcm,
        ("multiplies the numbers", "takes the greatest common divisor", "adds the numbers"),
        (
            "Calculate the least common multiple of {a} and {b}.",
            "What is the smallest common multiple of {a} and {b}?",
            "Find the lowest common multiple of {a} and {b}.",
        ),
        ("求 {a} 和 {b} 的最小公倍数。", "{a} 与 {b} 的最小公倍数是多少？", "计算 {a}、{b} 的最小公倍数。"),
    ),
    Skill(
        "add-subtract",
        _draw_sum,
        ("begins with the last two", "swaps plus and minus", "takes away the wrong way round"),
        ("Calculate {f}.", "What is {f}?", "Evaluate {f}."),
        ("计算 {f}。", "{f} 等于多少？", "求 {f} 的值。"),
    ),
    Skill(
        "product",
        _draw_product,
        ("adds instead of multiplying", "takes tens for ones", "multiplies the ones only"),
        ("Calculate {a}*{b}.", "What is the product of {a} and {b}?", "Multiply {a} and {b}."),
        ("计算 {a}*{b}。", "{a} 和 {b} 的积是多少？", "{a} 乘以 {b} 等于多少？"),
    ),
    Skill(
        "remainder",
        _draw_remainder,
        ("takes the divisor away once", "keeps the last digit", "goes one multiple too far"),
        (
            "What is the remainder when {a} is divided by {b}?",
            "Calculate the remainder of {a} divided by {b}.",
            "Divide {a} by {b}. What remains?",
        ),
        ("求 {a} 除以 {b} 的余数。", "{a} 除以 {b} 余多少？", "计算 {a} 被 {b} 除的余数。"),
    ),
    Skill(
        "powers",
        _draw_power,
        ("multiplies the exponents", "adds the powers", "multiplies base and exponent"),
        ("Calculate {f}.", "What is {f}?", "Evaluate {f}."),
        ("计算 {f}。", "{f} 等于多少？", "求 {f} 的值。"),
    ),
    Skill(
        "binary",
        _draw_binary,
        ("counts the ones", "reads from the wrong end", "adds the place numbers"),
        (
            "Convert {a} from base 2 to base 10 and add {b}.",
            "What is {a} (base 2) plus {b} in base 10?",
            "Add {b} to the binary number {a}. Answer in base 10.",
        ),
        (
            "把二进制数 {a} 化成十进制再加 {b}。",
            "二进制的 {a} 加上 {b} 在十进制中是多少？",
            "求二进制数 {a} 与 {b} 的和（十进制）。",
        ),
    ),
    Skill(
        "square-root",
        _draw_root,
        ("forgets the root", "doubles instead of taking the root", "takes the next root"),
        ("Calculate {f}.", "What is {f}?", "Evaluate {f}."),
        ("计算 {f}。", "{f} 等于多少？", "求 {f} 的值。"),
    ),
)
