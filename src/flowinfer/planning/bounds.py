"""The least and the most that a question may cost, where steps may be skipped."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from flowinfer.planning.plan import Plan, When, members


@dataclass(frozen=True)
class Cost:
    """Of one question."""

    calls: int
    """Models that decode."""
    tokens: int
    """Most that the steps may write, all heads of a step counted once."""
    depth: int
    """Steps that wait for one another."""


@dataclass(frozen=True)
class Bounds:
    """Where every selection takes its first candidate, and where each takes its last; of routes, least and dearest."""

    least: Cost
    most: Cost


def bounds(plan: Plan) -> Bounds:
    """Return the least and the most that a question may cost."""
    first = {step.id for step in plan.steps if all(when.picks for when in step.when)}
    return Bounds(_cost(plan, first, min), _cost(plan, {step.id for step in plan.steps}, max))


def _cost(plan: Plan, run: Collection[str], extreme: Callable[..., set[str]]) -> Cost:
    """Return each figure where routes pick the member that is extreme in it."""

    def of(measure: Callable[[Plan, Collection[str]], int]) -> int:
        left = set(run)
        for one in (selection for selection in plan.selections if selection.routes):
            members = [_member(plan, left, one.id, index) for index in range(len(one.candidates))]
            members = [steps for steps in members if steps]
            if members:
                left -= set().union(*members) - extreme(members, key=lambda steps: measure(plan, steps))
        return measure(plan, left)

    return Cost(of(_calls), of(_tokens), of(_depth))


def _member(plan: Plan, run: Collection[str], selection: str, index: int) -> set[str]:
    """Return those of some steps that run only where routes pick a member."""
    return {step.id for step in plan.steps if step.id in run and When(selection, index, picks=True) in step.when}


def _calls(plan: Plan, run: Collection[str]) -> int:
    return sum(1 for step in plan.steps if step.id in run for _ in members(step.source))


def _tokens(plan: Plan, run: Collection[str]) -> int:
    return sum(step.decoding.max_tokens for step in plan.steps if step.id in run)


def _depth(plan: Plan, run: Collection[str]) -> int:
    depths: dict[str, int] = {}
    for step in (step for step in plan.steps if step.id in run):
        depths[step.id] = 1 + max((depths.get(name, 0) for name in plan.before(step)), default=0)
    return max(depths.values())
