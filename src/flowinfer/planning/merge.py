"""Many plans as one: every step that several plans share stands once, and what can decode together is named alike.

Two steps are one where models, decoding, templates and all that they read agree; the order of a group's branches does
not count. Pure: nothing is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flowinfer.planning.identity import Canonical, as_text, canonical
from flowinfer.planning.plan import Member, Plan, Step, members
from flowinfer.registry import backends


@dataclass(frozen=True)
class SharedStep:
    """A step of one or more plans."""

    id: str
    """u1, u2, ..."""
    owner: int
    """Index of the first plan that has it."""
    plan: Plan
    """That plan."""
    step: Step
    """The step there."""
    reads: Mapping[str, str]
    """Id of a step that it reads, in its plan -> that step's shared id."""
    depth: int
    """Most steps that stand before it."""
    loop: str
    """Steps of one loop name decode together: same models, weights and decoding, whatever their prompts."""
    nodes: tuple[str, ...]
    """Its nodes in an order in which all steps of its loop agree."""
    draw: int = 0
    """How many equal steps stand before it in its plan: an endpoint may answer each otherwise, a local model not."""

    @property
    def num_calls(self) -> int:
        """Return how many models decode."""
        return len(self.nodes)


@dataclass(frozen=True)
class Use:
    """A plan's step as a shared one."""

    shared: str
    nodes: Mapping[str, str]
    """Node of the shared step -> node of the plan."""


@dataclass(frozen=True)
class Merged:
    """The steps of all plans."""

    steps: tuple[SharedStep, ...]
    """Every step after those that it reads."""
    uses: tuple[Mapping[str, Use], ...]
    """For each plan: id of its step -> the shared one."""

    @property
    def calls_alone(self) -> int:
        """Return the model calls per question of a run that goes path by path."""
        calls = {shared.id: shared.num_calls for shared in self.steps}
        return sum(calls[use.shared] for uses in self.uses for use in uses.values())

    @property
    def calls_shared(self) -> int:
        """Return the model calls per question with sharing."""
        return sum(shared.num_calls for shared in self.steps)


def merge(plans: Sequence[Plan]) -> Merged:
    """Find the steps that plans share."""
    merger = _Merger()
    uses = tuple(merger.add(index, plan) for index, plan in enumerate(plans))
    return Merged(tuple(merger.steps.values()), uses)


def beside(plans: Sequence[Plan]) -> Merged:
    """Let each plan keep all of its steps, since each question may give them options of its own; loops are shared."""
    steps: list[SharedStep] = []
    uses: list[dict[str, Use]] = []
    for index, plan in enumerate(plans):
        own: dict[str, SharedStep] = {}
        for step in plan.steps:
            reads = {name: own[name].id for name in step.reads}
            depth = 1 + max((own[name].depth for name in step.reads), default=-1)
            loop = _loop(plan, step)
            own[step.id] = SharedStep(
                f"{index}/{step.id}", index, plan, step, reads, depth, _loop_name(loop, step), loop.nodes
            )
        steps += own.values()
        uses.append({name: Use(one.id, {node: node for node in one.nodes}) for name, one in own.items()})
    return Merged(tuple(steps), tuple(uses))


def loops_in_turn(steps: Sequence[SharedStep]) -> list[list[SharedStep]]:
    """Return shared steps in an order in which one loop after another can run them, depth by depth."""

    def order(shared: SharedStep) -> tuple[int, int, list[str], str]:
        names = sorted(member.model for member in members(shared.step.source))
        return shared.depth, len(names), names, shared.loop

    return [list(group) for _, group in groupby(sorted(steps, key=order), key=order)]


class _Merger:
    def __init__(self) -> None:
        self.steps: dict[str, SharedStep] = {}
        """Signature -> step."""
        self._nodes: dict[str, tuple[str, ...]] = {}
        """Signature -> nodes in its order."""

    def add(self, index: int, plan: Plan) -> dict[str, Use]:
        uses: dict[str, Use] = {}
        for step in plan.steps:
            reads = {name: uses[name].shared for name in step.reads}
            described = _describe(plan, step, reads)
            draw, decisive = 0, _decisive(plan, step, described)
            while _is_text_only(plan, step) and self._is_used(uses, _digest(decisive | {"draw": draw})):
                draw += 1
            signature = _digest(decisive | {"draw": draw})
            if signature not in self.steps:
                depth = 1 + max((self._depth(one) for one in reads.values()), default=-1)
                loop = _loop(plan, step)
                self.steps[signature] = SharedStep(
                    f"u{len(self.steps) + 1}",
                    index,
                    plan,
                    step,
                    reads,
                    depth,
                    _loop_name(loop, step),
                    loop.nodes,
                    draw,
                )
                self._nodes[signature] = described.nodes
            shared = self.steps[signature]
            names = dict(zip(self._nodes[signature], described.nodes, strict=True))
            uses[step.id] = Use(shared.id, names)
        return uses

    def _is_used(self, uses: Mapping[str, Use], signature: str) -> bool:
        return signature in self.steps and any(use.shared == self.steps[signature].id for use in uses.values())

    def _depth(self, shared_id: str) -> int:
        return next(shared.depth for shared in self.steps.values() if shared.id == shared_id)


def _describe(plan: Plan, step: Step, reads: Mapping[str, str]) -> Canonical:
    def describe(member: Member) -> dict[str, Any]:
        fields = {field: [reads[one] for one in steps] for field, steps in member.fields.items()}
        return _model(plan, member) | {"template": member.template, "fields": fields}

    return canonical(step.source, describe)


def _decisive(plan: Plan, step: Step, described: Canonical) -> dict[str, Any]:
    decisive: dict[str, Any] = {
        "source": described.description,
        "decoding": step.decoding.decisive(),
    }
    if any(len(steps) > 1 for member in members(step.source) for steps in member.fields.values()):
        decisive["prompts"] = plan.prompts  # says how several answers are joined
    if step.decoding.temperature > 0:
        decisive["stream"] = step.id
    return decisive


def _is_text_only(plan: Plan, step: Step) -> bool:
    known = (backends().get(plan.models[member.model].backend) for member in members(step.source))
    return any(backend is not None and backend.text_only for backend in known)


def _loop(plan: Plan, step: Step) -> Canonical:
    names = [member.model for member in members(step.source)]
    is_twice = len(set(names)) < len(names)  # then prompts decide the order of equal members

    def describe(member: Member) -> dict[str, Any]:
        own = {"template": member.template, "fields": sorted(member.fields)} if is_twice else {}
        return _model(plan, member) | own

    return canonical(step.source, describe)


def _loop_name(loop: Canonical, step: Step) -> str:
    return _digest({"source": loop.description, "decoding": step.decoding.of_loop()})


def _model(plan: Plan, member: Member) -> dict[str, Any]:
    return {"name": member.model, "model": plan.models[member.model].decisive()}


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(as_text(data).encode("utf-8", errors="surrogatepass")).hexdigest()
