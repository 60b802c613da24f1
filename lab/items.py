"""What an item of the lab is, and which split it belongs to.

The split is a function of the text that a model is asked, so that no text can be in two splits.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, TypeVar

from flowinfer.errors import UsageError
from flowinfer.results import Question

Kind = Literal["gsm8k", "ceval", "mathematics"]
Split = Literal["train", "dev", "test"]

KINDS: tuple[Kind, ...] = ("gsm8k", "ceval", "mathematics")
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
T = TypeVar("T", bound=str)
_MAKERS: Mapping[Kind, str] = {"gsm8k": "lab.words", "ceval": "lab.exam", "mathematics": "lab.algebra"}
_SHARES = 12
"""One text in so many is a test item, another one a dev item."""


@dataclass(frozen=True)
class Solution:
    """One way to answer an item: the right one, or what follows from a wrong belief."""

    belief: str
    """What it rests on, the same words for all items of the skill: "right", "adds for multiplying", or an option."""
    thought: str
    """The bare calculation or fact, as a model thinks it: "58/2=29 29+18=47"."""
    steps: str
    """The worked answer without its last line; may be empty."""
    final: str
    """The last line: "#### 47", "答案：B", "Answer: 24*x + 6"."""

    @property
    def text(self) -> str:
        """Return the whole answer."""
        return f"{self.steps}\n{self.final}" if self.steps else self.final


@dataclass(frozen=True)
class Item:
    """A question whose right answer is known because code made it."""

    kind: Kind
    skill: str
    """What one must know to answer it, for example "change", "derivative" or "原子序数/镧"."""
    subject: str
    """Its heading in tables: a subject of C-Eval's, else the skill's name."""
    question: str
    """Without the choices."""
    reference: str
    """The right answer as a data set would give it: "47", "B", "24*x + 6"."""
    right: Solution
    wrong: tuple[Solution, Solution, Solution]
    choices: Mapping[str, str] = field(default_factory=dict)
    """Letter -> text; only for ceval."""

    @property
    def shown(self) -> str:
        """Return what decides the split: the question with its choices."""
        return "\n".join([self.question, *(f"{letter}. {text}" for letter, text in self.choices.items())])

    def as_question(self, identifier: str) -> Question:
        """Return it as a question of a data set."""
        return Question(
            id=identifier,
            question=self.question,
            reference=self.reference,
            kind=self.kind,
            choices=self.choices,
            subject=self.subject,
        )


def make(kind: Kind, rng: random.Random) -> Item:
    """Make one item of a kind, of any split."""
    item: Item = import_module(_MAKERS[kind]).make(rng)
    return item


def kind_of(name: str) -> Kind:
    """Return a kind by its name.

    Raises:
        UsageError: there is no such kind.
    """
    return _named(name, KINDS, "kind of items")


def split_named(name: str) -> Split:
    """Return a split by its name.

    Raises:
        UsageError: there is no such split.
    """
    return _named(name, SPLITS, "split")


def _named(name: str, known: Sequence[T], what: str) -> T:
    for one in known:
        if one == name:
            return one
    raise UsageError(f"unknown {what} '{name}'", help=f"known: {', '.join(known)}")


def skills(kind: Kind) -> tuple[str, ...]:
    """Return all skills that items of a kind may ask for."""
    named: tuple[str, ...] = import_module(_MAKERS[kind]).SKILLS
    return named


def split_of(shown: str) -> Split:
    """Return the split of a text: one in twelve is test, one in twelve dev, the rest train."""
    share = int.from_bytes(hashlib.sha256(shown.encode()).digest()[:4], "big") % _SHARES
    return "test" if share == 0 else "dev" if share == 1 else "train"


def draw(kind: Kind, split: Split, num: int, seed: int) -> list[Item]:
    """Make so many different items of a split, the same for the same seed.

    Raises:
        UsageError: the kind has not so many different items.
    """
    rng = random.Random(f"{kind}/{split}/{seed}")
    found: dict[str, Item] = {}
    for _ in range(1000 + num * _SHARES * 20):
        if len(found) == num:
            return list(found.values())
        item = make(kind, rng)
        if split_of(item.shown) == split:
            found.setdefault(item.shown, item)
    raise UsageError(f"{kind} has not {num} different {split} items", help="ask for fewer")
