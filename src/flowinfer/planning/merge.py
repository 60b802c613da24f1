"""Many plans as one: every step that several plans share stands once, and what can decode together is named alike.

Two steps are one where models, decoding, templates and all that they read agree; the order of a group's branches does
not count. Pure: nothing is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from flowinfer.planning.identity import Canonical, as_text, canonical
from flowinfer.planning.plan import Lane, Member, Plan, Selection, Step, When, members
from flowinfer.registry import backends


@dataclass(frozen=True)
class SharedSelection:
    """A selection of one plan, over shared steps."""

    id: str
    """By it other selections, conditions and fields know it."""
    selection: Selection
    """In the plan."""
    candidates: tuple[tuple[str, ...], ...]
    """Ids of shared steps and selections."""
    judges: tuple[str, ...]
    """Ids of shared steps."""
    gated: str
    """Id of the first shared step that may be skipped because of it."""
    lanes: tuple[tuple[str, ...], ...] = ()
    """Of a quorum: ids of each member's shared steps."""


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
    """Id of a step or selection whose text it reads, in its plan -> the shared id."""
    depth: int
    """Most steps that stand before it."""
    loop: str
    """Steps of one loop name decode together: same models, weights and decoding, whatever their prompts."""
    nodes: tuple[str, ...]
    """Its nodes in an order in which all steps of its loop agree."""
    draw: int = 0
    """How many equal steps stand before it in its plan: an endpoint may answer each otherwise, a local model not."""
    before: tuple[str, ...] = ()
    """Shared ids of the steps that it waits for."""
    when: tuple[When, ...] = ()
    """Its conditions, over shared selections."""
    lanes: tuple[Lane, ...] = ()
    """Its quorums, over shared selections."""
    selections: tuple[SharedSelection, ...] = ()
    """Those whose first step it is that may be skipped, or lost."""

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
    selections: Mapping[str, str] = field(default_factory=dict)
    """Selections of the plan that its conditions and quorums name -> the shared ones."""


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
        names: dict[str, str] = {one.id: _selection_id(index, one) for one in plan.selections}
        for step in plan.steps:
            names[step.id] = f"{index}/{step.id}"
            reads, when, lanes = _read(plan, step, names), _when(step, names), _lanes(step, names)
            before = [own[name] for name in plan.before(step)]
            loop = _loop(plan, step)
            own[step.id] = SharedStep(
                id=names[step.id],
                owner=index,
                plan=plan,
                step=step,
                reads=reads,
                depth=1 + max((one.depth for one in before), default=-1),
                loop=_loop_name(loop, step),
                nodes=loop.nodes,
                before=tuple(one.id for one in before),
                when=when,
                lanes=lanes,
            )
        for selection in _selections(plan, names):
            name = next(name for name, one in own.items() if one.id == selection.gated)
            own[name] = replace(own[name], selections=(*own[name].selections, selection))
        steps += own.values()
        uses.append(
            {
                name: Use(one.id, {node: node for node in one.nodes}, _named(one.step, names))
                for name, one in own.items()
            }
        )
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
        names: dict[str, str] = {one.id: _selection_id(index, one) for one in plan.selections}
        signatures: dict[str, str] = {}
        for step in plan.steps:
            reads, when, lanes = _read(plan, step, names), _when(step, names), _lanes(step, names)
            described = _describe(plan, step, reads)
            draw, decisive = 0, _decisive(plan, step, described, when, lanes)
            while _is_text_only(plan, step) and self._is_used(uses, _digest(decisive | {"draw": draw})):
                draw += 1
            signature = _digest(decisive | {"draw": draw})
            if signature not in self.steps:
                before = [self.steps[signatures[one]] for one in plan.before(step)]
                loop = _loop(plan, step)
                self.steps[signature] = SharedStep(
                    id=f"u{len(self.steps) + 1}",
                    owner=index,
                    plan=plan,
                    step=step,
                    reads=reads,
                    depth=1 + max((one.depth for one in before), default=-1),
                    loop=_loop_name(loop, step),
                    nodes=loop.nodes,
                    draw=draw,
                    before=tuple(one.id for one in before),
                    when=when,
                    lanes=lanes,
                )
                self._nodes[signature] = described.nodes
            shared = self.steps[signature]
            nodes = dict(zip(self._nodes[signature], described.nodes, strict=True))
            uses[step.id], names[step.id], signatures[step.id] = (
                Use(shared.id, nodes, _named(step, names)),
                shared.id,
                signature,
            )
        for selection in _selections(plan, names):
            gated = next(signature for signature in signatures.values() if self.steps[signature].id == selection.gated)
            first = self.steps[gated]
            self.steps[gated] = replace(first, selections=(*first.selections, selection))
        return uses

    def _is_used(self, uses: Mapping[str, Use], signature: str) -> bool:
        return signature in self.steps and any(use.shared == self.steps[signature].id for use in uses.values())


def _selection_id(index: int, selection: Selection) -> str:
    """Return the shared id of a plan's selection: it is nobody else's, and so are the steps that go by it."""
    return f"{index}.{selection.id}"


def _read(plan: Plan, step: Step, names: Mapping[str, str]) -> dict[str, str]:
    """Return the shared ids of the steps and selections whose texts a step reads."""
    selections = {one.id for one in plan.selections}
    texts = {text for member in members(step.source) for field in member.fields.values() for text in field}
    behind = {writer for text in texts & selections for writer in plan.writers(text)} - texts
    read = [name for name in step.reads if name not in behind]
    return {name: names[name] for name in [*read, *sorted(texts & selections)]}


def _when(step: Step, names: Mapping[str, str]) -> tuple[When, ...]:
    return tuple(replace(one, selection=names[one.selection]) for one in step.when)


def _lanes(step: Step, names: Mapping[str, str]) -> tuple[Lane, ...]:
    return tuple(Lane(names[one.selection], one.member) for one in step.lanes)


def _named(step: Step, names: Mapping[str, str]) -> dict[str, str]:
    """Return the shared ids of the selections that a step's conditions and quorums name."""
    used = [*(one.selection for one in step.when), *(one.selection for one in step.lanes)]
    return {name: names[name] for name in used}


def _selections(plan: Plan, names: Mapping[str, str]) -> list[SharedSelection]:
    """Return a plan's selections over shared steps."""
    found = []
    for one in plan.selections:
        gated = next(step.id for step in plan.steps if one.id in _named(step, names))
        candidates = tuple(tuple(names[text] for text in texts) for texts in one.candidates)
        judges = tuple(names[judge] for judge in one.judges)
        lanes = [
            tuple(names[step.id] for step in plan.steps if Lane(one.id, index) in step.lanes)
            for index in range(len(candidates) if one.quorum else 0)
        ]
        found.append(SharedSelection(names[one.id], one, candidates, judges, names[gated], tuple(lanes)))
    return found


def _describe(plan: Plan, step: Step, reads: Mapping[str, str]) -> Canonical:
    def describe(member: Member) -> dict[str, Any]:
        fields = {field: [reads[one] for one in steps] for field, steps in member.fields.items()}
        return _model(plan, member) | {"template": member.template, "fields": fields}

    return canonical(step.source, describe)


def _decisive(
    plan: Plan, step: Step, described: Canonical, when: tuple[When, ...], lanes: tuple[Lane, ...]
) -> dict[str, Any]:
    decisive: dict[str, Any] = {
        **({"when": [[one.selection, one.tried] for one in when]} if when else {}),
        **({"lanes": [[one.selection, one.member] for one in lanes]} if lanes else {}),
        **({"is_measured": True} if step.is_measured else {}),
        "source": described.description,
        "decoding": step.decoding.decisive(),
    }
    if any(len(steps) > 1 for member in members(step.source) for steps in member.fields.values()):
        decisive["prompts"] = plan.prompts  # says how several answers are joined
    if step.decoding.temperature > 0:
        decisive["stream"] = step.stream
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
    measured = {"is_measured": True} if step.is_measured else {}
    return _digest({"source": loop.description, "decoding": step.decoding.of_loop()} | measured)


def _model(plan: Plan, member: Member) -> dict[str, Any]:
    return {"name": member.model, "model": plan.models[member.model].decisive()}


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(as_text(data).encode("utf-8", errors="surrogatepass")).hexdigest()
