"""What is told while flows work: states of steps to everybody, all of it to who has asked or knows a request's id."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from flowinfer.engine.base import TokenEvent
from flowinfer.results import HeadTimes
from flowinfer.serving.flows import ServedFlow
from flowinfer.serving.happenings import Admitted, Answered, Failed, Happening, StepEnded, Wrote

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


def event_of(happening: Happening, *, is_whole: bool, answer: Sequence[TokenEvent] = ()) -> Event | None:
    """Return what a page is told of a happening, if of it at all; texts and tokens only where it is whole.

    Args:
        answer: the tokens that are known to be the answer's since then; told by their indices.
    """
    told = {"answer": [token.index for token in answer]} if answer else {}
    match happening:
        case Admitted(step):
            return {"event": "step_began", "step": step, **told}
        case Wrote(step, token):
            return {"event": "token", "step": step, **_token(token), **told} if is_whole else None
        case StepEnded(result):
            text = {"text": result.text, "prompts": dict(result.prompts)} if is_whole else {}
            return {
                "event": "step_ended",
                "step": result.step,
                "tokens": result.tokens,
                "seconds": result.seconds,
                "finish_reason": result.finish_reason,
                "heads": [_cost(head) for head in result.heads],
                "drafted_tokens": result.drafted_tokens,
                "accepted_tokens": result.accepted_tokens,
                **text,
                **told,
            }
        case Answered(trace):
            ballot = None if trace.ballot is None else str(trace.ballot)
            ended = {"text": trace.answer, "ballot": ballot} if is_whole else {}
            return {
                "event": "answered",
                "seconds": trace.seconds,
                "finish_reason": trace.finish_reason,
                **ended,
                **told,
            }
        case Failed(reason):
            return {"event": "failed", **({"reason": reason} if is_whole else {})}


def _cost(head: HeadTimes) -> Event:
    return {
        "node": head.node,
        "model": head.model,
        "agreement": head.agreement,
        "seconds": head.forward_seconds,
        "prompt_tokens": head.prompt_tokens,
    }


def _token(token: TokenEvent) -> Event:
    others = [top.probability for top in token.tops if top.piece != token.piece]
    return {
        "index": token.index,
        "bytes": None if token.piece is None else list(token.piece),
        "probability": token.probability,
        "lead": token.probability - max(others) if others else None,
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
