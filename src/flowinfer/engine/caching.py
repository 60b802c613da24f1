"""Results of steps that are kept, and those that one step takes from another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowinfer.engine.adoption import ordered, renamed
from flowinfer.engine.base import MemberOrder, StepCache, StepKey
from flowinfer.engine.waiting import Turn, Waiting
from flowinfer.engine.work import Asked
from flowinfer.planning.merge import SharedStep
from flowinfer.results import StepResult


@dataclass(frozen=True)
class Caching:
    """Where results of steps are kept, and by what name."""

    cache_of: Callable[[SharedStep, Asked], StepCache]
    """The cache as the run that owns a step of a question sees it."""
    run_of: Callable[[SharedStep, Asked], str]
    """That run's name."""
    key: StepKey
    """By it a step takes another's result; an empty one is nobody else's."""
    order: MemberOrder

    def found(self, turn: Turn, key: str) -> StepResult | None:
        """Return the result that is kept under a key as that of a turn; None where there is none that tells enough."""
        stored = self.cache_of(turn.shared, turn.asked).get(key)
        adopted = stored and self._adopted(stored, turn)
        if adopted is None or (adopted.confidence is None and turn.shared.step.is_measured):
            return None
        return adopted

    def keep(self, result: StepResult, waiting: Waiting) -> StepResult:
        """Put a result into the cache; return it as it is kept."""
        turn = waiting.made_for
        stored = ordered(result, self._order(turn))
        if all(head.lost_at is None for head in stored.heads):
            self.cache_of(turn.shared, turn.asked).put(waiting.key, stored)
        return stored

    def share(self, stored: StepResult, waiting: Waiting, turn: Turn) -> StepResult:
        """Return a kept result as that of one who waited for it."""
        maker, taker = (self.run_of(one.shared, one.asked) for one in (waiting.made_for, turn))
        copy = stored.model_copy(update={"cached_from": maker if maker != taker else None})
        adopted = self._adopted(copy, turn)
        assert adopted is not None, "steps of one key have heads and prompts alike"
        return adopted

    def _adopted(self, stored: StepResult, turn: Turn) -> StepResult | None:
        return renamed(stored, self._order(turn), turn.shared.step)

    def _order(self, turn: Turn) -> Sequence[str]:
        return self.order(turn.shared.plan, turn.shared.step, turn.prompts)
