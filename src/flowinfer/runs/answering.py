"""Questions as records: each question's, under each plan that it is asked of, once the last step it needs has ended.

A sweep answers so, and so does each replica. `Answering` has a scheduler here; `replicas.pool` has many elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flowinfer.results import Question, Record
from flowinfer.runs.cache import member_order, step_key
from flowinfer.runs.judging import judged, majority
from flowinfer.tasks.base import question_text

if TYPE_CHECKING:
    from flowinfer.engine.base import Observer, StepCache
    from flowinfer.engine.decoders import Decoders
    from flowinfer.engine.patience import Patience
    from flowinfer.engine.work import Asked
    from flowinfer.planning.merge import Merged, SharedStep
    from flowinfer.planning.plan import Plan
    from flowinfer.tasks.answers.turns import NextQuestion

Owners = Mapping[tuple[int, int], str]
"""By index of a plan and of a data set: the run that its finished steps are kept for."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A question, and the plans that it is asked of."""

    question: Question
    plans: tuple[int, ...] = (0,)
    """By index."""
    dataset: int = 0
    """By index."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """A shared step of a question has ended."""

    task: Task
    shared: str
    is_fresh: bool
    """Whether it was decoded just now."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A question is answered under one of its plans, and judged; its steps have been told of before."""

    task: Task
    plan: int
    record: Record
    is_last: bool = True
    """Whether it was the last of the task's plans."""
    line: bytes | None = None
    """The record as a run's folder keeps it, where whoever made it has said so."""
    goes_on: NextQuestion | None = None
    """Where it goes on with another question, where whoever made it has looked."""


class Answerer(Protocol):
    """Whatever answers."""

    broken: dict[str, str]
    """Shared steps that could not run at all, and why."""

    def run(self, tasks: Iterable[Task | None]) -> Iterator[Stepped | Answered]:
        """Answer tasks, taken as others end; None = there is none now, but may be later."""


class Answering:
    """Answers by a scheduler of this process.

    Args:
        plans: the flows, placed.
        merged: their steps.
        owners: whose the finished steps are.
        cache_of: the cache of steps as a run of that name sees it; None: no step takes another run's result.
        decoders: with the models.
        observer: hears the engine.
        patience: see `Scheduler`.
        waves: see `Scheduler.run`.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        merged: Merged,
        owners: Owners,
        cache_of: Callable[[str], StepCache] | None,
        decoders: Decoders,
        observer: Observer,
        *,
        patience: Callable[[SharedStep], Patience] | None = None,
        waves: Sequence[Sequence[SharedStep]] = (),
    ) -> None:
        from flowinfer.engine.base import NoCache
        from flowinfer.engine.caching import Caching
        from flowinfer.engine.scheduler import Scheduler

        self._plans, self._merged, self._owners, self._waves = plans, merged, owners, waves
        self._steps = {shared.id: shared for shared in merged.steps}
        caching = Caching(
            lambda shared, asked: cache_of(self._owner(shared, asked)) if cache_of else NoCache(),
            self._owner,
            step_key if cache_of else lambda plan, step, prompts, question_id: "",
            member_order,
        )
        self._scheduler = Scheduler(merged.steps, decoders, caching, observer, patience=patience)
        self.broken = self._scheduler.broken
        self._open: dict[Asked, tuple[Task, list[int]]] = {}
        """What is under way, for whom, and the plans of it that have still to end."""

    def run(self, tasks: Iterable[Task | None]) -> Iterator[Stepped | Answered]:
        """Answer; see `Answerer`."""
        for finished in self._scheduler.run(self._source(tasks), waves=self._waves):
            asked = finished.asked
            task, left = self._open[asked]
            yield Stepped(task, finished.shared.id, finished.is_fresh)
            for plan in [plan for plan in left if not self._waits(plan, asked)]:
                left.remove(plan)
                if not left:
                    del self._open[asked]
                yield Answered(task, plan, self._record(plan, asked), is_last=not left)

    def _source(self, tasks: Iterable[Task | None]) -> Iterator[Asked | None]:
        from flowinfer.engine.work import Asked

        for task in tasks:
            if task is None:
                yield None
                continue
            asked = Asked(task.question, question_text, task.dataset, vote=majority)
            for plan in task.plans:
                asked.of(self._merged.uses[plan])
            self._open[asked] = task, list(task.plans)
            yield asked

    def _waits(self, plan: int, asked: Asked) -> bool:
        return any(shared in asked.wanted for shared in self.needed(plan))

    def needed(self, plan: int) -> dict[str, None]:
        """Return a plan's shared steps."""
        return needed(self._merged, [plan])

    def _owner(self, shared: SharedStep, asked: Asked) -> str:
        """Return the run that a step of a question is kept for."""
        return self._owners.get((shared.owner, asked.dataset), "")

    def _record(self, plan: int, asked: Asked) -> Record:
        from flowinfer.engine.work import trace_of

        uses, own = self._merged.uses[plan], self._owners.get((plan, asked.dataset), "")
        makers = {name: self._owner(self._steps[use.shared], asked) for name, use in uses.items()}
        foreign = {name: maker for name, maker in makers.items() if maker != own}
        return judged(asked.question, trace_of(self._plans[plan], uses, asked, foreign))


def needed(merged: Merged, plans: Sequence[int]) -> dict[str, None]:
    """Return the shared steps of some plans, each once."""
    return dict.fromkeys(use.shared for plan in plans for use in merged.uses[plan].values())
