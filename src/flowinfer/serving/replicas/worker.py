"""One replica of a server: a process with an engine of its own, asked on standard input.

It ends when its input ends: whoever asks has then gone, or needs it no more. Signals that end a server are for the
server, which lets what is under way end.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import IO

from flowinfer.planning.merge import beside
from flowinfer.runs.replicas.wire import Notice, read_plans
from flowinfer.runs.replicas.worker import Talk, main
from flowinfer.serving.flows import Asking, ServedFlow
from flowinfer.serving.happenings import Ended, Happening
from flowinfer.serving.replicas import wire
from flowinfer.serving.service import SWITCH_SECONDS, Service
from flowinfer.serving.tickets import Ticket

_STANDING_SECONDS = 0.5
"""Between two looks at what is told of it."""
_BEAT_LOOKS = 10
"""Looks after which it is told as it was, as a sign of life."""


class ServingReplica:
    """Answers the questions of a server; see `runs.replicas.worker.Replica`."""

    def __init__(self, asks: IO[bytes], tells: IO[bytes], leave: Callable[[], None]) -> None:
        self._talk = Talk(asks, tells, leave, wire.asked, wire.line_of)
        self.tell = self._talk.tell
        self._lock = threading.RLock()
        """Guards the two below, which the thread that hears and the engine's change."""
        self._tickets: dict[int, Ticket] = {}
        self._happened: list[tuple[int, Happening]] = []
        self._is_over = False
        """Whether nobody asks any more."""
        self._news = threading.Event()
        """Set where it stands otherwise than it has told."""

    def run(self) -> None:
        """Answer until nobody asks any more.

        Raises:
            LoadError, MemoryShort, RunError, DeviceLost: it cannot go on.
        """
        start = self._talk.first()
        if start is None:
            return
        assert isinstance(start, wire.Serve), "the first message"
        plans = read_plans(list(start.plans.values()))
        merged = beside(plans)
        parts = zip(start.plans, plans, merged.uses, strict=True)
        service = Service(
            [ServedFlow(name, None, plan, uses) for name, plan, uses in parts],
            merged.steps,
            self._deliver,
            batch=start.batch,
            engine=start.engine,
            loads_at_once=start.loads_at_once,
            cpu_bytes=start.cpu_bytes,
            on_notice=lambda text: self.tell(Notice(text=text)),
            on_bug=lambda told: self.tell(wire.Bug(traceback=told)),
        )
        service.loading.on_change = self._news.set
        service.start()
        self._talk.listen(partial(self._take, service), self._end)
        last, num_silent = None, 0
        while service.loading.problem is None and not self._is_over:
            now = _standing(service)
            num_silent += 1
            if now != last or num_silent == _BEAT_LOOKS:
                self.tell(now)
                last, num_silent = now, 0
            self._news.wait(_STANDING_SECONDS)
            self._news.clear()
        if service.loading.problem is not None:
            raise service.loading.problem
        service.close()

    def _take(self, service: Service, message: wire.Serve | wire.Put | wire.Withdraw) -> None:
        """Hand in what is asked."""
        match message:
            case wire.Put() as put:
                self._put(service, put)
            case wire.Withdraw(number=number):
                with self._lock:
                    ticket = self._tickets.pop(number, None)
                if ticket is not None:
                    service.withdraw(ticket)

    def _end(self) -> None:
        self._is_over = True
        self._news.set()

    def _put(self, service: Service, put: wire.Put) -> None:
        flow, options = service.flows[put.flow], (put.everywhere, put.finally_)
        asking = Asking(flow, put.question, put.turns, *options, item=put.item, echoes=put.echoes)

        def hear(happening: Happening) -> None:
            self._happened.append((put.number, happening))
            if isinstance(happening, Ended):
                self._tickets.pop(put.number, None)

        with self._lock:
            self._tickets[put.number] = service.submit(
                asking, hear, wants_tokens=put.wants_tokens, num_tops=put.num_tops
            )

    def _deliver(self, tell: Callable[[], None]) -> None:
        """Tell what has happened as one message."""
        with self._lock:
            tell()
            happened, self._happened = self._happened, []
        if happened:
            self.tell(wire.Happened(events=tuple(happened)))


def _standing(service: Service) -> wire.Standing:
    lengths = {name: service.context_length(flow) for name, flow in service.flows.items()}
    return wire.Standing(told=service.told(), context_lengths=lengths, loops=tuple(service.loops))


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    main(ServingReplica)
