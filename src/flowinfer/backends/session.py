"""Batched decoding state over transformers' own cache.

All rows of a batch share one cache. Each feed adds L columns, L = the longest chunk; shorter chunks are right-aligned
and their padding columns masked for good. Rolling back clears mask bits; positions are logical, so later ids reuse
them. When more than a fifth of the columns are dead in every row, live columns are gathered to the right.

Models whose layers do not attend to every earlier column (sliding windows, recurrent state) cannot be masked like
that: see row_session.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.caches import run

_DEAD_SHARE = 0.2
"""Share of dead columns above which a cache is compacted."""


class BatchSession:
    """One cache for all rows; see the module's text.

    Args:
        model: a decoder-only transformers model with full attention in every layer.
    """

    def __init__(self, model: Any) -> None:  # transformers' models share no public base type with these calls
        self._model = model
        self._device = model.device
        self._rows: list[int] = []
        self._next_handle = 0
        self._cache: Any = None  # a DynamicCache, whose layers all have keys and values here
        self._live = torch.zeros(0, 0, dtype=torch.bool, device=self._device)  # (B, C)
        self._lengths: list[int] = []
        self._logits = torch.zeros(0, 0)
        self._has_tail = False  # whether the last columns may be dead in every row, because they were rolled back

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefill new rows in one forward and merge them into the batch."""
        handles = list(range(self._next_handle, self._next_handle + len(prompts)))
        self._next_handle += len(prompts)
        cache, live, logits = self._prefill(prompts)
        if self._cache is None or not self._rows:
            self._cache, self._live, self._logits = cache, live, logits
        else:
            self._merge(cache, live)
            self._logits = torch.cat([self._logits, logits])
        self._rows += handles
        self._lengths += [len(prompt) for prompt in prompts]
        return handles

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append chunks in one forward over the whole batch."""
        width = max((len(chunk) for chunk in chunks.values()), default=0)
        if width and self._cache is not None:
            self._append(chunks, width, [width - 1])

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Append segments in one forward over the whole batch; return the logits behind each, (S, V_k)."""
        chunks = {row: [i for segment in own for i in segment] for row, own in segments.items()}
        width = max(len(chunk) for chunk in chunks.values())
        ends = {row: [width - len(chunks[row]) + end - 1 for end in segment_ends(own)] for row, own in segments.items()}
        columns = sorted({column for own in ends.values() for column in own})
        logits = self._append(chunks, width, columns)  # (B, E, V_k)
        if len(columns) == 1 and list(segments) == self._rows:
            return logits[:, 0]
        place = {row: index for index, row in enumerate(self._rows)}
        at = {column: index for index, column in enumerate(columns)}
        rows = [place[row] for row, own in ends.items() for _ in own]
        return logits[rows, [at[column] for own in ends.values() for column in own]]

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the last logits of rows: shape (R, V_k)."""
        if list(rows) == self._rows:
            return self._logits
        place = {row: index for index, row in enumerate(self._rows)}
        return self._logits[[place[row] for row in rows]]

    def rollback(self, row: int, count: int) -> None:
        """Clear the mask bits of a row's last live columns."""
        if not count:
            return
        index = self._rows.index(row)
        columns = self._live[index].nonzero()[-count:, 0]
        self._live[index, columns] = False
        self._lengths[index] -= count
        self._has_tail = True

    def remove(self, rows: Sequence[int]) -> None:
        """Drop rows from the batch."""
        gone = set(rows)
        keep = [index for index, row in enumerate(self._rows) if row not in gone]
        self._rows = [self._rows[index] for index in keep]
        self._lengths = [self._lengths[index] for index in keep]
        if not keep:
            self._cache = None
            self._live = self._live[:0, :0]
            self._logits = self._logits[:0]
            return
        chosen = torch.tensor(keep, device=self._device)
        assert self._cache is not None, "a batch with rows has a cache"
        for layer in self._cache.layers:
            there = chosen.to(layer.keys.device)  # layers may be on several devices
            layer.keys, layer.values = layer.keys[there], layer.values[there]
        self._live, self._logits = self._live[chosen], self._logits[chosen]
        self._compact()

    def length(self, row: int) -> int:
        """Return the number of ids in a row."""
        return self._lengths[self._rows.index(row)]

    @property
    def num_columns(self) -> int:
        """Columns of the cache, dead ones included."""
        return int(self._live.shape[1])

    def _append(self, chunks: Mapping[int, Sequence[int]], width: int, keep: Sequence[int]) -> Tensor:
        """Add `width` columns with chunks at their right ends; return the logits of some of them, (B, E, V_k)."""
        self._crop()
        ids = torch.zeros(len(self._rows), width, dtype=torch.int64)
        fresh = torch.zeros(len(self._rows), width, dtype=torch.bool)
        positions = torch.zeros(len(self._rows), width, dtype=torch.int64)
        for index, row in enumerate(self._rows):
            chunk = chunks.get(row, ())
            start, length = self._lengths[index], len(chunk)
            if length:
                ids[index, width - length :] = torch.tensor(chunk)
                fresh[index, width - length :] = True
                positions[index, width - length :] = torch.arange(start, start + length)
            self._lengths[index] = start + length
        fresh = fresh.to(self._device)
        logits = self._forward(ids, fresh, positions, self._cache, self._live, keep)
        self._live = torch.cat([self._live, fresh], dim=1)
        if all(chunks.get(row) for row in self._rows):
            self._logits = logits[:, -1]
        else:
            self._logits = torch.where(fresh.any(1)[:, None], logits[:, -1], self._logits)
        self._compact()
        return logits

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, Tensor, Tensor]:
        from transformers import DynamicCache

        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        live = torch.zeros(len(prompts), width, dtype=torch.bool)
        positions = torch.zeros(len(prompts), width, dtype=torch.int64)
        for index, prompt in enumerate(prompts):
            ids[index, width - len(prompt) :] = torch.tensor(prompt)
            live[index, width - len(prompt) :] = True
            positions[index, width - len(prompt) :] = torch.arange(len(prompt))
        cache = DynamicCache()
        live = live.to(self._device)
        empty = torch.zeros(len(prompts), 0, dtype=torch.bool, device=self._device)
        return cache, live, self._forward(ids, live, positions, cache, empty, [width - 1])[:, 0]

    @torch.inference_mode()
    def _forward(
        self, ids: Tensor, fresh: Tensor, positions: Tensor, cache: Any, before: Tensor, keep: Sequence[int]
    ) -> Tensor:
        """Run the model over new columns; return the logits of some of them, (B, E, V_k)."""
        width = ids.shape[1]
        visible = torch.cat([before, fresh], dim=1)[:, None, :]  # (B, 1, C + L)
        causal = torch.ones(width, visible.shape[-1], dtype=torch.bool, device=self._device)
        causal = causal.tril(visible.shape[-1] - width)  # (L, C + L)
        own = torch.zeros_like(causal)
        own[:, -width:] = torch.eye(width, dtype=torch.bool, device=self._device)
        allowed = (visible & causal) | own  # a padding query sees itself, so that no row of softmax is empty
        mask = torch.zeros(allowed.shape, dtype=self._model.dtype, device=self._device)
        mask = mask.masked_fill_(~allowed, torch.finfo(self._model.dtype).min)[:, None]  # (B, 1, L, C + L)
        logits, _ = run(self._model, ids, cache, keep, positions, attention_mask=mask)
        return logits

    def _merge(self, cache: Any, live: Tensor) -> None:
        """Put new rows under the batch, both padded on the left to the same number of columns."""
        assert self._cache is not None, "merging needs a batch"
        width = max(self._live.shape[1], live.shape[1])
        for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
            ours.keys = torch.cat([_pad_columns(ours.keys, width), _pad_columns(theirs.keys, width)])
            ours.values = torch.cat([_pad_columns(ours.values, width), _pad_columns(theirs.values, width)])
        self._live = torch.cat([_pad_mask(self._live, width), _pad_mask(live, width)])

    def _crop(self) -> None:
        """Cut off the last columns that are dead in every row."""
        if not self._has_tail:
            return
        self._has_tail = False
        columns = int(self._live.any(0).nonzero()[-1]) + 1
        if columns < self._live.shape[1]:
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :columns], layer.values[:, :, :columns]
            self._live = self._live[:, :columns]

    def _compact(self) -> None:
        """Gather live columns to the right where too many are dead in every row."""
        columns, needed = self._live.shape[1], max(self._lengths)
        if self._cache is None or columns - needed <= columns * _DEAD_SHARE or columns - needed < 8:
            return
        order = self._live.to(torch.int8).sort(dim=1, stable=True).indices[:, columns - needed :]  # dead first
        for layer in self._cache.layers:
            there = order.to(layer.keys.device)[:, None, :, None]
            index = there.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys = layer.keys.gather(2, index)
            index = there.expand(-1, layer.values.shape[1], -1, layer.values.shape[3])
            layer.values = layer.values.gather(2, index)
        self._live = self._live.gather(1, order)


def segment_ends(segments: Sequence[Sequence[int]]) -> list[int]:
    """Return where segments end when they stand one behind the other. Example: [7], [8, 9] -> 1, 3."""
    return list(accumulate(len(segment) for segment in segments))


def _pad_columns(states: Tensor, width: int) -> Tensor:
    """Pad (B, H, C, D) on the left to `width` columns."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def _pad_mask(live: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(live, (width - live.shape[1], 0))
