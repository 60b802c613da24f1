"""The least and the most that a question may cost, where steps may be skipped."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from flowinfer.planning.plan import Plan, members


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
    """Where every selection takes its first candidate, and where each takes its last."""

    least: Cost
    most: Cost


def bounds(plan: Plan) -> Bounds:
    """Return the least and the most that a question may cost."""
    return Bounds(
        _cost(plan, {step.id for step in plan.steps if not step.when}), _cost(plan, {step.id for step in plan.steps})
    )


def _cost(plan: Plan, run: Collection[str]) -> Cost:
    steps = [step for step in plan.steps if step.id in run]
    depths: dict[str, int] = {}
    for step in steps:
        depths[step.id] = 1 + max((depths.get(name, 0) for name in plan.before(step)), default=0)
    return Cost(
        calls=sum(1 for step in steps for _ in members(step.source)),
        tokens=sum(step.decoding.max_tokens for step in steps),
        depth=max(depths.values()),
    )
