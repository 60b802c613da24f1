"""What happens to a question on its way, as the engine's thread tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowinfer.engine.base import TokenEvent
from flowinfer.results import StepResult, Trace

STOPPED = "the server was stopped"
"""Why a question failed that was on its way when its service was closed, or came later."""


@dataclass(frozen=True)
class Admitted:
    """A step began to write; one that begins again starts from nothing."""

    step: str
    opens_thinking: bool
    kind: Literal["admitted"] = "admitted"


@dataclass(frozen=True)
class Wrote:
    """A step wrote a token."""

    step: str
    token: TokenEvent
    kind: Literal["wrote"] = "wrote"


@dataclass(frozen=True)
class WroteText:
    """A step wrote a part of its text at an endpoint, which tells of no tokens."""

    step: str
    text: str
    kind: Literal["wrote_text"] = "wrote_text"


@dataclass(frozen=True)
class StepEnded:
    """A step's text is whole."""

    result: StepResult
    kind: Literal["step_ended"] = "step_ended"


@dataclass(frozen=True)
class Answered:
    """The question has its answer."""

    trace: Trace
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True)
class Failed:
    """The question has none."""

    reason: str
    trace: Trace
    """Its steps up to the one that failed."""
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True)
class Lost:
    """The process that was to answer has ended; the question can be asked again."""

    reason: str
    kind: Literal["lost"] = "lost"


Happening = Admitted | Wrote | WroteText | StepEnded | Answered | Failed | Lost
Ended = (Answered, Failed)
"""What comes last, and once, to a question that has come to an end."""
