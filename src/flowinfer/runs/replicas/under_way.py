"""Questions of a run that are not answered yet, and the replicas that have them under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowinfer.runs.answering import Task
from flowinfer.runs.replicas.order import Kind
from flowinfer.runs.replicas.site import Started


@dataclass(eq=False)
class Open:
    """A question that is not answered under all of its plans."""

    task: Task
    kind: Kind
    """By which it is known what it is expected to take."""
    left: list[int]
    """Plans that it has no answer under."""
    ended: set[str] = field(default_factory=set)
    """Shared steps that have been told of."""
    num_alone: int = 0
    """Replicas that have ended with nothing else under way."""
    num_asked: int = 0
    """Replicas that it is under way in."""


@dataclass
class UnderWay:
    """A question as it is under way in a replica."""

    one: Open
    left: list[int]
    """Plans that this replica has not answered it under."""


@dataclass(eq=False)
class Replica(Started):
    """A replica as its driver knows it."""

    limit: int
    """Questions that it may have under way: fewer after a loss, until it has answered."""
    asked: dict[int, UnderWay] = field(default_factory=dict)
    """What is under way, by number."""
    load: float = 0.0
    """What that is expected to take, in tokens to write."""
    is_ready: bool = False

    def weigh(self) -> None:
        """Count what is under way by what is expected now."""
        self.load = sum(under_way.one.kind.cost for under_way in self.asked.values())

    def __str__(self) -> str:
        does = f"{self.num_answered} answered, {len(self.asked)} under way" if self.is_ready else "starting"
        return f"{self.name}: {does}"


def characters_of(task: Task) -> int:
    """Return how long a question is."""
    question = task.question
    return len(question.question) + sum(map(len, question.choices.values()))
