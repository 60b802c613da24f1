"""In which order questions are asked: the longest expected first, by what answers to questions like them have taken.

How long an answer will be nobody knows. What is known is the data set and how long the question is; questions that are
alike in both are of one kind, whose expectation is learnt from its answers. What is asked before they come is a sample
of all lengths, so that something is learnt of each kind, and is dealt like cards, so that no replica gets the longest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, groupby
from operator import attrgetter
from typing import Generic, TypeVar

Q = TypeVar("Q")

_FIRST_TOKENS = 250.0
"""Of an answer, where none has come."""
_WEIGHT = 8
"""Answers that what the next kind takes counts as, beside a kind's own."""
_CHARACTERS = 100
"""Of a question, that take as long to read as a token to write."""


@dataclass(eq=False)
class Kind:
    """Questions that are expected to take as long as one another."""

    dataset: int
    characters: int
    """Of a question, the most of them."""
    num_open: int = 0
    """Not answered yet."""
    num_answers: int = 0
    tokens: int = 0
    """Of these answers."""
    cost: float = 0.0
    """What one is expected to take, in tokens to write."""

    def expect(self, mean: float) -> float:
        """Expect what its answers have taken, and where there are few, the mean; return the tokens of an answer."""
        tokens = (self.tokens + _WEIGHT * mean) / (self.num_answers + _WEIGHT)
        self.cost = self.characters / _CHARACTERS + tokens
        return tokens


class Kinds:
    """Makes a kind of the first question that is like no other."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, int], Kind] = {}

    def of(self, dataset: int, characters: int) -> Kind:
        """Return the kind of a question; lengths within a factor of the root of 2 are alike."""
        key = dataset, (characters * characters).bit_length()
        kind = self._kinds.setdefault(key, Kind(dataset, characters))
        kind.characters = max(kind.characters, characters)
        return kind


class Order(Generic[Q]):
    """Questions that are left to ask, and what all that are open are expected to take.

    Args:
        questions: the longest first.
        kind_of: returns a question's kind.
        hands: replicas that begin, and how many questions each is dealt.
    """

    def __init__(self, questions: Sequence[Q], kind_of: Callable[[Q], Kind], hands: tuple[int, int]) -> None:
        self._kind_of = kind_of
        num_hands, size = hands
        every = max(1, -(-len(questions) // (num_hands * size)))
        sample = questions[::every]
        self._first = deque(chain.from_iterable(sample[hand::num_hands] for hand in range(num_hands)))
        self._later: dict[Kind, deque[Q]] = {}
        self._kinds = sorted(dict.fromkeys(map(kind_of, questions)), key=attrgetter("dataset"))
        for index, one in enumerate(questions):
            kind_of(one).num_open += 1
            if index % every:
                self._later.setdefault(kind_of(one), deque()).append(one)
        self.open_cost = 0.0
        """What all that are not answered are expected to take."""
        self.learn()

    def __bool__(self) -> bool:
        return bool(self._first or self._later)

    @property
    def next_cost(self) -> float:
        """Return what the next one is expected to take."""
        return self._kind_of(self._first[0]).cost if self._first else next(iter(self._later)).cost

    def take(self) -> Q:
        """Return the next one, which is no longer left."""
        if self._first:
            return self._first.popleft()
        kind = next(iter(self._later))
        found = self._later[kind].popleft()
        if not self._later[kind]:
            del self._later[kind]
        return found

    def put_back(self, questions: Iterable[Q]) -> None:
        """Ask these next."""
        self._first.extendleft(reversed(tuple(questions)))

    def answered(self, one: Q, tokens: int) -> None:
        """Note how long an answer is."""
        kind = self._kind_of(one)
        kind.num_answers += 1
        kind.tokens += tokens

    def close(self, one: Q) -> None:
        """Note that a question is answered, or has failed."""
        kind = self._kind_of(one)
        kind.num_open -= 1
        self.open_cost -= kind.cost

    def learn(self) -> None:
        """Expect what answers have taken so far; from the kind with most of them on, each may learn from the next."""
        num_answers = sum(kind.num_answers for kind in self._kinds)
        mean = sum(kind.tokens for kind in self._kinds) / num_answers if num_answers else _FIRST_TOKENS
        for _, of_one in groupby(self._kinds, key=attrgetter("dataset")):
            kinds = sorted(of_one, key=attrgetter("characters"))
            known = max(range(len(kinds)), key=lambda index: kinds[index].num_answers)
            tokens = kinds[known].expect(mean)
            for side in (kinds[known + 1 :], kinds[:known][::-1]):
                reduce(lambda near, kind: kind.expect(near), side, tokens)
        self._later = dict(sorted(self._later.items(), key=lambda item: item[0].cost, reverse=True))
        self.open_cost = sum(kind.num_open * kind.cost for kind in self._kinds)
