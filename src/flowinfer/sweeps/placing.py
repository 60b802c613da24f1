"""One place for each model of a sweep, whichever path calls it, so that every model is loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowinfer.errors import MemoryShort, RunError
from flowinfer.machine import Machine
from flowinfer.planning.placement import place, ready
from flowinfer.planning.plan import Answer, Member, Plan, Source, Step, members
from flowinfer.spec import Flow, ModelSpec


@dataclass(frozen=True)
class Placed:
    """The plans of a sweep's flows on a machine."""

    plans: tuple[Plan | None, ...]
    """None where a flow cannot run here."""
    problems: tuple[str | None, ...]
    """Why not."""
    whole: Plan | None
    """All models together, as a plan to show; None if there is nothing to run."""
    fits: bool
    """Whether all models can be resident at once."""

    @property
    def num_unplaced(self) -> int:
        """Return how many flows cannot run."""
        return sum(plan is None for plan in self.plans)


def place_all(flows: Sequence[Flow], machine: Machine) -> Placed:
    """Compile and place a sweep's flows."""
    plans: list[Plan | None] = []
    problems: list[str | None] = []
    for flow in flows:
        try:
            plans.append(ready(flow, machine))
            problems.append(None)
        except RunError as error:
            plans.append(None)
            problems.append(error.message)
    found = [plan for plan in plans if plan is not None]
    if not found:
        return Placed(tuple(plans), tuple(problems), None, True)
    joined, names = _joined(found)
    try:
        whole = place(joined, machine)
    except MemoryShort:  # each path fits, but not with its models where the others need them
        return Placed(tuple(plans), tuple(problems), found[0], False)
    for index, plan in enumerate(plans):
        if plan is not None:
            placements = {name: whole.placements[names[_content(spec)]] for name, spec in plan.models.items()}
            plans[index] = replace(plan, placements=placements)
    return Placed(tuple(plans), tuple(problems), whole, len(whole.waves) == 1)


def _joined(plans: Sequence[Plan]) -> tuple[Plan, dict[str, str]]:
    """Return one plan with every model once, and the models' names there by what they are."""
    names: dict[str, str] = {}
    models: dict[str, ModelSpec] = {}
    steps: dict[tuple[str, ...], Step] = {}
    for plan in plans:
        for spec in plan.models.values():
            if _content(spec) not in names:
                name = spec.name if spec.name not in models else f"{spec.name}#{len(models)}"
                names[_content(spec)] = name
                models[name] = spec
        for step in plan.steps:
            source, draft = _renamed(step.source, plan, names), step.decoding.speculate
            if draft in plan.models:
                draft = names[_content(plan.models[draft])]
            decoding = step.decoding.model_copy(update={"speculate": draft})
            made = replace(step, id=f"s{len(steps) + 1}", source=source, decoding=decoding, reads=())
            steps.setdefault((*sorted({member.model for member in members(source)}), draft), made)
    answer = Answer("text", (next(iter(steps.values())).id,))
    return Plan("sweep", tuple(steps.values()), answer, models, plans[0].prompts), names


def _content(spec: ModelSpec) -> str:
    return spec.model_dump_json()


def _renamed(source: Source, plan: Plan, names: dict[str, str]) -> Source:
    if isinstance(source, Member):
        return replace(source, model=names[_content(plan.models[source.model])])
    return replace(source, sources=tuple(_renamed(inner, plan, names) for inner in source.sources))
