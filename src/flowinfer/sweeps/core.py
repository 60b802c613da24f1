"""The sharing run: many plans over many data sets, and each pair's records when its last question is answered.

Knows no folders: whoever calls it says which run a result belongs to, and keeps what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowinfer.planning.merge import SharedStep, Use, loops_in_turn, merge
from flowinfer.planning.plan import Plan
from flowinfer.results import Record
from flowinfer.runs.cache import member_order, step_key
from flowinfer.runs.experiment import judged, majority
from flowinfer.tasks.base import Dataset, question_text

if TYPE_CHECKING:
    from flowinfer.engine.base import Observer, StepCache
    from flowinfer.engine.decoders import Decoders
    from flowinfer.engine.work import Asked, Runner


@dataclass(eq=False)
class Job:
    """One plan over one data set."""

    plan: int
    """Index of its plan."""
    dataset: int
    """Index of its data set."""
    run: str
    """Name of its run, for cached steps."""
    left: frozenset[str]
    """Ids of the questions that are to be asked."""
    asked: list[Asked] = field(default_factory=list, init=False)
    """Those questions, in the data set's order."""
    open_steps: int = field(default=0, init=False)


@dataclass(frozen=True)
class Ended:
    """A job that is through."""

    job: Job
    records: tuple[Record, ...]
    """Of the questions that were asked now, in the data set's order; none where the path failed."""
    error: str | None = None
    """Why the whole path failed."""


class Sharing:
    """Run jobs together.

    Args:
        plans: the flows, placed; None for those that no job runs.
        datasets: what they are asked.
        cache_of: the cache of steps as a run of that name sees it.
        decoders: with the models.
        observer: hears the engine.
        frees_models: run one loop after another, with no other's models in memory, because not all fit together.
        elsewhere: makes what runs the plans' merged steps in the place of a scheduler here; it is told the plans, and
            by index of a plan there and of a data set the run that finished steps are kept for.
    """

    def __init__(
        self,
        plans: Sequence[Plan | None],
        datasets: Sequence[Dataset],
        cache_of: Callable[[str], StepCache],
        decoders: Decoders,
        observer: Observer,
        *,
        frees_models: bool = False,
        elsewhere: Callable[[Sequence[Plan], Mapping[tuple[int, int], str]], Runner] | None = None,
    ) -> None:
        self._elsewhere = elsewhere
        self._datasets, self._cache_of, self._decoders, self._observer = datasets, cache_of, decoders, observer
        self._plans = {index: plan for index, plan in enumerate(plans) if plan is not None}
        self._index = tuple(self._plans)
        self.merged = merge(list(self._plans.values()))
        self.waves = loops_in_turn(self.merged.steps) if frees_models else ()

    def uses(self, plan: int) -> Mapping[str, Use]:
        """Return a plan's steps as shared ones."""
        return self.merged.uses[self._index.index(plan)]

    def run(self, jobs: Sequence[Job], on_step: Callable[[SharedStep, bool], None] | None = None) -> Iterator[Ended]:
        """Yield every job when its last question is answered.

        Args:
            jobs: what to run.
            on_step: hears each shared step of a question that ended, and whether it was decoded just now.
        """
        from flowinfer.engine.patience import Patience
        from flowinfer.engine.scheduler import Caching, Scheduler

        owners = {(job.plan, job.dataset): job.run for job in jobs}
        everything = self._ask(jobs)

        def run_of(shared: SharedStep, one: Asked) -> str:
            return owners.get((self._index[shared.owner], one.dataset), "")

        def patience(shared: SharedStep) -> Patience:
            return Patience(has_answer=shared.id in resumed)

        resumed = {step.id for step in self.merged.steps if any(step.id not in one.wanted for one in everything)}
        caching = Caching(lambda shared, one: self._cache_of(run_of(shared, one)), run_of, step_key, member_order)
        if self._elsewhere is None:
            runner: Runner = Scheduler(self.merged.steps, self._decoders, caching, self._observer, patience=patience)
        else:
            runs = {(self._index.index(plan), dataset): run for (plan, dataset), run in owners.items()}
            runner = self._elsewhere(list(self._plans.values()), runs)
        waiting: dict[tuple[int, str], list[Job]] = {}
        for job in jobs:
            shared_ids = {use.shared for use in self.uses(job.plan).values()}
            job.open_steps = len(shared_ids) * len(job.asked)
            for shared_id in shared_ids:
                waiting.setdefault((job.dataset, shared_id), []).append(job)
        yield from (Ended(job, ()) for job in jobs if not job.left)
        for finished in runner.run(everything, waves=self.waves):
            if on_step:
                on_step(finished.shared, finished.is_fresh)
            for job in waiting.get((finished.asked.dataset, finished.shared.id), ()):
                job.open_steps -= finished.asked.question.id in job.left
                if job.open_steps == 0 and job.left:
                    yield self._end(job, runner, run_of)

    def wanted(self, jobs: Sequence[Job]) -> Iterator[SharedStep]:
        """Yield each shared step once for every question that needs it."""
        steps = {shared.id: shared for shared in self.merged.steps}
        yield from (steps[shared] for one in self._ask(jobs) for shared in one.wanted)

    def _ask(self, jobs: Sequence[Job]) -> list[Asked]:
        """Return all questions, each asked of the plans of its jobs."""
        from flowinfer.engine.work import Asked

        asked = [
            [Asked(question, question_text, index, vote=majority) for question in dataset.questions]
            for index, dataset in enumerate(self._datasets)
        ]
        for job in jobs:
            uses = self.uses(job.plan)
            job.asked = [one.of(uses) for one in asked[job.dataset] if one.question.id in job.left]
        return [one for group in asked for one in group]

    def _end(self, job: Job, runner: Runner, run_of: Callable[[SharedStep, Asked], str]) -> Ended:
        from flowinfer.engine.work import trace_of

        uses, steps = self.uses(job.plan), {shared.id: shared for shared in self.merged.steps}
        broken = runner.broken
        needed = [use.shared for use in uses.values() if not steps[use.shared].lanes]
        problem = next((broken[shared] for shared in needed if shared in broken), None)
        if problem is not None:
            return Ended(job, (), problem)
        records = []
        for one in job.asked:
            makers = {name: run_of(steps[use.shared], one) for name, use in uses.items()}
            foreign = {name: maker for name, maker in makers.items() if maker != job.run}
            trace = trace_of(self._plans[job.plan], uses, one, foreign)
            records.append(judged(one.question, trace))
        return Ended(job, tuple(records))
