"""Steps of a plan over many questions, side by side: a row begins as soon as all that it reads has been written.

One thread and no locks: decoders whose device works by itself are brought on in turn (`RowStream`), so that serial
stages of different questions and independent branches of one overlap. A decoder that keeps the host busy runs over all
rows that wait for it when no other can go on; where all are of that kind, step follows step.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from flowinfer.engine.adoption import ordered, renamed
from flowinfer.engine.base import Completion, MemberOrder, Observer, Row, StepCache, StepKey
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.faults import question_fails
from flowinfer.engine.feeds import StepFeed
from flowinfer.engine.work import Work
from flowinfer.planning.plan import Plan, Step
from flowinfer.results import Trace

_PAUSE_SECONDS = 1e-4
"""Between looks at devices that are all busy: far below the time of the steps that they have been given."""


@dataclass(frozen=True)
class Keeping:
    """Where results of steps are kept, and by what name."""

    cache: StepCache
    key: StepKey
    order: MemberOrder


@dataclass(frozen=True)
class _Asked:
    """What a row was made for."""

    row: Row
    work: Work
    step: Step
    key: str


class Stages:
    """One run of some steps.

    Args:
        plan: has the steps.
        steps: whose models are resident together, in the plan's order.
        decoders: with the models.
        keeping: of results.
        observer: hears of steps that were taken from the cache.
    """

    def __init__(
        self, plan: Plan, steps: Sequence[Step], decoders: Decoders, keeping: Keeping, observer: Observer
    ) -> None:
        self._plan, self._steps, self._keeping, self._observer = plan, tuple(steps), keeping, observer
        self._feeds = {step.id: StepFeed(decoders, plan, step) for step in steps}
        self._asked: dict[int, _Asked] = {}
        self._open: dict[int, Work] = {}
        decoders.run_together(plan, self._steps)

    def run(self, works: Iterator[Work], most: int) -> Iterator[Trace]:
        """Yield the traces of questions that are done with the plan as they leave these steps.

        Args:
            works: taken as others leave.
            most: questions on their way at once.
        """
        try:
            while True:
                yield from self._take(works, most)
                if not self._open:
                    return
                with closing(self._go_on()) as completions:
                    for completion in completions:
                        yield from self._settle(completion)
        finally:
            for feed in self._feeds.values():
                feed.close()

    def _take(self, works: Iterator[Work], most: int) -> Iterator[Trace]:
        while len(self._open) < most and (work := next(works, None)) is not None:
            self._open[id(work)] = work
            self._begin(work)
            yield from self._leave(work)

    def _begin(self, work: Work) -> None:
        """Hand over every step of a question that can begin; take those that are cached."""
        for step in self._steps:  # a cached step lets later ones begin in the same pass
            if work.can_begin(step):
                with question_fails(partial(work.fail, step)):
                    self._begin_step(work, step)

    def _begin_step(self, work: Work, step: Step) -> None:
        prompts = work.begin(step)
        key = self._keeping.key(self._plan, step, prompts, work.question.id)
        stored = self._keeping.cache.get(key)
        adopted = stored and renamed(stored, self._keeping.order(self._plan, step, prompts), step)
        if adopted is None:
            row = Row(work.question.id, step.id, prompts, work.sources(step))
            self._asked[id(row)] = _Asked(row, work, step, key)
            self._feeds[step.id].add(row)
        else:
            self._observer.finished(work.question.id, adopted)
            work.accept(adopted)

    def _go_on(self) -> Generator[Completion, None, None]:
        """Give every stream a turn; where there is none, drain the first step that has rows."""
        busy = [feed for feed in self._feeds.values() if feed.num_rows]
        streams = [feed for feed in busy if feed.is_streamed]
        if not streams:
            yield from busy[0].drain()
            return
        for feed in streams:
            yield from feed.turn()
        if all(feed.is_waiting for feed in streams):
            time.sleep(_PAUSE_SECONDS)

    def _settle(self, completion: Completion) -> Iterator[Trace]:
        """Take how a row ended, and begin what waited for it."""
        asked = self._asked.pop(id(completion.row))
        work, step = asked.work, asked.step
        if completion.result is None:
            work.fail(step, completion.error or "failed")
        else:
            with question_fails(partial(work.fail, step)):
                order = self._keeping.order(self._plan, step, completion.row.prompts)
                self._keeping.cache.put(asked.key, ordered(completion.result, order))
                work.accept(completion.result)
        self._begin(work)
        if work.error is not None:
            self._withdraw(work)
        yield from self._leave(work)

    def _withdraw(self, work: Work) -> None:
        """Give up rows of a failed question that nobody needs any more, where they have not begun."""
        for asked in [asked for asked in self._asked.values() if asked.work is work]:
            if not work.wants(asked.step):
                self._feeds[asked.step.id].withdraw(asked.row)

    def _leave(self, work: Work) -> Iterator[Trace]:
        if id(work) in self._open and not any(work.wants(step) for step in self._steps):
            del self._open[id(work)]
            if work.is_done:
                yield work.trace()
