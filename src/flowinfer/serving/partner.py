"""Who answers in a conversation: an engine here or a server somewhere, asked in the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from flowinfer.engine.faults import is_too_long
from flowinfer.errors import RunError
from flowinfer.serving.events import Event
from flowinfer.serving.telling import Piece

Hear = Callable[[Piece], None]


class Partner(Protocol):
    """Answers questions by one flow of several."""

    flow: str
    """Name of the flow that answers."""

    def flows(self) -> Sequence[str]:
        """Return the names of the flows that could answer."""

    def turn_to(self, flow: str) -> None:
        """Let another flow answer.

        Raises:
            FlowInferError: there is none, or it cannot; the one before goes on then.
        """

    def ask(self, body: Mapping[str, Any], hear: Hear, events: list[Event]) -> str:
        """Ask for a conversation's next answer; return why it ended, in OpenAI's words.

        Whoever interrupts it ends the answer and nothing else.

        Args:
            body: of a request to /v1/chat/completions, without the name of a model.
            hear: takes pieces of the answer as they are written.
            events: to which is added what happened: see `events.whole_of`.
        Raises:
            FlowInferError: there is no answer, and why.
        """

    def close(self) -> None:
        """End."""


def failed(reason: str) -> RunError:
    """Return the error that tells why there is no answer."""
    return RunError(reason, help="/new begins another conversation" if is_too_long(reason) else None)
