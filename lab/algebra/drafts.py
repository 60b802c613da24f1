"""What a kind of calculation is, and how its steps and terms are written."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

LIMIT = 1000
"""All results stay below it."""
LETTERS = ("x", "y", "z", "t", "u", "w")


class Way(NamedTuple):
    """One way to calculate."""

    steps: Sequence[str]
    """Operations "9*3=27", also "18 mod 12=6", and notes "gcd 6" or "9>7>4"."""
    answer: str


class Draft(NamedTuple):
    """The numbers of one question and the ways to answer it."""

    fields: Mapping[str, str | int]
    """What the phrasings speak of."""
    ways: tuple[Way, Way, Way, Way]
    """The right one first."""


@dataclass(frozen=True)
class Skill:
    """A kind of calculation."""

    name: str
    draw: Callable[[random.Random], Draft | None]
    """Draws a question; None where its numbers do not fit."""
    beliefs: tuple[str, str, str]
    """What its wrong ways rest on, in their order."""
    english: tuple[str, ...]
    chinese: tuple[str, ...]


class Sheet:
    """Steps being written down: each operation returns its result."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def add(self, left: int, right: int) -> int:
        """Write a sum; a negative right side as a difference."""
        return self._write(left, "+" if right >= 0 else "-", abs(right), left + right)

    def subtract(self, left: int, right: int) -> int:
        """Write a difference; a negative right side as a sum."""
        return self._write(left, "-" if right >= 0 else "+", abs(right), left - right)

    def multiply(self, left: int, right: int) -> int:
        """Write a product."""
        return self._write(left, "*", right, left * right)

    def divide(self, left: int, right: int) -> int:
        """Write a division that leaves no rest."""
        return self._write(left, "/", right, left // right)

    def power(self, base: int, exponent: int) -> int:
        """Write a power."""
        return self._write(base, "**", exponent, int(base**exponent))

    def rest(self, left: int, right: int) -> int:
        """Write the rest of a division."""
        return self._write(left, " mod ", right, left % right)

    def way(self, answer: str | int) -> Way:
        """Close the sheet with an answer."""
        return Way(self.steps, str(answer))

    def _write(self, left: int, sign: str, right: int, result: int) -> int:
        self.steps.append(f"{left}{sign}{right}={result}")
        return result


def polynomial(coefficients: Mapping[int, int], letter: str) -> str:
    """Write a polynomial as the data set does, highest power first.

    Example: {2: 3, 0: -4} -> "3*x**2 - 4".
    """
    text = ""
    for exponent in sorted(coefficients, reverse=True):
        coefficient = coefficients[exponent]
        if not coefficient:
            continue
        size = abs(coefficient)
        power = "" if not exponent else letter if exponent == 1 else f"{letter}**{exponent}"
        term = str(size) if not power else power if size == 1 else f"{size}*{power}"
        if text:
            text += f" - {term}" if coefficient < 0 else f" + {term}"
        else:
            text = f"-{term}" if coefficient < 0 else term
    return text or "0"


def signed(value: int) -> str:
    """Write a number that follows others: 5 -> " + 5", -5 -> " - 5"."""
    return f" - {-value}" if value < 0 else f" + {value}"


def fraction(top: int, bottom: int) -> str:
    """Write a fraction in its lowest terms, a whole one without its denominator."""
    common = gcd(top, bottom)
    return str(top // common) if bottom == common else f"{top // common}/{bottom // common}"
