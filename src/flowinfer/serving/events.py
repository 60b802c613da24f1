"""What pages hear while flows work: states of steps for everybody, texts and wishes for who knows a request's id."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from flowinfer.engine.base import HeadWish, TokenEvent
from flowinfer.serving.flows import ServedFlow
from flowinfer.serving.happenings import Admitted, Answered, Failed, Happening, StepEnded, Wrote, WroteText

_MOST_KEPT = 10_000
"""Events that a slow listener may be behind; then it is let go."""

Event = Mapping[str, Any]


class Listener:
    """Somebody who listens.

    Args:
        request_id: of the request whose texts are wanted; None = only states, of all requests.
    """

    def __init__(self, request_id: str | None) -> None:
        self.request_id = request_id
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(self, event: Event | None) -> None:
        """Add an event; None = there will be no more."""
        if event is None or self._events.qsize() < _MOST_KEPT:
            self._events.put_nowait(event)

    async def get(self) -> Event | None:
        """Wait for the next event."""
        return await self._events.get()


class Events:
    """All who listen."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def add(self, listener: Listener) -> None:
        """Let somebody listen."""
        self._listeners.add(listener)

    def remove(self, listener: Listener) -> None:
        """Let nobody wait for somebody who is gone."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """Tell all that there is nothing more to come."""
        for listener in self._listeners:
            listener.put(None)

    def tell_all(self, event: Event) -> None:
        """Tell everybody something that is no request's."""
        for listener in self._listeners:
            listener.put(event)

    def wanted(self, request_id: str) -> bool:
        """Return whether somebody wants a request's tokens."""
        return any(listener.request_id == request_id for listener in self._listeners)

    def tell(self, request_id: str, flow: ServedFlow, index: int, happening: Happening) -> None:
        """Tell of what has happened to a request's question."""
        for listener in self._listeners:
            if listener.request_id in (None, request_id):
                event = event_of(happening, is_whole=listener.request_id is not None)
                if event is not None:
                    listener.put({"request": request_id, "flow": flow.name, "index": index, **event})


def event_of(happening: Happening, *, is_whole: bool) -> Event | None:
    """Return what a page is told of a happening, if of it at all; texts and tokens only where it is whole."""
    match happening:
        case Admitted(step):
            return {"event": "step_began", "step": step}
        case Wrote(step, token):
            return {"event": "token", "step": step, **_token(token)} if is_whole else None
        case WroteText(step, written):
            return {"event": "text", "step": step, "text": written} if is_whole else None
        case StepEnded(result):
            text = {"text": result.text, "prompts": dict(result.prompts)} if is_whole else {}
            return {
                "event": "step_ended",
                "step": result.step,
                "tokens": result.tokens,
                "seconds": result.seconds,
                "finish_reason": result.finish_reason,
                "heads": [{"model": head.model, "agreement": head.agreement} for head in result.heads],
                "accepted_tokens": result.accepted_tokens,
                **text,
            }
        case Answered(trace):
            text = {"text": trace.answer} if is_whole else {}
            return {"event": "answered", "seconds": trace.seconds, "finish_reason": trace.finish_reason, **text}
        case Failed(reason):
            return {"event": "failed", **({"reason": reason} if is_whole else {})}


def _token(token: TokenEvent) -> Event:
    return {
        "index": token.index,
        "bytes": None if token.piece is None else list(token.piece),
        "probability": token.probability,
        "heads": [
            {
                "node": head.node,
                "model": head.model,
                "bytes": None if head.piece is None else list(head.piece),
                "probability": head.probability,
                "probability_of_emitted": head.probability_of_emitted,
            }
            for head in token.heads
        ],
    }


def token_of(event: Event) -> TokenEvent:
    """Return the token that an event tells of."""
    heads = [
        HeadWish(
            head["node"], head["model"], _piece(head["bytes"]), head["probability"], head["probability_of_emitted"]
        )
        for head in event["heads"]
    ]
    return TokenEvent(event["index"], _piece(event["bytes"]), event["probability"], tuple(heads))


def _piece(numbers: list[int] | None) -> bytes | None:
    return None if numbers is None else bytes(numbers)
