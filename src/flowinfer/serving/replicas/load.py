"""What each replica of a server has to do, and which one gets the next question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from flowinfer.runs.replicas.site import Started
from flowinfer.serving.flows import Asking
from flowinfer.serving.replicas import wire
from flowinfer.serving.responder import ReplicaState
from flowinfer.serving.service import MOST_UNDER_WAY
from flowinfer.serving.tickets import Ticket

_MUCH_BUSIER = 4
"""Rows that a replica may have more than another and still get the questions whose beginning it has read."""


@dataclass(eq=False)
class Question:
    """A question that has not ended."""

    number: int
    asking: Asking
    ticket: Ticket
    beginnings: Sequence[int]
    num_rows: int
    """Its steps that have not ended."""
    replica: Replica | None = None
    """That it was put to."""


@dataclass(eq=False)
class Replica(Started):
    """A replica, as far as its server knows it."""

    standing: wire.Standing | None = None
    is_given_up: bool = False
    asked: dict[int, Question] = field(default_factory=dict)
    """By number."""
    num_of: Counter[str] = field(default_factory=Counter)
    """How many of them are each flow's."""
    num_rows: int = 0

    @property
    def is_ready(self) -> bool:
        """Return whether it answers."""
        return self.standing is not None and self.standing.told["status"] == "ready"

    @property
    def state(self) -> ReplicaState:
        """Return what is told of it."""
        status: Literal["loading", "ready", "given up"] = "ready" if self.is_ready else "loading"
        return ReplicaState(
            self.index + 1,
            "given up" if self.is_given_up else status,
            len(self.asked),
            self.num_rows,
            self.num_answered,
            self.num_losses,
        )

    def look(self) -> None:
        """See `Started.look`; one that is given up has ended."""
        if not self.is_given_up:
            super().look()

    def take(self, question: Question) -> None:
        """Have a question more."""
        question.replica = self
        self.asked[question.number] = question
        self.num_of[question.asking.flow.name] += 1
        self.num_rows += question.num_rows

    def drop(self, question: Question) -> None:
        """Have one less."""
        del self.asked[question.number]
        self.num_of[question.asking.flow.name] -= 1
        self.num_rows -= question.num_rows


def choose(replicas: Sequence[Replica], flow: str, reader: int | None) -> Replica | None:
    """Return the replica with fewest rows, or the one that has read a question's beginning and is hardly busier.

    Args:
        replicas: all of them.
        flow: that the question is put to.
        reader: index of the one that has read its beginning.
    Returns:
        None where none has room.
    """
    open_ = [one for one in replicas if one.is_ready and one.num_of[flow] < MOST_UNDER_WAY]
    if not open_:
        return None
    least = min(open_, key=lambda one: one.num_rows)
    known = [one for one in open_ if one.index == reader and one.num_rows <= least.num_rows + _MUCH_BUSIER]
    return known[0] if known else least
