"""How many rows fit: what memory allows for a step's keys and values, beside those of other steps; few on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from flowinfer.backends.base import TokenModel, is_elsewhere
from flowinfer.machine import this_machine
from flowinfer.planning.plan import Plan, Step, held_models, members

_MOST_ON_CPU = 64
_MOST_ON_GPU = 256
_SHARE = 0.6
"""Share of free memory that keys, values and logits may take."""
_TYPICAL_PROMPT = 512


_PACKED_ROWS = (240, 120, 60, 30, 14, 7, 3, 2, 1)
"""Rows that leave a little room in a tile of flat tokens, for rows that feed several ids at once."""


class Budget:
    """What one step may take of the free memory of devices.

    Args:
        most: bytes by device, where other steps that run at the same time need some too.
    """

    def __init__(self, most: Mapping[torch.device, int] | None = None) -> None:
        self._most = dict(most or {})

    def free_bytes(self, device: torch.device) -> int:
        """Return the bytes that are free now and its own to take."""
        free = _free_bytes(device)
        return min(free, self._most.get(device, free))


def budgets(plan: Plan, steps: Sequence[Step], is_loaded: Callable[[str], bool]) -> dict[str, Budget]:
    """Return each step's budget, by its id, so that all find room on their GPUs at once.

    What the weights of models leave that are still to be loaded is shared out by bytes of keys and values per token.

    Args:
        plan: knows what models need and where they are placed.
        steps: that are to run at once.
        is_loaded: whether a model's weights are in memory, by name.
    """
    free = free_after_loading(plan, steps, is_loaded)
    wanted: dict[str, dict[torch.device, int]] = {step.id: {} for step in steps}
    for step in steps:
        on_gpus = on_gpus_of(plan, step)
        for name in (member.model for member in members(step.source) if member.model in on_gpus):
            for device, part in on_gpus[name].items():
                per_token = round(part * _kv_bytes_per_token(plan, name))
                wanted[step.id][device] = wanted[step.id].get(device, 0) + per_token
    total = {device: sum(own.get(device, 0) for own in wanted.values()) for device in free}
    return {
        step_id: Budget({device: max(0, free[device]) * size // total[device] for device, size in own.items()})
        for step_id, own in wanted.items()
    }


def free_after_loading(plan: Plan, steps: Sequence[Step], is_loaded: Callable[[str], bool]) -> dict[torch.device, int]:
    """Return what is free on each GPU of these steps, less the weights of their models that are still to be loaded."""
    on_gpus = {name: parts for step in steps for name, parts in on_gpus_of(plan, step).items()}
    free = {device: _free_bytes(device) for parts in on_gpus.values() for device in parts}
    for name, parts in on_gpus.items():
        need = plan.needs.get(name)
        if need and not is_loaded(name):
            for device, part in parts.items():
                free[device] -= round(part * (need.weight_bytes or 0))
    return free


def gpus_of(plan: Plan, step: Step) -> set[torch.device]:
    """Return the GPUs that a step's models are on."""
    return {device for parts in on_gpus_of(plan, step).values() for device in parts}


def on_gpus_of(plan: Plan, step: Step) -> dict[str, dict[torch.device, float]]:
    """Return what part of each of a step's models is on which GPU, by name; those that are on none are left out."""
    placed = {name: plan.placements[name].parts for name in held_models(plan, step) if name in plan.placements}
    on_gpus = {
        name: {torch.device(device): part for device, part in parts.items() if device.startswith("cuda:")}
        for name, parts in placed.items()
    }
    return {name: parts for name, parts in on_gpus.items() if parts}


def auto_batch(
    plan: Plan,
    step: Step,
    models: Sequence[TokenModel],
    drafting: TokenModel | None = None,
    *,
    is_packed: bool = False,
    budget: Budget | None = None,
) -> int:
    """Return how many rows of a step to decode together.

    Counts keys and values for a typical prompt and the whole answer, twice (a cache that grows is copied), and logits.
    An estimate: the batch is halved where it was too high. A head elsewhere says itself what it takes.
    """
    budget = budget or Budget()
    per_device: dict[torch.device, int] = {}
    names = [member.model for member in members(step.source)]
    on_gpus = on_gpus_of(plan, step)
    held = [*zip(names, models, strict=True), *([(step.decoding.speculate, drafting)] if drafting else [])]
    if step.decoding.speculate == "alternate":  # every head reads along in a session of its own
        held += held
    for name, model in held:
        per_token = 0 if is_elsewhere(model) else _kv_bytes_per_token(plan, name)
        length = min(_TYPICAL_PROMPT + step.decoding.max_tokens, model.max_positions)
        row = (1 if is_packed else 2) * per_token * length
        per_device[model.device] = per_device.get(model.device, 0) + 16 * model.vocabulary().num_columns
        for device, part in on_gpus.get(name, {model.device: 1.0}).items():
            per_device[device] = per_device.get(device, 0) + round(part * row)
    fits = [int(budget.free_bytes(device) * _SHARE / row) for device, row in per_device.items()]
    most = _MOST_ON_GPU if any(device.type == "cuda" for device in per_device) else _MOST_ON_CPU
    there = [model for model in models if is_elsewhere(model)]
    taken = [rows for model in there if (rows := getattr(model, "most_rows", None))]
    rows = max(1, min([most, *taken, *fits]))
    return next(count for count in _PACKED_ROWS if count <= rows) if is_packed else rows


def _kv_bytes_per_token(plan: Plan, name: str) -> int:
    need = plan.needs.get(name)
    return (need.kv_bytes_per_token if need else None) or 200_000


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return this_machine().devices[-1].free_bytes
