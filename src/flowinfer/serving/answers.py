"""One request from its questions to its answer, whole or as a stream, as long as its client is there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from flowinfer.results import Trace
from flowinfer.serving import forms, problems
from flowinfer.serving.bodies import Wish
from flowinfer.serving.desk import Desk
from flowinfer.serving.events import whole_of
from flowinfer.serving.flows import Asking
from flowinfer.serving.happenings import Ended, Happening, Lost
from flowinfer.serving.problems import Problem
from flowinfer.serving.telling import Piece, Telling
from flowinfer.serving.tickets import Ticket

_SIGN_OF_LIFE_SECONDS = 10.0
"""Between comments in a stream that has nothing to say yet."""
_MOST_ASKED = 3
"""Times that a question is asked whose replicas are lost."""
_READER_SECONDS = 60.0
"""Longest that a client may take to read what was sent."""

Signal = Literal["gone", "late"]
Heard = tuple[int, Happening] | Signal
"""What happened to which of a request's questions; or its client has gone, or its time is over."""


@dataclass
class _Answer:
    """One question of a request."""

    asking: Asking
    ticket: Ticket
    telling: Telling
    num_asked: int
    """How often: again where whoever was to answer was lost."""
    was_told: bool = False
    """Whether a client has been sent something of it."""
    parts: list[Piece] = field(default_factory=list)

    @property
    def trace(self) -> Trace:
        """Return the whole of it, once it is there."""
        assert self.telling.trace is not None, "asked only once it is answered"
        return self.telling.trace

    @property
    def is_over(self) -> bool:
        """Return whether it is answered."""
        return self.telling.trace is not None

    def whole(self) -> Piece:
        """Return all that was told of it as one piece."""
        tokens = tuple(token for part in self.parts for token in part.tokens)
        return Piece(self.trace.answer, "".join(part.thought for part in self.parts).strip("\n"), tokens)


@dataclass(frozen=True)
class _New:
    """What has happened to one of a request's questions, and what it has brought of the answer."""

    index: int
    happening: Happening
    piece: Piece


class Answering:
    """Answer one request; an ASGI application."""

    def __init__(self, desk: Desk, wish: Wish, request_id: str) -> None:
        self._desk, self._wish, self._id = desk, wish, request_id
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._form = forms.Form(
            "chat" if wish.form == "chat" else "text", request_id, wish.flow, int(time.time()), wish.top_logprobs
        )
        self._answers: list[_Answer] = []
        self._start = time.perf_counter()
        self._has_first = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the questions in, tell of their answers, and take back what is wanted no more."""
        self._desk.admit(self._wish)
        self._desk.write_down(self._id, model=self._wish.flow.name, asked=[one.said for one in self._wish.askings])
        status = "499"
        late = asyncio.get_running_loop().call_later(self._desk.limits.seconds, self._heard.put_nowait, "late")
        watch = asyncio.create_task(self._watch(receive))
        try:
            for index, asking in enumerate(self._wish.askings):
                self._answers.append(self._asked(index, asking))
            status = await (self._stream(send) if self._wish.streams else self._whole(scope, receive, send))
        except Problem as problem:
            status = str(problem.status)
            raise
        finally:
            late.cancel()
            watch.cancel()
            for answer in self._answers:
                if not answer.ticket.is_over:
                    self._desk.service.withdraw(answer.ticket)
            told = [answer.trace.answer for answer in self._answers if answer.is_over]
            self._desk.write_down(self._id, status=status, answered=told)
            self._desk.leave(self._wish, status, time.perf_counter() - self._start)

    def _asked(self, index: int, asking: Asking, num_asked: int = 1) -> _Answer:
        """Hand a question in."""

        def hear(happening: Happening) -> None:
            self._desk.events.tell(self._id, asking.flow, index, happening)
            self._heard.put_nowait((index, happening))

        wants_tokens = self._wish.streams or self._wish.top_logprobs is not None
        ticket = self._desk.service.submit(
            asking, hear, wants_tokens=wants_tokens, num_tops=self._wish.top_logprobs or 0
        )
        return _Answer(asking, ticket, Telling(asking.flow, ticket.decodings), num_asked)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._heard.put_nowait("gone")

    def _take(self, heard: Heard) -> _New | None:
        """Take what was heard; return what is new of an answer, None where nobody is there to be told.

        A question whose replica was lost is asked again, of which a client need not know that was told nothing yet.

        Raises:
            Problem: a question has failed, or time is over.
        """
        if heard == "gone":
            return None
        if heard == "late":
            raise Problem(504, f"not answered within {self._desk.limits.seconds:g} s", code="timeout")
        index, happening = heard
        answer = self._answers[index]
        if isinstance(happening, Lost):
            if answer.was_told or answer.num_asked == _MOST_ASKED:
                raise problems.lost(happening.reason)
            self._answers[index] = self._asked(index, answer.asking, answer.num_asked + 1)
            return _New(index, happening, Piece())
        telling = answer.telling
        piece = telling.hear(happening)
        answer.was_told |= self._wish.streams and (bool(piece) or self._wish.form == "told")
        if telling.failure is not None:
            raise problems.of_reason(telling.failure, self._wish.param)
        if piece.text and not self._has_first:
            self._has_first = True
            self._desk.metrics.first.labels(self._wish.flow.name).observe(time.perf_counter() - self._start)
        if isinstance(happening, Ended):
            self._desk.metrics.answered(self._wish.flow, answer.trace)
        return _New(index, happening, piece)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> str:
        """Send the answer when it is whole; return its status."""
        while not all(answer.is_over for answer in self._answers):
            new = self._take(await self._heard.get())
            if new is None:
                return "499"
            self._answers[new.index].parts.append(new.piece)
        traces = [answer.trace for answer in self._answers]
        if self._wish.form == "trace":
            body = traces[0].model_dump(mode="json")
        else:
            body = self._form.whole([answer.whole() for answer in self._answers], traces, self._usage(traces))
        await JSONResponse(body, headers={"X-Request-Id": self._id})(scope, receive, send)
        return "200"

    def _usage(self, traces: Sequence[Trace]) -> dict[str, Any]:
        return forms.usage(self._wish.flow, traces)

    async def _stream(self, send: Send) -> str:
        """Send the answer as it is written; return its status.

        A question that fails before anything was told fails with a status of its own.
        """
        stream = EventStream(send, {"x-request-id": self._id})
        try:
            while not all(answer.is_over for answer in self._answers):
                heard = await self._next_heard(stream)
                new = [self._take(one) for one in heard]
                if None in new:
                    return "499"
                if told := [one for one in new if one is not None and not isinstance(one.happening, Lost)]:
                    await self._tell(stream, told)
        except Problem as problem:
            if not stream.has_begun:
                raise
            await stream.data(problem.to_json())
            await stream.end()
            return str(problem.status)
        except TimeoutError:  # it does not read
            return "499"
        usage = self._usage([answer.trace for answer in self._answers])
        if self._wish.form == "told":
            await stream.data({"event": "usage", **usage})
        elif self._wish.includes_usage:
            await stream.data(self._form.usage(usage))
        await stream.done()
        return "200"

    async def _next_heard(self, stream: EventStream) -> list[Heard]:
        """Wait for what happens next; give signs of life meanwhile."""
        while self._heard.empty():
            try:
                async with asyncio.timeout(_SIGN_OF_LIFE_SECONDS):
                    return [await self._heard.get()]
            except TimeoutError:
                await self._begin(stream)
                await stream.comment("still at work")
        return [self._heard.get_nowait() for _ in range(self._heard.qsize())]

    async def _tell(self, stream: EventStream, new: Sequence[_New]) -> None:
        """Send what is new: all of it where it is to be told, else each answer's in one chunk."""
        await self._begin(stream)
        if self._wish.form == "told":
            await stream.data(*[whole_of(one.happening, one.piece) for one in new])
            return
        for index, answer in enumerate(self._answers):
            pieces = [one.piece for one in new if one.index == index]
            if not pieces:
                continue
            joined = Piece(
                "".join(piece.text for piece in pieces),
                "".join(piece.thought for piece in pieces),
                tuple(token for piece in pieces for token in piece.tokens),
            )
            if joined and (chunk := self._form.chunk(index, joined)) is not None:
                await stream.data(chunk | self._null_usage)
            if answer.is_over:
                await stream.data(self._form.last(index, answer.trace) | self._null_usage)

    async def _begin(self, stream: EventStream) -> None:
        if stream.has_begun:
            return
        await stream.begin()
        for index in range(len(self._answers) if self._wish.form != "told" else 0):
            if (first := self._form.first(index)) is not None:
                await stream.data(first | self._null_usage)

    @property
    def _null_usage(self) -> dict[str, None]:
        return {"usage": None} if self._wish.includes_usage else {}


class EventStream:
    """Server-sent events."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send, self._headers = send, headers
        self.has_begun = False

    async def begin(self) -> None:
        """Send the head."""
        self.has_begun = True
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **self._headers,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def data(self, *events: Mapping[str, Any]) -> None:
        """Send events together."""
        texts = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in events]
        await self._write("".join(f"data: {text}\n\n" for text in texts))

    async def comment(self, text: str) -> None:
        """Send what every client ignores."""
        await self._write(f": {text}\n\n")

    async def done(self) -> None:
        """Send the last event and the end."""
        await self._write("data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        """Send the end."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, text: str) -> None:
        async with asyncio.timeout(_READER_SECONDS):
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})
