"""A flow for event loops: many questions at once, decoded together, each awaited or read as it is written."""

from __future__ import annotations

import asyncio
import atexit
import weakref
from collections.abc import AsyncIterator, Callable

from flowinfer.engine.models import ModelPool
from flowinfer.errors import UsageError
from flowinfer.machine import this_machine
from flowinfer.results import Trace
from flowinfer.serving.flows import Asking, served
from flowinfer.serving.happenings import Ended, Happening
from flowinfer.serving.service import Service
from flowinfer.serving.telling import Telling
from flowinfer.spec import Flow
from flowinfer.tasks.base import refuse_open
from flowinfer.zoos.toy import provide


class Calls:
    """Answer questions of any number of tasks, in any event loop.

    Args:
        flow: a checked flow.
        models: a pool to share.
    """

    def __init__(self, flow: Flow, models: ModelPool) -> None:
        provide(flow.models.values())
        self._checked = flow
        (self._flow,), steps = served({flow.name: flow}, this_machine())
        self._service = Service([self._flow], steps, _now, models=models, loads_at_once=False)
        self._service.start()
        atexit.register(_close, weakref.ref(self._service))  # Python must not end below a thread that runs a model

    async def answer(self, question: str) -> Trace:
        """Answer one question.

        Raises:
            UsageError: it is empty.
        """
        traces = [trace async for trace, _ in self._told(question, streams=False) if trace is not None]
        return traces[-1]

    async def pieces(self, question: str) -> AsyncIterator[str]:
        """Yield the answer to one question as it is written; pieces join to the whole.

        Raises:
            UsageError: it is empty.
        """
        async for _, text in self._told(question, streams=True):
            if text:
                yield text

    def close(self) -> None:
        """End what is under way."""
        self._service.close()

    async def _told(self, question: str, *, streams: bool) -> AsyncIterator[tuple[Trace | None, str]]:
        """Yield what is new of an answer, and in the end its trace; one who stops reading takes the question back."""
        if not isinstance(question, str):
            raise TypeError(f"question must be a text, not {type(question).__name__}")
        if not question.strip():
            raise UsageError("the question is empty")
        refuse_open(self._checked, (), "a single prompt")
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Happening]()

        def hear(happening: Happening) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, happening)

        ticket = self._service.submit(Asking(self._flow, question), hear, wants_tokens=streams)
        telling = Telling(self._flow, ticket.decodings)
        try:
            while True:
                happening = await heard.get()
                piece = telling.hear(happening)
                if isinstance(happening, Ended):
                    yield happening.trace, piece.text
                    return
                yield None, piece.text
        finally:
            if not ticket.is_over:
                self._service.withdraw(ticket)


def _now(tell: Callable[[], None]) -> None:
    tell()


def _close(service: weakref.ref[Service]) -> None:
    if (left := service()) is not None:
        left.close()
