"""What is told while flows work: states of steps to everybody who listens, all of it to who has asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from flowinfer.engine.base import HeadWish, TokenEvent
from flowinfer.results import HeadTimes
from flowinfer.serving.flows import ServedFlow
from flowinfer.serving.happenings import Admitted, Answered, Failed, Happening, Lost, StepEnded, Wrote, WroteText
from flowinfer.serving.telling import Piece

_MOST_KEPT = 10_000
"""Events that a slow listener may be behind; then it is let go."""

Event = Mapping[str, Any]


class Listener:
    """Somebody who listens."""

    def __init__(self) -> None:
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

    def tell(self, request_id: str, flow: ServedFlow, index: int, happening: Happening) -> None:
        """Tell of what has happened to a request's question."""
        event = state_of(happening) if self._listeners else None
        if event is not None:
            for listener in self._listeners:
                listener.put({"request": request_id, "flow": flow.name, "index": index, **event})


def state_of(happening: Happening) -> Event | None:
    """Return what everybody may know of what has happened; None of what is of no interest to them."""
    match happening:
        case Admitted(step):
            return {"event": "step_began", "step": step}
        case Wrote() | WroteText() | Lost():
            return None
        case StepEnded(result):
            return {
                "event": "step_ended",
                "step": result.step,
                "tokens": result.tokens,
                "seconds": result.seconds,
                "finish_reason": result.finish_reason,
                "heads": [_cost(head) for head in result.heads],
                "drafted_tokens": result.drafted_tokens,
                "accepted_tokens": result.accepted_tokens,
            }
        case Answered(trace):
            return {"event": "answered", "seconds": trace.seconds, "finish_reason": trace.finish_reason}
        case Failed():
            return {"event": "failed"}


def whole_of(happening: Happening, new: Piece) -> Event:
    """Return all that has happened.

    Args:
        new: what of the answer it has brought; its tokens are told by their indices, what can be read of it as text.
    """
    told = {"answer": [token.index for token in new.tokens], "content": new.text, "reasoning_content": new.thought}
    answer = {name: value for name, value in told.items() if value}
    text: Event = {}
    match happening:
        case Wrote(step, token):
            return {"event": "token", "step": step, **_token(token), **answer}
        case WroteText(step, written):
            return {"event": "text", "step": step, "text": written, **answer}
        case StepEnded(result):
            text = {"text": result.text, "prompts": dict(result.prompts)}
        case Answered(trace):
            ballot = trace.ballot
            text = {
                "text": trace.answer,
                "ballot": None if ballot is None else str(ballot),
                "selections": [str(taken) for taken in trace.selections],
            }
    return {**(state_of(happening) or {}), **text, **answer}


def _cost(head: HeadTimes) -> Event:
    lost = {} if head.lost_at is None else {"lost_at": head.lost_at}
    return lost | {
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
        **({} if token.is_fused is None else {"is_fused": token.is_fused}),
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
    piece, is_fused = _piece(event["bytes"]), event.get("is_fused")
    return TokenEvent(event["index"], piece, event["probability"], tuple(heads), is_fused=is_fused)


def _piece(numbers: list[int] | None) -> bytes | None:
    return None if numbers is None else bytes(numbers)
