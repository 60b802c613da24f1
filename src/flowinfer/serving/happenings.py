"""What happens to a question on its way, as the engine's thread tells it."""

from __future__ import annotations

from dataclasses import dataclass

from flowinfer.engine.base import TokenEvent
from flowinfer.results import StepResult, Trace

STOPPED = "the server was stopped"
"""Why a question failed that was on its way when its service was closed, or came later."""


@dataclass(frozen=True)
class Admitted:
    """A step began to write; one that begins again starts from nothing."""

    step: str
    opens_thinking: bool


@dataclass(frozen=True)
class Wrote:
    """A step wrote a token."""

    step: str
    token: TokenEvent


@dataclass(frozen=True)
class WroteText:
    """A step wrote a part of its text at an endpoint, which tells of no tokens."""

    step: str
    text: str


@dataclass(frozen=True)
class StepEnded:
    """A step's text is whole."""

    result: StepResult


@dataclass(frozen=True)
class Answered:
    """The question has its answer."""

    trace: Trace
    read: tuple[TokenEvent, ...] = ()
    """The tokens of a text that was only read (`echo`), and of what was written behind it."""


@dataclass(frozen=True)
class Failed:
    """The question has none."""

    reason: str
    trace: Trace
    """Its steps up to the one that failed."""


Happening = Admitted | Wrote | WroteText | StepEnded | Answered | Failed
Ended = (Answered, Failed)
"""What comes last, and once."""
