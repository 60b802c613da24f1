"""Items drawn once for all tests of the lab's generators."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from lab import algebra, words
from lab.items import Item, Solution

MAKERS: dict[str, Callable[[random.Random], Item]] = {"gsm8k": words.make, "mathematics": algebra.make}
SKILLS = {"gsm8k": words.SKILLS, "mathematics": algebra.SKILLS}


@cache
def items(kind: str, num: int = 2000) -> tuple[Item, ...]:
    """Return items of a kind, the same ones each time."""
    rng = random.Random(20)
    return tuple(MAKERS[kind](rng) for _ in range(num))


def solutions(item: Item) -> tuple[Solution, ...]:
    """Return the right solution and the wrong ones."""
    return (item.right, *item.wrong)


def is_chinese(item: Item) -> bool:
    """Return whether a question is asked in Chinese."""
    return any("\u4e00" <= character <= "\u9fff" for character in item.question)
