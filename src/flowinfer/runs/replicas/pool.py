"""The driver's side of replicas: questions go to whoever is free, and what a lost replica was asked is asked again.

A question can be asked twice, since its text is decided by the plan and itself. So a replica keeps nothing: the answers
that it has given when it ends count, the rest goes to another one. It judges them, and writes them as the run's folder
keeps them, so that all of that costs the driver next to nothing. Who runs the replicas, and where, a `Site` knows.

When nothing is left to ask, what a host still has is asked a second time of others that have nothing to do: a host that
is slow, or stands still, would be waited for. Whoever answers first counts.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from typing import Literal

from flowinfer.engine.base import Observer
from flowinfer.errors import DeviceLost, RunError
from flowinfer.planning.merge import merge
from flowinfer.planning.plan import Plan
from flowinfer.registry import backends
from flowinfer.results import Record, Trace
from flowinfer.runs.answering import Answered, Owners, Stepped, Task, needed
from flowinfer.runs.jsonlog import is_clean
from flowinfer.runs.replicas.order import Kind, Kinds, Order
from flowinfer.runs.replicas.site import ANSWERS, LOOK_SECONDS, Gone, Notices, Site, error_of
from flowinfer.runs.replicas.under_way import Open, Replica, UnderWay, characters_of
from flowinfer.runs.replicas.wire import (
    Ask,
    Failed,
    Loading,
    Notice,
    Ready,
    Reply,
    Start,
    Tokens,
    plan_data,
    said,
)
from flowinfer.startup import STARTUP

_MOST_EACH = 256
"""Questions under way in a replica where nobody says how many."""
_SHOW_SECONDS = 0.25
_PAUSE_SECONDS = 0.1
_MOST_ALONE = 3
"""Replicas that end with a single question under way until that one has failed."""


@dataclass(frozen=True)
class Setting:
    """How replicas run their steps."""

    owners: Owners
    batch: int | Literal["auto"] = "auto"
    engine: Literal["auto", "packed", "reference"] = "auto"
    cache: Path | None = None
    """Folder of finished steps."""
    breaks_steps: bool = False
    """Whether what breaks a loop breaks its steps and nothing else, as in a sweep."""


class ReplicaPool:
    """Answers by replicas: an `Answerer`.

    Args:
        site: starts replicas.
        plans: that are merged, in each replica as here.
        setting: how they run.
        observer: hears the replicas.
        on_pause: called when all that was said so far is taken, and now and then where it never is.
    """

    def __init__(
        self,
        site: Site,
        plans: Sequence[Plan],
        setting: Setting,
        observer: Observer,
        *,
        on_pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_pause, self._paused, self._looked = on_pause, 0.0, time.monotonic()
        self.broken: dict[str, str] = {}
        self._site, self._observer = site, observer
        self._start = Start(
            plans=tuple(plan_data(plan, site.num_replicas) for plan in plans),
            batch=setting.batch,
            engine=setting.engine,
            cache=None if setting.cache is None else str(setting.cache.absolute()),
            runs=tuple((plan, dataset, name) for (plan, dataset), name in setting.owners.items()),
            breaks_steps=setting.breaks_steps,
            cpu_bytes=site.cpu_bytes,
        )
        self._merged = merge(plans)
        models = [backends()[spec.backend] for plan in plans for spec in plan.models.values()]
        self._asks_twice = not any(model.is_elsewhere for model in models)
        """Whether what another replica has costs nobody anything: models elsewhere answer others, or for money."""
        self._heard: queue.SimpleQueue[tuple[Replica, bytes | Gone]] = queue.SimpleQueue()
        self._replicas: list[Replica] = []
        self._left = _order((), (1, 1))
        self._number = 0
        self._notices = Notices()
        self._most = _MOST_EACH
        self._num_open = 0
        """Questions that have not ended."""
        self._num_here = 0
        self._shown = 0.0
        """When."""

    def run(self, tasks: Iterable[Task | None], *, most: int | None = None) -> Iterator[Stepped | Answered]:
        """Answer; see `Answerer`. No replica has more than `most` questions under way.

        Raises:
            LoadError, MemoryShort, RunError: a replica cannot run the plan, so none can.
            DeviceLost, RunError: no replica is left.
        """
        asked = [task for task in tasks if task is not None and task.plans]
        self._most, self._num_open = most or _MOST_EACH, len(asked)
        num_replicas = min(self._site.num_replicas, len(asked))
        self._left = _order(asked, (num_replicas, self._most))
        try:
            for index in range(num_replicas):
                self._replicas.append(Replica(self._most, index=index))
            self._num_here = len(self._replicas)
            for replica in self._replicas:
                self._begin(replica)
            self._show()
            while self._num_open:
                now = time.monotonic()
                if self._heard.empty() or now - self._paused > _PAUSE_SECONDS:
                    self._on_pause()
                    self._paused = now
                if now - self._looked > LOOK_SECONDS:
                    self._looked = now
                    self._left.learn()
                    for replica in self._replicas:
                        replica.weigh()
                        replica.look()
                    self._ask_twice()
                try:
                    heard = self._heard.get(timeout=LOOK_SECONDS)
                except queue.Empty:
                    continue
                yield from self._take(*heard)
        finally:
            self._site.close()
            self._on_pause()

    def _begin(self, replica: Replica) -> None:
        """Start a replica, or start it again."""
        replica.is_ready = False
        replica.begin(self._site, ANSWERS, lambda what: self._heard.put((replica, what)), self._start)

    def _take(self, replica: Replica, what: bytes | Gone) -> Iterator[Stepped | Answered]:
        """Take what a replica has said."""
        if isinstance(what, Gone):
            yield from self._lose(replica, what.how)
            return
        match message := replica.hear(what, said):
            case Reply():
                STARTUP.first_token()
                yield from self._end(replica, message)
            case Ready():
                replica.is_ready = replica.has_been_ready = True
                self._num_here += replica.num_starts > 1  # one that starts for the first time is counted
                self._fill(replica)
                self._show_now_and_then()
            case Tokens(count=count) if count:
                STARTUP.first_token()
                self._observer.tokens_emitted(count)
            case Loading(seconds=None):
                self._observer.model_loading(message.name, f"{message.device} of {replica.name}")
            case Loading(seconds=float() as seconds):
                self._observer.model_loaded(f"{message.name} in {replica.name}", seconds)
            case Notice(text=text):
                if self._notices.is_new(replica.index, text):
                    self._observer.notice(text)
            case Failed():
                replica.failure = message

    def _end(self, replica: Replica, reply: Reply) -> Iterator[Stepped | Answered]:
        """Take an answer."""
        done, record = reply.done, reply.record
        asked = replica.asked.get(done.number)
        if asked is None or done.plan not in asked.left:
            replica.end("it has answered what it was not asked")
            return
        asked.left.remove(done.plan)
        one, is_first = asked.one, done.plan in asked.one.left
        yield from self._stepped(one, done.steps)  # of a second answer too: it may be the only one to tell of them
        if is_first:
            self.broken |= done.broken
            for result in record.trace.steps:
                self._observer.finished(record.question.id, result)
            self._left.answered(one, sum(result.tokens for result in record.trace.steps))
            one.left.remove(done.plan)
            if not one.left:
                self._close(one)
        if not asked.left:
            del replica.asked[done.number]
            one.num_asked -= 1
            replica.load -= one.kind.cost
            replica.answered()
            replica.limit = min(self._most, 2 * replica.limit)
            self._fill(replica)
            self._show_now_and_then()
        if is_first:
            clean = reply.line if is_clean(reply.line) else None
            yield Answered(one.task, done.plan, record, is_last=not one.left, line=clean, goes_on=done.goes_on)

    def _close(self, one: Open) -> None:
        self._num_open -= 1
        self._left.close(one)

    def _stepped(self, one: Open, steps: Iterable[tuple[str, bool]]) -> Iterator[Stepped]:
        """Tell of steps, once each: one that has lost its replica may run again."""
        for shared, is_fresh in steps:
            if shared not in one.ended:
                one.ended.add(shared)
                yield Stepped(one.task, shared, is_fresh)

    def _fill(self, replica: Replica) -> None:
        """Ask a replica what is left, in its order, up to its part of all that is open.

        Parts are of those who answer or start for the first time: whoever was lost may not come back.
        """
        while replica.is_ready and self._left and len(replica.asked) < replica.limit:
            expected = replica.load + self._left.next_cost / 2
            if replica.asked and expected * self._num_here > self._left.open_cost:
                return
            self._ask(replica, self._left.take())

    def _fill_all(self) -> None:
        """Do so for all, after one has gone."""
        self._num_here = sum(replica.is_ready or replica.num_starts == 1 for replica in self._replicas)
        for replica in self._replicas:
            self._fill(replica)
        self._show()

    def _ask_twice(self) -> None:
        """Ask replicas that have nothing to do what those of other hosts have, once more and the first asked first."""
        idle = [replica for replica in self._replicas if replica.is_ready and not replica.asked]
        if self._left or not idle or not self._asks_twice:
            return
        hosts = self._site.hosts
        others = {host: cycle([one for one in idle if hosts[one.index] != host]) for host in set(hosts)}
        part = max(1, self._num_open // self._num_here)  # whoever is idle next has something to take too
        late = [(number, replica) for replica in self._replicas for number in replica.asked]
        for number, busy in sorted(late, key=itemgetter(0)):
            one, other = busy.asked[number].one, next(others[hosts[busy.index]], None)
            if other and len(other.asked) < min(other.limit, part) and one.left and one.num_asked == 1:
                self._ask(other, one)

    def _ask(self, replica: Replica, one: Open) -> None:
        self._number += 1
        replica.asked[self._number] = UnderWay(one, list(one.left))
        replica.load += one.kind.cost
        one.num_asked += 1
        ask = Ask(number=self._number, question=one.task.question, plans=tuple(one.left), dataset=one.task.dataset)
        replica.link.send(ask)

    def _lose(self, replica: Replica, how: str) -> Iterator[Stepped | Answered]:
        """Ask others what a replica that has ended was asked; start it again, or go on without it."""
        loss = replica.lose(how)
        had = [asked.one for asked in replica.asked.values()]
        replica.asked, replica.load = {}, 0
        for one in had:
            one.num_asked -= 1
        back = [one for one in had if one.left]
        if loss.failure is not None and loss.failure.error != DeviceLost.__name__:
            raise error_of(loss.failure, replica.name)
        if len(had) == len(back) == 1:
            back[0].num_alone += 1
            if back[0].num_alone == _MOST_ALONE:
                yield from self._fail(
                    back.pop(), f"the process that was asked it has ended {_MOST_ALONE} times: {loss.why}"
                )
        self._left.put_back(one for one in back if not one.num_asked)
        replica.limit = max(1, len(back) // 2)
        if loss.is_started_again:
            self._observer.notice(f"{replica.name} has ended: {loss.why}; it is started again, and nothing is lost")
            self._begin(replica)
        else:
            self._observer.notice(f"{replica.name} is given up: {loss.why}")
            self._replicas.remove(replica)
            if not self._replicas:
                ended = RunError(f"no replica is left: the last has ended: {loss.why}")
                raise error_of(loss.failure, replica.name) if loss.failure else ended
        self._fill_all()

    def _fail(self, one: Open, problem: str) -> Iterator[Stepped | Answered]:
        """Let a question fail under all plans that it has no answer under."""
        self._close(one)
        question = one.task.question
        yield from self._stepped(one, ((shared, False) for shared in needed(self._merged, one.left)))
        trace = Trace(question_id=question.id, answer="", finish_reason="error", seconds=0.0, steps=(), error=problem)
        while one.left:
            plan = one.left.pop()
            yield Answered(one.task, plan, Record(question=question, trace=trace), is_last=not one.left)

    def _show_now_and_then(self) -> None:
        if time.monotonic() - self._shown > _SHOW_SECONDS:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._observer.replicas([str(replica) for replica in self._replicas])


def _order(tasks: Sequence[Task], hands: tuple[int, int]) -> Order[Open]:
    """Return tasks in the order in which they are asked; see `Order`."""
    kinds = Kinds()
    sized = sorted(((characters_of(task), task) for task in tasks), key=itemgetter(0), reverse=True)
    return Order([Open(task, kinds.of(task.dataset, size), list(task.plans)) for size, task in sized], _kind, hands)


def _kind(one: Open) -> Kind:
    return one.kind
