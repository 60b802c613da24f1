"""The sharing run: many plans over many data sets, and each pair's records when its last question is answered.

Knows no folders: whoever calls it says which run a result belongs to, and keeps what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowinfer.planning.merge import Merged, SharedStep, Use, merge
from flowinfer.planning.plan import Plan
from flowinfer.results import Record, Trace
from flowinfer.runs.cache import member_order, step_key
from flowinfer.runs.experiment import judged, majority
from flowinfer.tasks.base import Dataset, question_text

if TYPE_CHECKING:
    from flowinfer.engine.base import Observer, StepCache
    from flowinfer.engine.decoders import Decoders
    from flowinfer.engine.pooled import Asked


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
        frees_models: see `Pooled`.
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
    ) -> None:
        self._plans = tuple(plans)
        self._datasets = tuple(datasets)
        self._cache_of = cache_of
        self._decoders = decoders
        self._observer = observer
        self._frees_models = frees_models
        known = [index for index, plan in enumerate(plans) if plan is not None]
        self.merged = merge([plan for plan in plans if plan is not None])
        self._place = {index: place for place, index in enumerate(known)}
        self._index = dict(enumerate(known))

    def uses(self, plan: int) -> Mapping[str, Use]:
        """Return a plan's steps as shared ones."""
        return self.merged.uses[self._place[plan]]

    def run(self, jobs: Sequence[Job], on_step: Callable[[SharedStep, bool], None] | None = None) -> Iterator[Ended]:
        """Yield every job when its last question is answered.

        Args:
            jobs: what to run.
            on_step: hears each shared step of a question that ended, and whether it was decoded just now.
        """
        from flowinfer.engine.pooled import Caching, Pooled

        owners = {(job.plan, job.dataset): job.run for job in jobs}
        asked = self._ask(jobs)

        def run_of(shared: SharedStep, one: Asked) -> str:
            return owners.get((self._index[shared.owner], one.dataset), "")

        caching = Caching(lambda shared, one: self._cache_of(run_of(shared, one)), run_of, step_key, member_order)
        pooled = Pooled(self.merged.steps, self._decoders, caching, self._observer, frees_models=self._frees_models)
        waiting = self._by_step(jobs)
        yield from (Ended(job, ()) for job in jobs if not job.left)
        for finished in pooled.run([one for group in asked for one in group]):
            if on_step:
                on_step(finished.shared, finished.is_fresh)
            for job in waiting.get((finished.asked.dataset, finished.shared.id), ()):
                job.open_steps -= finished.asked.question.id in job.left
                if job.open_steps == 0 and job.left:
                    yield self._end(job, asked[job.dataset], pooled.broken, run_of)

    def wanted(self, jobs: Sequence[Job]) -> Iterator[SharedStep]:
        """Yield each shared step once for every question that needs it."""
        for group in self._ask(jobs):
            for one in group:
                yield from (shared for shared in self.merged.steps if shared.id in one.wanted)

    def _ask(self, jobs: Sequence[Job]) -> list[list[Asked]]:
        from flowinfer.engine.pooled import Asked

        asked = [
            [Asked(index, question, question_text) for question in dataset.questions]
            for index, dataset in enumerate(self._datasets)
        ]
        for job in jobs:
            needed = {use.shared for use in self.uses(job.plan).values()}
            for one in asked[job.dataset]:
                if one.question.id in job.left:
                    one.wanted |= needed
        return asked

    def _by_step(self, jobs: Sequence[Job]) -> dict[tuple[int, str], list[Job]]:
        found: dict[tuple[int, str], list[Job]] = {}
        for job in jobs:
            needed = {use.shared for use in self.uses(job.plan).values()}
            job.open_steps = len(needed) * len(job.left)
            for shared in needed:
                found.setdefault((job.dataset, shared), []).append(job)
        return found

    def _end(
        self,
        job: Job,
        asked: Sequence[Asked],
        broken: Mapping[str, str],
        run_of: Callable[[SharedStep, Asked], str],
    ) -> Ended:
        uses = self.uses(job.plan)
        problem = next((broken[use.shared] for use in uses.values() if use.shared in broken), None)
        if problem is not None:
            return Ended(job, (), problem)
        records = []
        for one in asked:
            if one.question.id in job.left:
                trace = self._trace(job, one, run_of)
                records.append(judged(one.question, trace))
        return Ended(job, tuple(records))

    def _trace(self, job: Job, one: Asked, run_of: Callable[[SharedStep, Asked], str]) -> Trace:
        plan = self._plans[job.plan]
        assert plan is not None, "jobs have plans"
        steps = {shared.id: shared for shared in self.merged.steps}
        makers = {name: run_of(steps[use.shared], one) for name, use in self.uses(job.plan).items()}
        foreign = {name: maker for name, maker in makers.items() if maker != job.run}
        return trace_of(plan, self.uses(job.plan), one, foreign)


def trace_of(plan: Plan, uses: Mapping[str, Use], asked: Asked, foreign: Mapping[str, str]) -> Trace:
    """Return a plan's trace from shared results.

    Args:
        uses: the plan's steps as shared ones.
        asked: holds the results.
        foreign: for the steps that another run made, its name.
    """
    from flowinfer.engine.adoption import moved
    from flowinfer.engine.work import Work

    work = Work(plan, asked.question, asked.text, majority)
    for step in plan.steps:
        use = uses[step.id]
        if use.shared in asked.errors:
            work.fail(step, asked.errors[use.shared])
            break
        result = moved(asked.results[use.shared], use.nodes, step)
        if result.cached_from is None and step.id in foreign:
            result = result.model_copy(update={"cached_from": foreign[step.id]})
        work.accept(result)
    return work.trace()


def calls_alone(merged: Merged, questions: int) -> int:
    """Return how many model calls a run path by path makes over so many questions."""
    return merged.calls_alone * questions
