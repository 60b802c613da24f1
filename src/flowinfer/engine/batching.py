"""How many rows fit: what memory allows for a step's keys and values, and a sane number on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flowinfer.backends.base import TokenModel
from flowinfer.machine import this_machine
from flowinfer.plan import Plan, Step, members

_MOST_ON_CPU = 64
_MOST_ON_GPU = 256
_SHARE = 0.6
"""Share of free memory that keys, values and logits may take."""
_TYPICAL_PROMPT = 512


_PACKED_ROWS = (240, 120, 60, 30, 14, 7, 3, 2, 1)
"""Rows that leave a little room in a tile of flat tokens, for rows that feed several ids at once."""


def auto_batch(
    plan: Plan,
    step: Step,
    models: Sequence[TokenModel],
    drafting: TokenModel | None = None,
    *,
    is_packed: bool = False,
) -> int:
    """Return how many rows of a step to decode together.

    Counts keys and values for a typical prompt and the whole answer, twice (a cache that grows is copied), and logits.
    An estimate: the scheduler halves the batch where it was too high.
    """
    per_device: dict[torch.device, int] = {}
    names = [member.model for member in members(step.source)]
    held = [*zip(names, models, strict=True), *([(step.decoding.draft, drafting)] if drafting else [])]
    if step.decoding.draft == "alternate":  # every head reads along in a session of its own
        held += held
    for name, model in held:
        need = plan.needs.get(name)
        per_token = (need.kv_bytes_per_token if need else None) or 200_000
        length = min(_TYPICAL_PROMPT + step.decoding.max_tokens, model.max_positions)
        row = (1 if is_packed else 2) * per_token * length + 16 * model.vocabulary().num_columns
        per_device[model.device] = per_device.get(model.device, 0) + row
    fits = [int(_free_bytes(device) * _SHARE / row) for device, row in per_device.items()]
    most = _MOST_ON_GPU if any(device.type == "cuda" for device in per_device) else _MOST_ON_CPU
    rows = max(1, min([most, *fits]))
    return next(count for count in _PACKED_ROWS if count <= rows) if is_packed else rows


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return this_machine().devices[-1].free_bytes
