"""Prefill of the packed engine: many rows' prompts go through a head together, flat, a few thousand ids at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowinfer.engine.packed.pages import PagedCache
from flowinfer.engine.packed.runner import HeadRunner

_MOST_AT_ONCE = 4096
"""Ids that are read in one forward, about."""


@dataclass(frozen=True)
class _Stretch:
    """Ids of one row that follow one another."""

    place: int
    start: int
    """Position of the first."""
    ids: Sequence[int]


def read_prompts(runner: HeadRunner, cache: PagedCache, texts: Sequence[tuple[int, Sequence[int]]]) -> None:
    """Fill pages with the keys and values of new rows' ids, without the last id and those that other rows' pages hold.

    Args:
        texts: (place, ids) of each row; its pages are reserved.
    """
    cache.sync()
    chunk: list[_Stretch] = []
    for place, ids in texts:
        shared = cache.pages.num_shared(place)
        if len(ids) - 1 > shared:
            chunk.append(_Stretch(place, shared, ids[shared:-1]))
        if sum(len(own.ids) for own in chunk) >= _MOST_AT_ONCE:
            _read(runner, cache, chunk)
            chunk = []
    if chunk:
        _read(runner, cache, chunk)
    for place, ids in texts:
        cache.pages.name(place, ids)


@torch.inference_mode()
def _read(runner: HeadRunner, cache: PagedCache, chunk: Sequence[_Stretch]) -> None:
    counts = torch.tensor([len(own.ids) for own in chunk])
    rows = torch.tensor([own.place for own in chunk], dtype=torch.int32).repeat_interleave(counts)
    starts = torch.tensor([own.start for own in chunk]) - (counts.cumsum(0) - counts)
    positions = torch.arange(int(counts.sum())) + starts.repeat_interleave(counts)
    ids = torch.tensor([i for own in chunk for i in own.ids])
    ids, rows, positions = (states.to(runner.device, non_blocking=True) for states in (ids, rows, positions))
    cache.place(rows, positions.int(), 1)
    runner.read(ids, positions, cache)
