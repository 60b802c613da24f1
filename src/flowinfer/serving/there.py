"""A partner elsewhere: a running server, by the addresses that every client has. Imports no tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from flowinfer.engine.faults import is_too_long
from flowinfer.errors import RunError, UsageError
from flowinfer.language.nearness import near_or_all
from flowinfer.runs.remote import Server, asked, message_of, open_client, reaching, refusal
from flowinfer.serving.events import Event
from flowinfer.serving.forms import finish_reason
from flowinfer.serving.partner import Hear, failed
from flowinfer.serving.telling import Piece

_TOLD_WHOLE = "/flowinfer/chat"
"""Where steps and tokens are told too; servers of other kinds have it not, and tell their answers alone."""


class There:
    """See `Partner`.

    Args:
        server: that answers; its `model` is the flow, the first one there if not given.
    Raises:
        UsageError: it has no such flow, or wants another key.
        RunError: it cannot be reached, or is none.
    """

    def __init__(self, server: Server) -> None:
        self._client = open_client(server)
        try:
            known = self.flows()
            self.flow = known[0] if server.model is None else _one_of(server.model, known)
        except BaseException:
            self.close()
            raise

    def flows(self) -> Sequence[str]:
        """Return the names of the flows that are served."""
        said = asked(self._client, "GET", "/v1/models")
        try:
            names = [str(one["id"]) for one in said["data"]]
        except (KeyError, TypeError):
            names = []
        if not names:
            raise RunError(f"the server at {self._client.base_url} lists no models", help="is it flowinfer's?")
        return names

    def turn_to(self, flow: str) -> None:
        """See `Partner.turn_to`."""
        self.flow = _one_of(flow, self.flows())

    def ask(self, body: Mapping[str, Any], hear: Hear, events: list[Event]) -> str:
        """See `Partner.ask`."""
        whole = {**body, "model": self.flow, "stream": True}
        with reaching(self._client):
            for path in (_TOLD_WHOLE, "/v1/chat/completions"):
                with self._client.stream("POST", path, json=whole) as reply:
                    if reply.status_code == 200:
                        return _heard(reply, hear, events)
                    reply.read()
                if reply.status_code != 404:
                    break
        message = message_of(reply)
        raise failed(message) if is_too_long(message) else refusal(self._client, reply.status_code, message)

    def close(self) -> None:
        """End."""
        self._client.close()


def _one_of(flow: str, known: Sequence[str]) -> str:
    if flow not in known:
        raise UsageError(f"the server has no flow '{flow}'", help=near_or_all(flow, known, "flows there"))
    return flow


def _heard(reply: httpx.Response, hear: Hear, events: list[Event]) -> str:
    """Hear a streamed answer; return why it ended."""
    reason = None
    try:
        for data in _data(reply):
            if "error" in data:
                raise failed(str(data["error"]["message"]))
            if "event" in data:
                events.append(data)
                told = [data]
                reason = finish_reason(data["finish_reason"]) if data["event"] == "answered" else reason
            else:
                told = [choice.get("delta") or {} for choice in data["choices"]]
                reason = next(
                    (choice["finish_reason"] for choice in data["choices"] if choice.get("finish_reason")), reason
                )
            for delta in told:
                piece = Piece(delta.get("content") or "", delta.get("reasoning_content") or "")
                if piece:
                    hear(piece)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError("the server's stream is none of OpenAI's form", help="is it flowinfer's?") from None
    if reason is None:
        raise RunError("the server has broken off in the middle of its answer")
    return str(reason)


def _data(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the data of server-sent events up to the last one; lines end at line feeds only."""
    rest = b""
    for chunk in reply.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)
