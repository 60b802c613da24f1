"""Several replicas of a server's engine behind one address: each question goes to the one with fewest rows to write.

A thread of the router's own takes what replicas say and what is asked, one after the other; nothing else changes what
it knows. A replica keeps nothing that counts: when it ends, whoever waits for its answers hears that it was lost, and
may ask again.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flowinfer.engine.decoders import LoopState
from flowinfer.errors import DeviceLost, FlowInferError, RunError
from flowinfer.runs.replicas.site import LOOK_SECONDS, Gone, Notices, Site, error_of
from flowinfer.runs.replicas.wire import Failed, Notice, plan_data
from flowinfer.serving.flows import Asking, ServedFlow
from flowinfer.serving.happenings import STOPPED, Ended, Happening, Lost, StepEnded
from flowinfer.serving.loading import Loading, State
from flowinfer.serving.replicas import wire
from flowinfer.serving.replicas.beginnings import Beginnings, beginnings
from flowinfer.serving.replicas.load import Question, Replica, choose
from flowinfer.serving.responder import Deliver, ReplicaState
from flowinfer.serving.service import OURS
from flowinfer.serving.tickets import Hear, Ticket, failed, tell_all, tell_one

PROGRAM = "flowinfer.serving.replicas.worker"


@dataclass(frozen=True)
class _Said:
    replica: Replica
    what: bytes | Gone


@dataclass(frozen=True)
class _Withdrawn:
    ticket: Ticket


_Came = Replica | Question | _Withdrawn | _Said
"""A replica to start, a question that was handed in or taken back, what a replica says."""


class Router:
    """Answer questions to flows by replicas: a `Responder`.

    Args:
        flows: placed as in each replica.
        site: starts replicas.
        deliver: brings what happened to those who listen.
        batch: most rows of a decoding loop of each.
        engine: which loops may serve.
        loads_at_once: whether models are loaded before the first question.
        on_notice: hears what the user should know.
    """

    def __init__(
        self,
        flows: Sequence[ServedFlow],
        site: Site,
        deliver: Deliver,
        *,
        batch: int | Literal["auto"] = "auto",
        engine: Literal["auto", "packed", "reference"] = "auto",
        loads_at_once: bool = True,
        on_notice: Callable[[str], None] = lambda notice: None,
    ) -> None:
        self.flows = {flow.name: flow for flow in flows}
        self.loading, self.changed = Loading(), threading.Event()
        self.under_way: dict[str, Ticket] = {}
        self._site, self._deliver, self._on_notice = site, deliver, on_notice
        self._serve = wire.Serve(
            plans={flow.name: plan_data(flow.plan, site.num_replicas) for flow in flows},
            batch=batch,
            engine=engine,
            loads_at_once=loads_at_once,
            cpu_bytes=site.cpu_bytes,
        )
        self._replicas = tuple(Replica(index=index) for index in range(site.num_replicas))
        self._waiting: dict[str, deque[Question]] = {name: deque() for name in self.flows}
        self._open: dict[Ticket, Question] = {}
        """All that have not ended."""
        self._beginnings = Beginnings()
        self._notices = Notices()
        self._numbers = itertools.count(1)
        self._came: queue.SimpleQueue[_Came | None] = queue.SimpleQueue()
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        """Held where something is handed in, so that nothing is after the end."""
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="router", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        for replica in self._replicas:
            self._came.put(replica)
        self._thread.start()

    def submit(self, asking: Asking, hear: Hear, *, wants_tokens: bool = False, num_tops: int = 0) -> Ticket:
        """See `Responder.submit`."""
        number = next(self._numbers)
        ticket = Ticket(asking.flow, asking.asked(f"r{number}"), hear, wants_tokens, num_tops)
        question = Question(number, asking, ticket, beginnings(asking), len(asking.flow.plan.steps))
        with self._lock:
            if not self._is_closing:
                self._came.put(question)
                return ticket
        self._deliver(lambda: tell_one(ticket, failed(ticket, STOPPED)))
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """See `Responder.withdraw`."""
        ticket.is_over = True
        self._came.put(_Withdrawn(ticket))

    def close(self) -> None:
        """See `Responder.close`."""
        with self._lock:
            self._is_closing = True
        self._came.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Return how many questions no replica has yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def loops(self) -> list[LoopState]:
        """Return how full the loops of all replicas are."""
        standings = [replica.standing for replica in self._replicas]
        return [loop for one in standings if one is not None for loop in one.loops]

    @property
    def replicas(self) -> list[ReplicaState]:
        """Return what each replica does."""
        return [replica.state for replica in self._replicas]

    def context_length(self, flow: ServedFlow) -> int | None:
        """See `Responder.context_length`."""
        standings = [replica.standing for replica in self._replicas]
        return next((one.context_lengths[flow.name] for one in standings if one is not None), None)

    def told(self) -> dict[str, Any]:
        """Return how far the models are in the replica that is furthest, and what each replica does."""
        known = sorted((one for one in self._replicas if one.standing is not None), key=lambda one: not one.is_ready)
        said = next((dict(one.standing.told) for one in known if one.standing is not None), {})
        return {"loading": None, **said, "status": self.loading.state, "replicas": [*map(asdict, self.replicas)]}

    def _work(self) -> None:
        """Take what comes until the router is closed."""
        while (came := self._next()) is not None:
            try:
                self._take(came)
            except Exception:  # a bug of ours: nobody may wait for an answer that does not come
                traceback.print_exc()
                self._give_up(RunError(OURS))
        self._fail_all(STOPPED)
        self._site.close()
        self._is_now("closed")

    def _next(self) -> _Came | None:
        """Wait for what comes next; look now and then whether replicas still say something."""
        while True:
            if time.monotonic() - self._looked > LOOK_SECONDS:
                self._looked = time.monotonic()
                for replica in self._replicas:
                    replica.look()
            with suppress(queue.Empty):
                return self._came.get(timeout=LOOK_SECONDS)

    def _take(self, came: _Came) -> None:
        match came:
            case Replica() as replica:
                self._begin(replica)
            case Question() as question:
                self._open[question.ticket] = question
                self._waiting[question.asking.flow.name].append(question)
                if self.loading.problem is not None:
                    self._fail_all(self.loading.problem.message)
                self._put_all()
            case _Withdrawn(ticket=ticket):
                self._withdraw(ticket)
                self._put_all()
            case _Said(replica=replica, what=Gone(how=how)):
                self._lose(replica, how)
                self._put_all()
            case _Said(replica=replica, what=bytes() as line):
                self._hear(replica, line)
                self._put_all()

    def _begin(self, replica: Replica) -> None:
        """Start a replica, or start it again."""
        replica.begin(self._site, PROGRAM, lambda what: self._came.put(_Said(replica, what)), self._serve)

    def _hear(self, replica: Replica, line: bytes) -> None:
        """Take what a replica has said."""
        match said := replica.hear(line, wire.said):
            case wire.Standing():
                replica.standing = said
                replica.has_been_ready |= replica.is_ready
                self._look()
            case wire.Happened(events=events):
                told = [(replica.asked.get(number), happening) for number, happening in events]
                self._tell([(question, happening) for question, happening in told if question is not None])
            case wire.Bug(traceback=told):
                self._bug(replica, told)
            case Notice(text=text):
                if self._notices.is_new(replica.index, text):
                    self._notice(text)
            case Failed():
                replica.failure = said

    def _tell(self, happened: Sequence[tuple[Question, Happening]]) -> None:
        """Take what has happened to questions of one replica, and tell those who wait."""
        for question, happening in happened:
            replica = question.replica
            assert replica is not None, "it was put to one"
            if isinstance(happening, StepEnded):
                question.num_rows -= 1
                replica.num_rows -= 1
            elif isinstance(happening, Ended):
                replica.answered()
                self._let_go(question)
        told = [(question.ticket, happening) for question, happening in happened]
        self._deliver(lambda: tell_all(told))

    def _put_all(self) -> None:
        """Put questions that wait to replicas with room."""
        for waiting in self._waiting.values():
            while waiting:
                reader = self._beginnings.replica(waiting[0].beginnings)
                replica = choose(self._replicas, waiting[0].asking.flow.name, reader)
                if replica is None:
                    break
                self._put(replica, waiting.popleft())

    def _put(self, replica: Replica, question: Question) -> None:
        asking, ticket = question.asking, question.ticket
        replica.take(question)
        self.under_way[ticket.asked.question.id] = ticket
        self._beginnings.note(question.beginnings, replica.index)
        replica.link.send(
            wire.Put(
                number=question.number,
                flow=asking.flow.name,
                question=asking.question,
                turns=asking.turns,
                everywhere=asking.everywhere,
                finally_=asking.finally_,
                item=asking.item,
                echoes=asking.echoes,
                wants_tokens=ticket.wants_tokens,
                num_tops=ticket.num_tops,
            )
        )

    def _withdraw(self, ticket: Ticket) -> None:
        question = self._open.get(ticket)
        if question is None:
            return
        if question.replica is None:
            self._waiting[question.asking.flow.name].remove(question)
        else:
            question.replica.link.send(wire.Withdraw(number=question.number))
        self._let_go(question)

    def _let_go(self, question: Question) -> None:
        """Forget a question."""
        del self._open[question.ticket]
        self.under_way.pop(question.ticket.asked.question.id, None)
        if question.replica is not None:
            question.replica.drop(question)

    def _lose(self, replica: Replica, how: str) -> None:
        """Tell those who wait for a replica that it has ended; start it again, or go on without it."""
        loss, replica.standing = replica.lose(how), None
        self._beginnings.forget(replica.index)
        lost = Lost(f"the process that was to answer has ended: {loss.why}")
        left = list(replica.asked.values())
        for question in left:
            self._let_go(question)
        self._deliver(lambda: tell_all([(question.ticket, lost) for question in left]))
        failure = loss.failure
        if failure is not None and not failure.error:
            self._bug(replica, failure.message)
            failure = None
        if loss.is_started_again:
            self._notice(f"{replica.name} has ended: {loss.why}; it is started again")
            self._begin(replica)
        else:
            replica.is_given_up = True
            self._notice(f"{replica.name} is given up: {loss.why}")
            is_for_all = failure is not None and failure.error != DeviceLost.__name__ and not self.changed.is_set()
            if is_for_all or all(one.is_given_up for one in self._replicas):
                error = error_of(failure, replica.name) if failure is not None else None
                none_left = RunError(f"no replica is left: the last has ended: {loss.why}")
                self._give_up(error if isinstance(error, FlowInferError) else none_left)
        self._look()

    def _notice(self, text: str) -> None:
        """Tell the user something."""
        self.loading.notices.append(text)
        self._on_notice(text)
        self._deliver(self.loading.on_change)

    def _bug(self, replica: Replica, told: str) -> None:
        print(f"{replica.name} has met a bug: {told}", file=sys.stderr, flush=True)

    def _look(self) -> None:
        """See whether questions are answered now."""
        if self.loading.problem is None:
            is_ready = any(replica.is_ready for replica in self._replicas)
            self._is_now("ready" if is_ready else "loading")
            if is_ready:
                self.changed.set()

    def _is_now(self, state: State) -> None:
        self.loading.state = state
        self._deliver(self.loading.on_change)

    def _give_up(self, error: FlowInferError) -> None:
        self.loading.problem = error
        self._is_now("failed")
        self._fail_all(error.message)
        self.changed.set()

    def _fail_all(self, reason: str) -> None:
        """End all questions."""
        left = list(self._open.values())
        for question in left:
            self._let_go(question)
        for waiting in self._waiting.values():
            waiting.clear()
        self._deliver(lambda: tell_all([(one.ticket, failed(one.ticket, reason)) for one in left]))
