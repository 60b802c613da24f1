"""Prefill of the packed engine: many rows' prompts go through a head together, flat, a few thousand ids at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowinfer.engine.caches.pages import ChainedCache, PagedCache
from flowinfer.engine.caches.tiles import MOST_PROMPT_TOKENS, flat_places
from flowinfer.engine.network.runner import HeadRunner


@dataclass(frozen=True)
class _Stretch:
    """Ids of one row that follow one another."""

    index: int
    """Of the row in the batch."""
    start: int
    """Position of the first."""
    ids: Sequence[int]


def read_prompts(
    runner: HeadRunner, cache: PagedCache | ChainedCache, texts: Sequence[tuple[int, Sequence[int]]]
) -> None:
    """Fill pages with the keys and values of new rows' ids, without the last id and those that other rows' pages hold.

    Args:
        texts: (index in the batch, ids) of each row; its pages are reserved.
    """
    cache.sync()
    chunk: list[_Stretch] = []
    for index, ids in texts:
        shared = cache.pages.num_shared(index)
        if len(ids) - 1 > shared:
            chunk.append(_Stretch(index, shared, ids[shared:-1]))
        if sum(len(own.ids) for own in chunk) >= MOST_PROMPT_TOKENS:
            _read(runner, cache, chunk)
            chunk = []
    if chunk:
        _read(runner, cache, chunk)
    for index, ids in texts:
        cache.pages.name(index, ids)


@torch.inference_mode()
def _read(runner: HeadRunner, cache: PagedCache | ChainedCache, chunk: Sequence[_Stretch]) -> None:
    indices, starts, lengths = zip(*((own.index, own.start, len(own.ids)) for own in chunk), strict=True)
    rows, positions = flat_places(indices, starts, lengths)
    ids = torch.tensor([i for own in chunk for i in own.ids])
    moved = (states.to(runner.device, non_blocking=True) for states in (ids, rows, positions))
    ids, rows, positions = moved
    runner.read(ids, positions, cache.at(rows, positions, 1))
