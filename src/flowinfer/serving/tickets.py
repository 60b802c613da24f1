"""Questions that were handed in, and how those who listen hear of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowinfer.engine.work import Asked
from flowinfer.results import Trace
from flowinfer.serving.flows import ServedFlow
from flowinfer.serving.happenings import Answered, Failed, Happening, Lost
from flowinfer.spec import Decoding

Hear = Callable[[Happening], None]


@dataclass(eq=False)
class Ticket:
    """A question that was handed in."""

    flow: ServedFlow
    asked: Asked
    hear: Hear
    wants_tokens: bool
    num_tops: int = 0
    """How many alternatives each token is to be told with."""
    is_over: bool = False
    """Whether nothing more is told of it."""
    since: float = field(default_factory=time.monotonic)
    """When it came."""

    @property
    def decodings(self) -> dict[str, Decoding]:
        """Return its options by step of its flow's plan."""
        return {step: self.asked.decodings[use.shared] for step, use in self.flow.uses.items()}


def failed(ticket: Ticket, reason: str) -> Failed:
    """Return the end of a question that was broken off."""
    question_id = ticket.asked.question.id
    trace = Trace(question_id=question_id, answer="", finish_reason="error", seconds=0.0, steps=(), error=reason)
    return Failed(reason, trace)


def tell_all(happened: Sequence[tuple[Ticket, Happening]]) -> None:
    """Tell everybody what has happened, in order."""
    for ticket, happening in happened:
        tell_one(ticket, happening)


def tell_one(ticket: Ticket, happening: Happening) -> None:
    """Tell who listens, unless nothing more is to be told."""
    if not ticket.is_over:
        ticket.is_over = isinstance(happening, Answered | Failed | Lost)
        ticket.hear(happening)
