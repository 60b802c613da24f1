"""A plan as plain data: for run folders, and for its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from flowinfer.planning.plan import Member, Need, Placement, Plan, Selection, Source, Step, Wave, When, members

_FORMAT = 1
"""Version of the plan's form and of the code's meaning of it; part of every fingerprint."""
PLACED = ("fingerprint", "needs", "placements", "waves")
"""What a plan says of the machine that it is for, and of which plan that is true."""


def to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    return {
        "version": _FORMAT,
        "flow": plan.flow,
        "fingerprint": fingerprint(plan),
        "prompts": plan.prompts,
        "steps": [_step_json(step) for step in plan.steps],
        **_decided_json(plan),
        "models": {name: spec.model_dump() for name, spec in plan.models.items()},
        "needs": {name: asdict(need) for name, need in plan.needs.items()},
        "placements": {name: asdict(placement) for name, placement in plan.placements.items()},
        "waves": [asdict(wave) for wave in plan.waves],
    }


def placed_as(plan: Plan, said: Mapping[str, Any]) -> Plan:
    """Return a plan with its models where another machine's, as plain data, has them.

    Raises:
        ValidationError: the data say no such thing.
    """
    needs = TypeAdapter(dict[str, Need]).validate_python(said.get("needs"))
    placements = TypeAdapter(dict[str, Placement]).validate_python(said.get("placements"))
    waves = TypeAdapter(tuple[Wave, ...]).validate_python(said.get("waves"))
    return replace(plan, needs=needs, placements=placements, waves=waves)


def _decided_json(plan: Plan) -> dict[str, Any]:
    """Return the answer, and the selections where there are any: plans of before have none."""
    answer: dict[str, Any] = {"kind": plan.answer.kind, "steps": plan.answer.steps}
    answer |= {"weights": dict(plan.answer.weights)} if plan.answer.weights else {}
    if not plan.selections:
        return {"answer": answer}
    return {
        "answer": answer | {"texts": plan.answer.texts},
        "selections": [_selection_json(selection) for selection in plan.selections],
    }


def _selection_json(selection: Selection) -> dict[str, Any]:
    """Return a selection without its table, of which the digest stands for all; older ones had none."""
    data = asdict(replace(selection, routes=None))
    del data["routes"]
    routes = selection.routes
    said = {"name": routes.name, "digest": routes.digest, "members": routes.members} if routes else None
    return data | ({"routes": said} if said else {})


def _when_json(when: When) -> dict[str, Any]:
    return {"selection": when.selection, "tried": when.tried} | ({"picks": True} if when.picks else {})


def _step_json(step: Step) -> dict[str, Any]:
    when: dict[str, Any] = {"when": [_when_json(one) for one in step.when]} if step.when else {}
    when |= {"lanes": [asdict(one) for one in step.lanes]} if step.lanes else {}
    when |= {"alone": step.alone} if step.alone else {}
    return when | {
        "id": step.id,
        "title": step.title,
        "label": step.label,
        "reads": list(step.reads),
        "source": _source_json(step.source),
        "decoding": step.decoding.model_dump(),
    }


def _source_json(source: Source) -> dict[str, Any]:
    if isinstance(source, Member):
        return asdict(source)
    least = {} if source.least is None else {"least": source.least}
    return least | {
        "group": source.group,
        "fuse": source.fuse,
        "fuse_options": dict(source.fuse_options),
        "weight": source.weight,
        "sources": [_source_json(inner) for inner in source.sources],
    }


def fingerprint(plan: Plan) -> str:
    """Return sha256 of all that decides the plan's texts; devices, drafts and the flow's name do not."""
    called = {member.model for step in plan.steps for member in members(step.source)}
    decisive = {
        "version": _FORMAT,
        "prompts": plan.prompts,
        "steps": [_step_json(step) | {"decoding": step.decoding.decisive()} for step in plan.steps],
        **_decided_json(plan),
        "models": {name: spec.decisive() for name, spec in plan.models.items() if name in called},
    }
    text = json.dumps(decisive, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def system_fingerprint(plan: Plan) -> str:
    """Return a plan's fingerprint as an answer of OpenAI's form says it."""
    return f"fp_{fingerprint(plan)[:12]}"
