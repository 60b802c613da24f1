"""Calculations with several numbers: determinants, chances, sequences, ranks and means."""

from __future__ import annotations

import random
from collections.abc import Iterable
from math import gcd

from lab.algebra.drafts import Draft, Sheet, Skill, Way, fraction

_COLOURS = (("red", "红"), ("blue", "蓝"), ("green", "绿"), ("white", "白"), ("black", "黑"), ("yellow", "黄"))
_RANKS = (("biggest", "大"), ("smallest", "小"))
_PLACES = ("second ", "third ")
_HAN_PLACES = ("二", "三")


def _draw_determinant(rng: random.Random) -> Draft:
    a, b, c, d = (rng.randrange(1, 13) for _ in range(4))
    right, rows, columns, sums = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.subtract(right.multiply(a, d), right.multiply(b, c))),
        rows.way(rows.subtract(rows.multiply(a, b), rows.multiply(c, d))),
        columns.way(columns.subtract(columns.multiply(a, c), columns.multiply(b, d))),
        sums.way(sums.subtract(sums.add(a, d), sums.add(b, c))),
    )
    return Draft({"m": f"[[{a}, {b}], [{c}, {d}]]"}, ways)


def _draw_chance(rng: random.Random) -> Draft:
    wanted, other = rng.randrange(1, 21), rng.randrange(1, 21)
    colour, second = rng.sample(_COLOURS, 2)
    right, odds, turned, product = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        _reduced(right, wanted, right.add(wanted, other)),
        _reduced(odds, wanted, other),
        _reduced(turned, other, turned.add(other, wanted)),
        _reduced(product, wanted, product.multiply(wanted, other)),
    )
    words = {"colour": colour[0], "second": second[0], "han": colour[1], "others": second[1]}
    return Draft({"a": wanted, "b": other, **words}, ways)


def _reduced(sheet: Sheet, top: int, bottom: int) -> Way:
    """Write a fraction's reduction."""
    common = gcd(top, bottom)
    sheet.steps.append(f"{top}/{bottom}")
    if common > 1:
        sheet.divide(top, common)
        sheet.divide(bottom, common)
    return sheet.way(fraction(top, bottom))


def _draw_sequence(rng: random.Random) -> Draft:
    first, gap = rng.randrange(-20, 100), rng.randrange(2, 16) * rng.choice((1, -1))
    terms = [first + gap * index for index in range(4)]
    last = terms[3]
    right, total, wide, one = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.add(last, right.subtract(last, terms[2]))),
        total.way(total.add(last, first)),
        wide.way(wide.add(last, wide.subtract(last, terms[1]))),
        one.way(one.add(last, 1)),
    )
    return Draft({"f": ", ".join(map(str, terms))}, ways)


def _draw_rank(rng: random.Random) -> Draft:
    values = rng.sample(range(-30, 70), 5)
    rising = sorted(values)
    # The least and the greatest stand inside, so that the four ways begin with four numbers.
    inner, outer = [rising[0], rising[4]], rising[1:4]
    rng.shuffle(outer)
    inner.insert(rng.randrange(3), outer.pop())
    if rng.random() < 0.5:
        inner.reverse()
    shown = [outer[0], *inner, outer[1]]
    place, falls = rng.randrange(2), rng.randrange(2)
    up, down = (_counted(rising, "<", place), _counted(reversed(rising), ">", place))
    ways = (
        *((up, down) if falls else (down, up)),
        _counted(shown, ";", place),
        _counted(reversed(shown), ";", place),
    )
    words = {"place": _PLACES[place], "rank": _RANKS[falls][0], "han": f"{_HAN_PLACES[place]}{_RANKS[falls][1]}"}
    return Draft({"f": ", ".join(map(str, shown)), **words}, ways)


def _counted(values: Iterable[int], mark: str, place: int) -> Way:
    """Count values off up to the place wanted: 9>7>4."""
    counted = [str(value) for value in values][: place + 2]
    return Way([mark.join(counted)], counted[-1])


def _draw_mean(rng: random.Random) -> Draft | None:
    num = rng.randrange(3, 5)
    values = [rng.randrange(2, 60) for _ in range(num - 1)]
    last = rng.randrange(5, 50) * num - sum(values)
    if not 0 < last < 100 or (values[0] + last) % 2:
        return None
    values.append(last)
    right, ends, spread, back = Sheet(), Sheet(), Sheet(), Sheet()
    ways = (
        right.way(right.divide(_summed(right, values), num)),
        ends.way(ends.divide(ends.add(last, values[0]), 2)),
        spread.way(spread.subtract(max(values), min(values))),
        back.way(_summed(back, [last, *values[1:-1], values[0]])),
    )
    return Draft({"f": ", ".join(map(str, values))}, ways)


def _summed(sheet: Sheet, values: list[int]) -> int:
    total = values[0]
    for value in values[1:]:
        total = sheet.add(total, value)
    return total


TABLE: tuple[Skill, ...] = (
    Skill(
        "determinant",
        _draw_determinant,
        ("multiplies the rows", "multiplies the columns", "adds the diagonals"),
        ("Find the determinant of {m}.", "What is the determinant of the matrix {m}?", "Calculate det({m})."),
        ("求矩阵 {m} 的行列式。", "矩阵 {m} 的行列式等于多少？", "计算行列式 det({m})。"),
    ),
    Skill(
        "probability",
        _draw_chance,
        ("compares with the others only", "takes the other colour", "multiplies the colours"),
        (
            "A bag holds {a} {colour} and {b} {second} balls. What is the probability of drawing {colour}?",
            "There are {b} {second} and {a} {colour} balls in a box. How likely is a {colour} one?",
            "What is the probability of picking a {colour} one from {a} {colour} and {b} {second} balls?",
        ),
        (
            "袋中有 {a} 个{han}球和 {b} 个{others}球，任取一个是{han}球的概率是多少？",
            "盒里有 {b} 个{others}球、{a} 个{han}球，摸到{han}球的概率是多少？",
            "从 {a} 个{han}球和 {b} 个{others}球中取一个，求取到{han}球的概率。",
        ),
    ),
    Skill(
        "sequence",
        _draw_sequence,
        ("adds the first term", "takes the gap of two terms", "counts on by one"),
        ("What is the next term in {f}?", "Find the term that follows {f}.", "Continue {f}. What comes next?"),
        ("求数列 {f} 的下一项。", "数列 {f} 后面一项是多少？", "按规律接着写：{f}，下一个数是几？"),
    ),
    Skill(
        "kth-biggest",
        _draw_rank,
        ("counts from the wrong side", "counts along the list", "counts from the end of the list"),
        (
            "What is the {place}{rank} value in {f}?",
            "Which is the {place}{rank} number: {f}?",
            "Pick the {place}{rank} of {f}.",
        ),
        ("求 {f} 中第{han}的数。", "{f} 里第{han}的数是哪个？", "在 {f} 中，第{han}的是多少？"),
    ),
    Skill(
        "mean",
        _draw_mean,
        ("takes the middle of the ends", "takes the spread", "forgets to divide"),
        ("What is the mean of {f}?", "Calculate the average of {f}.", "Find the arithmetic mean of {f}."),
        ("求 {f} 的平均数。", "{f} 的平均值是多少？", "计算 {f} 的算术平均数。"),
    ),
)
