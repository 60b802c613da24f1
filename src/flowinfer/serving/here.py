"""A partner in this process: a service of one flow at a time over models that stay loaded."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowinfer.engine.models import ModelPool
from flowinfer.errors import UsageError
from flowinfer.machine import this_machine
from flowinfer.results import Question
from flowinfer.serving.bodies import read_chat
from flowinfer.serving.events import Event, whole_of
from flowinfer.serving.flows import served
from flowinfer.serving.forms import finish_reason
from flowinfer.serving.happenings import Happening
from flowinfer.serving.partner import Hear, failed
from flowinfer.serving.problems import Problem
from flowinfer.serving.service import Service
from flowinfer.serving.telling import Telling
from flowinfer.spec import Flow
from flowinfer.tasks.base import language_note
from flowinfer.zoos.toy import provide


class Here:
    """See `Partner`.

    Args:
        flow: that answers first.
        find: gives the checked flow that a name means.
        say: tells the user something.
    Raises:
        RunError: models cannot be loaded or do not fit.
    """

    def __init__(self, flow: Flow, find: Callable[[str], Flow], say: Callable[[str], None]) -> None:
        self._find, self._say = find, say
        self._pool = ModelPool()
        self._named = {flow.name: flow}
        """Flows by the names by which they were asked for, and by their own."""
        self._service: Service | None = None
        self._warned: set[str] = set()
        self.flow = ""
        try:
            self._begin(flow)
        except BaseException:
            self.close()
            raise

    def flows(self) -> Sequence[str]:
        """Return the names of the flows that have answered."""
        return list(dict.fromkeys(flow.name for flow in self._named.values()))

    def turn_to(self, flow: str) -> None:
        """See `Partner.turn_to`; models that both flows call stay loaded."""
        before = self._named[self.flow]
        found = self._named.get(flow) or self._find(flow)
        try:
            self._begin(found)
        except BaseException:
            self._begin(before)
            raise
        self._named |= {flow: found, found.name: found}

    def ask(self, body: Mapping[str, Any], hear: Hear, events: list[Event]) -> str:
        """See `Partner.ask`."""
        assert self._service is not None, "begun in the beginning"
        try:
            (asking,) = read_chat(
                json.dumps({**body, "model": self.flow}).encode(), self._service.flows.__getitem__
            ).askings
        except Problem as problem:
            raise UsageError(problem.message) from None
        self._warn(asking.question)
        happened: queue.Queue[Happening] = queue.Queue()
        ticket = self._service.submit(asking, happened.put, wants_tokens=True)
        telling = Telling(asking.flow, ticket.decodings)
        try:
            while telling.trace is None:
                happening = happened.get()
                piece = telling.hear(happening)
                events.append(whole_of(happening, piece))
                if piece:
                    hear(piece)
                if telling.failure is not None:
                    raise failed(telling.failure)
            return finish_reason(telling.trace.finish_reason)
        finally:
            if not ticket.is_over:
                self._service.withdraw(ticket)

    def close(self) -> None:
        """End what is under way and free the models."""
        if self._service is not None:
            self._service.close()
        self._pool.close()

    def _warn(self, question: str) -> None:
        """Tell once of each flow that it asks in another language."""
        asked = Question(id="chat", question=question, reference="")
        note = None if self.flow in self._warned else language_note(self._named[self.flow], [asked])
        if note is not None:
            self._warned.add(self.flow)
            self._say(f"note: {note}")

    def _begin(self, flow: Flow) -> None:
        provide(flow.models.values())
        (one,), steps = served({flow.name: flow}, this_machine())
        if self._service is not None:
            self._service.close()
            self._pool.keep_only(one.plan, one.plan.models)
        self._service = Service([one], steps, lambda tell: tell(), models=self._pool, on_notice=self._say)
        self.flow = flow.name
        self._service.start_and_wait()
