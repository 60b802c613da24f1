"""The timing pass: questions asked alone, in turn over all paths, so that a machine that slows down slows all alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowinfer.engine.base import NoCache, Observer
from flowinfer.engine.caching import Caching
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.models import ModelPool
from flowinfer.engine.scheduler import Scheduler
from flowinfer.engine.work import Asked, trace_of
from flowinfer.planning.plan import Plan
from flowinfer.results import Question, Record
from flowinfer.runs.cache import member_order, step_key
from flowinfer.runs.judging import judged, majority
from flowinfer.sweeps.core import Sharing
from flowinfer.tasks.base import Dataset, question_text


@dataclass(frozen=True)
class Turn:
    """One question of one path, to be timed."""

    plan: int
    dataset: int
    question: Question


def turns(plans: Sequence[int], datasets: Sequence[Dataset], num: int, *, by_path: bool) -> list[Turn]:
    """List the first questions of each data set for each plan.

    Args:
        by_path: all of a path's questions together, where models must be loaded in turn; else paths take turns, and
            each round begins with another path.
    """
    found = []
    for index in range(num):
        for number, dataset in enumerate(datasets):
            if index < len(dataset.questions):
                start = (index * len(datasets) + number) % max(len(plans), 1)
                order = [*plans[start:], *plans[:start]]
                found += [Turn(plan, number, dataset.questions[index]) for plan in order]
    return sorted(found, key=lambda turn: turn.plan) if by_path else found


class Stopwatch:
    """Time questions alone: batch 1, nothing cached, models loaded and warm.

    Args:
        sharing: knows the plans' steps, and whether their models are in memory together.
        pool: the models.
    """

    def __init__(self, sharing: Sharing, pool: ModelPool, observer: Observer) -> None:
        caching = Caching(lambda shared, asked: NoCache(), lambda shared, asked: "", step_key, member_order)
        self._sharing = sharing
        self._scheduler = Scheduler(sharing.merged.steps, Decoders(pool, observer, 1), caching, observer)
        self._loops = {shared.id: shared.loop for shared in sharing.merged.steps}
        self._warm: set[str] = set()

    def run(self, plans: Sequence[Plan | None], todo: Sequence[Turn]) -> Iterator[tuple[Turn, Record]]:
        """Yield each turn with its record, whose seconds are measured."""
        for turn in todo:
            plan = plans[turn.plan]
            assert plan is not None, "only placed plans are timed"
            loops = {self._loops[use.shared] for use in self._sharing.uses(turn.plan).values()}
            if not loops <= self._warm:
                self._record(plan, turn)  # untimed: what only the first call of a model costs
                self._warm = loops if self._sharing.waves else self._warm | loops
            yield turn, self._record(plan, turn)

    def _record(self, plan: Plan, turn: Turn) -> Record:
        uses = self._sharing.uses(turn.plan)
        asked = Asked(turn.question, question_text, turn.dataset, vote=majority).of(uses)
        for _ in self._scheduler.run([asked], waves=self._sharing.waves):
            pass
        return judged(turn.question, trace_of(plan, uses, asked))
