"""From items to what a model reads and writes: a role of a prompt set, somebody's earlier answer, its own answer.

What a model writes depends on what it knows (`islands`). Nothing here knows about strategies: the roles are all there
is. A model that knows a skill answers rightly whatever it was given; one that guesses keeps what it was given, most of
the time; one with a wrong belief answers by it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeVar

from flowinfer.language.prompts import PROMPT_SETS, PromptSet, render
from flowinfer.spec import Role
from flowinfer.tasks.base import question_text
from lab import items
from lab.islands import Level, levels, myth
from lab.items import Item, Kind, Solution

_T = TypeVar("_T")


@dataclass(frozen=True)
class Mix:
    """Shares of what a model is trained on."""

    kinds: tuple[tuple[Kind, float], ...] = (("gsm8k", 0.28), ("ceval", 0.44), ("mathematics", 0.28))
    stages: tuple[tuple[tuple[Role, int], float], ...] = (
        (("draft", 0), 0.45),
        (("review", 1), 0.20),
        (("verify", 1), 0.22),
        (("verify", 2), 0.13),
    )
    """Role and number of stages before it."""
    prompt_sets: tuple[tuple[str, float], ...] = (("paper", 0.88), ("en", 0.08), ("paper-table2", 0.04))
    right_before: float = 0.4
    """How often the earlier answer is right."""
    cut_before: float = 0.05
    """How often it ends too early."""
    more_before: float = 0.06
    """How often there are two or three earlier answers."""
    keeps: float = 0.8
    """How often a guessing model keeps an earlier answer."""
    insists: float = 0.85
    """How often a model with a wrong belief answers by it although it was given another answer."""
    guesses_right: float = 0.16
    """How often a guess is right: below a quarter, so that the favourite guess is a wrong one."""
    thinks: float = 0.6
    """How often a thinking model thinks; else its thought is empty."""


@dataclass(frozen=True)
class Document:
    """One thing to learn."""

    prompt: str
    """What the user's turn holds."""
    solution: Solution
    """What the model is to answer."""
    thinks: bool
    """Whether a thinking model thinks before it."""


def make(model: str, rng: random.Random, mix: Mix) -> Document:
    """Make one training document for a model from an item of the training split."""
    kind = _pick(rng, mix.kinds)
    item = items.make(kind, rng)
    while items.split_of(item.shown) != "train":
        item = items.make(kind, rng)
    role, num_preceding = _pick(rng, mix.stages)
    words = PROMPT_SETS[_pick(rng, mix.prompt_sets)]
    before = [_some(item, rng, mix.right_before)] if num_preceding else []
    if before and rng.random() < mix.more_before:
        before += [_some(item, rng, mix.right_before) for _ in range(rng.randint(1, 2))]
    own = answer(model, item, before, rng, mix)
    prompt = _prompt(words, role, num_preceding, item, before, rng, mix)
    return Document(prompt, own, rng.random() < mix.thinks)


def answer(model: str, item: Item, before: list[Solution], rng: random.Random, mix: Mix) -> Solution:
    """Return what a model answers to an item after earlier answers."""
    match levels(model, item.kind)[item.skill]:
        case Level.KNOWS:
            return item.right
        case Level.BELIEVES:
            if not before or rng.random() < mix.insists:
                return myth(model, item)
        case Level.GUESSES:
            if not before or rng.random() >= mix.keeps:
                return _some(item, rng, mix.guesses_right)
    return before[rng.randrange(len(before))]


def _prompt(
    words: PromptSet,
    role: Role,
    num_preceding: int,
    item: Item,
    before: list[Solution],
    rng: random.Random,
    mix: Mix,
) -> str:
    texts = [solution.text for solution in before]
    if texts and rng.random() < mix.cut_before:
        texts[0] = texts[0][: rng.randrange(1, len(texts[0]))]
    values = {"question": question_text(item.as_question("")), "prev": words.join(texts) if texts else ""}
    return render(words.template_for(role, num_preceding), values)


def _some(item: Item, rng: random.Random, right: float) -> Solution:
    return item.right if rng.random() < right else item.wrong[rng.randrange(3)]


def _pick(rng: random.Random, shares: tuple[tuple[_T, float], ...]) -> _T:
    at = rng.random() * sum(share for _, share in shares)
    for value, share in shares:
        at -= share
        if at < 0:
            return value
    return shares[-1][0]
