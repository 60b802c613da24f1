"""The sharing run: many plans over many data sets, and each pair's answers when its last question is answered.

Knows no folders: whoever calls it says which run a result belongs to, and keeps what comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowinfer.planning.merge import SharedStep, Use, loops_in_turn, merge
from flowinfer.planning.plan import Plan
from flowinfer.runs.answering import Answered, Answerer, Answering, Owners, Stepped, Task, needed
from flowinfer.tasks.base import Dataset

if TYPE_CHECKING:
    from flowinfer.engine.base import Observer, StepCache
    from flowinfer.engine.decoders import Decoders


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
    answers: dict[str, Answered] = field(default_factory=dict, init=False)
    """Those that have come, by question."""


@dataclass(frozen=True)
class Ended:
    """A job that is through."""

    job: Job
    answers: tuple[Answered, ...]
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
        elsewhere: makes what answers in the place of a scheduler here; it is told the plans and whose their steps are.
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
        elsewhere: Callable[[Sequence[Plan], Owners], Answerer] | None = None,
    ) -> None:
        self._elsewhere = elsewhere
        self._datasets, self._cache_of, self._decoders, self._observer = datasets, cache_of, decoders, observer
        self._plans = [plan for plan in plans if plan is not None]
        self._index = {index: at for at, index in enumerate(i for i, plan in enumerate(plans) if plan is not None)}
        """By index of a plan: which of those that run it is."""
        self.merged = merge(self._plans)
        self._steps = {shared.id: shared for shared in self.merged.steps}
        self.waves = loops_in_turn(self.merged.steps) if frees_models else ()

    def uses(self, plan: int) -> Mapping[str, Use]:
        """Return a plan's steps as shared ones."""
        return self.merged.uses[self._index[plan]]

    def run(self, jobs: Sequence[Job], on_step: Callable[[SharedStep, bool], None] | None = None) -> Iterator[Ended]:
        """Yield every job when its last question is answered.

        Args:
            jobs: what to run.
            on_step: hears each shared step of a question that ended, and whether it was decoded just now.
        """
        tasks = self._tasks(jobs)
        answerer = self._answerer(jobs)
        yield from (Ended(job, ()) for job in jobs if not job.left)
        open_jobs = {(self._index[job.plan], job.dataset): job for job in jobs}
        for event in answerer.run(tasks):
            match event:
                case Stepped() if on_step:
                    on_step(self._steps[event.shared], event.is_fresh)
                case Answered():
                    job = open_jobs[event.plan, event.task.dataset]
                    job.answers[event.task.question.id] = event
                    if len(job.answers) == len(job.left):
                        yield self._end(job, answerer.broken)

    def wanted(self, jobs: Sequence[Job]) -> Iterator[SharedStep]:
        """Yield each shared step once for every question that needs it."""
        yield from (self._steps[shared] for task in self._tasks(jobs) for shared in needed(self.merged, task.plans))

    def _answerer(self, jobs: Sequence[Job]) -> Answerer:
        from flowinfer.engine.patience import Patience

        owners = {(self._index[job.plan], job.dataset): job.run for job in jobs}
        if self._elsewhere is not None:
            return self._elsewhere(self._plans, owners)
        questions = sum(len(dataset.questions) for dataset in self._datasets)
        num_wanted = Counter(shared.id for shared in self.wanted(jobs))
        return Answering(
            self._plans,
            self.merged,
            owners,
            self._cache_of,
            self._decoders,
            self._observer,
            patience=lambda shared: Patience(has_answer=num_wanted[shared.id] < questions),
            waves=self.waves,
        )

    def _tasks(self, jobs: Sequence[Job]) -> list[Task]:
        """Return all questions, each asked of the plans of its jobs."""
        found = []
        for number, dataset in enumerate(self._datasets):
            own = [job for job in jobs if job.dataset == number]
            for question in dataset.questions:
                plans = tuple(self._index[job.plan] for job in own if question.id in job.left)
                if plans:
                    found.append(Task(question, plans, number))
        return found

    def _end(self, job: Job, broken: Mapping[str, str]) -> Ended:
        own = [name for name in needed(self.merged, [self._index[job.plan]]) if not self._steps[name].lanes]
        problem = next((broken[name] for name in own if name in broken), None)
        if problem is not None:
            return Ended(job, (), problem)
        questions = self._datasets[job.dataset].questions
        return Ended(job, tuple(job.answers[question.id] for question in questions if question.id in job.left))
