"""The least and the most that a question may cost, where steps may be skipped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from flowinfer.planning.plan import Plan, When, members
from flowinfer.spec import AUTO


@dataclass(frozen=True)
class Cost:
    """Of one question."""

    calls: int
    """Models that decode."""
    tokens: int
    """Most that the steps may write, all heads of a step counted once."""
    depth: int
    """Steps that wait for one another."""
    seconds: float | None = None
    """Along the longest chain of steps; None where not all of them were measured."""


@dataclass(frozen=True)
class Bounds:
    """Where every selection takes the first candidate that it can, and where its last; of routes, least and dearest."""

    least: Cost
    most: Cost


def bounds(plan: Plan, seconds: Mapping[str, float] | None = None) -> Bounds:
    """Return the least and the most that a question may cost.

    Args:
        seconds: of each step that was measured.
    """
    first = {step.id for step in plan.steps if all(_holds_always(plan, when) for when in step.when)}
    known, every = seconds or {}, {step.id for step in plan.steps}
    return Bounds(_cost(plan, first, known, min), _cost(plan, every, known, max))


def longest(plan: Plan, weights: Mapping[str, float]) -> float:
    """Return the largest sum of weights along a chain of steps that wait for one another; others do not count."""
    ends: dict[str, float] = {}
    for step in plan.steps:
        if step.id in weights:
            ends[step.id] = weights[step.id] + max((ends.get(name, 0.0) for name in plan.before(step)), default=0.0)
    return max(ends.values(), default=0.0)


def _cost(plan: Plan, run: Collection[str], seconds: Mapping[str, float], extreme: Callable[..., set[str]]) -> Cost:
    """Return each figure where routes pick the member that is extreme in it."""

    def of(measure: Callable[[Plan, Collection[str]], float]) -> float:
        left = set(run)
        for one in (selection for selection in plan.selections if selection.routes):
            members = [_member(plan, left, one.id, index) for index in range(len(one.candidates))]
            members = [steps for steps in members if steps]
            if members:
                left -= set().union(*members) - extreme(members, key=lambda steps: measure(plan, steps))
        return measure(plan, left)

    def measured(plan: Plan, steps: Collection[str]) -> float:
        return longest(plan, {name: seconds[name] for name in steps})

    took = of(measured) if set(run) <= seconds.keys() else None
    return Cost(int(of(_calls)), int(of(_tokens)), int(of(_depth)), took)


def _holds_always(plan: Plan, when: When) -> bool:
    """Return whether a condition holds whatever is written before: no candidate before can be accepted."""
    rule = plan.selection(when.selection).rule
    return when.picks or rule.at == AUTO or (rule.signal == "unchanged" and when.tried == 1)


def _member(plan: Plan, run: Collection[str], selection: str, index: int) -> set[str]:
    """Return those of some steps that run only where routes pick a member."""
    return {step.id for step in plan.steps if step.id in run and When(selection, index, picks=True) in step.when}


def _calls(plan: Plan, run: Collection[str]) -> int:
    return sum(1 for step in plan.steps if step.id in run for _ in members(step.source))


def _tokens(plan: Plan, run: Collection[str]) -> int:
    return sum(step.decoding.max_tokens for step in plan.steps if step.id in run)


def _depth(plan: Plan, run: Collection[str]) -> float:
    return longest(plan, dict.fromkeys(run, 1.0))
