"""Who answers a server's questions: one engine in this process, or replicas of it in processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flowinfer.engine.decoders import LoopState
from flowinfer.serving.flows import Asking, ServedFlow
from flowinfer.serving.loading import Loading
from flowinfer.serving.tickets import Hear, Ticket

Deliver = Callable[[Callable[[], None]], None]
"""Lets something be done in the thread of those who listen, in order."""


@dataclass(frozen=True)
class ReplicaState:
    """What one of several replicas does."""

    replica: int
    """From 1."""
    status: Literal["loading", "ready", "given up"]
    questions: int
    """That it has."""
    rows: int
    """That these have still to write: one for each of their steps."""
    answered: int
    starts: int
    """After the first one."""

    @property
    def is_ready(self) -> bool:
        """Return whether it answers."""
        return self.status == "ready"


class Responder(Protocol):
    """Answers questions to flows; what happens to each is told in the thread of those who listen."""

    flows: dict[str, ServedFlow]
    loading: Loading
    changed: threading.Event
    """Set once questions are answered, or cannot be."""

    def start(self) -> None:
        """Begin to work."""

    def submit(self, asking: Asking, hear: Hear, *, wants_tokens: bool = False, num_tops: int = 0) -> Ticket:
        """Hand a question in; what happens to it is heard until it has ended or was withdrawn."""

    def withdraw(self, ticket: Ticket) -> None:
        """Take a question back: nothing more is heard of it, and it soon costs nothing."""

    def context_length(self, flow: ServedFlow) -> int | None:
        """Return the most tokens that all models of a flow read, answer included; None before they are loaded."""

    def told(self) -> dict[str, Any]:
        """Return how far the models are, as plain data."""

    def close(self) -> None:
        """End all that is under way with an error, and free the models."""

    @property
    def under_way(self) -> Mapping[str, Ticket]:
        """Return the questions that are being answered, by id."""

    @property
    def num_waiting(self) -> int:
        """Return how many questions wait."""

    @property
    def loops(self) -> Sequence[LoopState]:
        """Return how full the decoding loops are."""

    @property
    def replicas(self) -> Sequence[ReplicaState]:
        """Return what each replica does, where there are any."""
