"""Decoding state with a cache per row, for models that a batch's mask cannot serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.caches import layer_windows, run
from flowinfer.backends.rotary import Factors, factors_at, forget_lengths, is_rescaled
from flowinfer.backends.session import segment_ends


class RowSession:
    """A cache per row, for models whose layers do not attend to every earlier column.

    Rolling back crops a row's cache. Layers with a window keep what lies before it for that, and the model's own mask
    hides it. Only recurrent state cannot be cropped: such a row is read again. So is one whose keys were turned by
    rotary factors that its new length no longer has (rotary.py).
    """

    def __init__(self, model: Any) -> None:  # see BatchSession
        self._model = model
        self._can_crop = None not in layer_windows(model.config)  # a plain cache can hold all keys and values whole
        self._is_rescaled = is_rescaled(model.config)
        self._next_handle = 0
        self._ids: dict[int, list[int]] = {}
        self._caches: dict[int, Any] = {}
        self._factors: dict[int, Factors] = {}
        """What turned the keys of a row's cache, where its length decides that."""
        self._logits: dict[int, Tensor] = {}

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefill new rows one by one."""
        handles = []
        for prompt in prompts:
            row = self._next_handle
            self._next_handle += 1
            self._ids[row], self._caches[row] = [], self._new_cache()
            self._run(row, prompt)
            handles.append(row)
        return handles

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append chunks, one forward per row."""
        for row, chunk in chunks.items():
            if chunk:
                self._run(row, chunk)

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Append segments, one forward per row; return the logits behind each segment, (S, V_k)."""
        return torch.cat([self._verify_row(row, own) for row, own in segments.items()])

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the last logits of rows: shape (R, V_k)."""
        return torch.stack([self._logits[row] for row in rows])

    def rollback(self, row: int, count: int) -> None:
        """Crop a row's last ids off its cache, or read the kept ids again where that is impossible."""
        if not count:
            return
        kept = self._ids[row][:-count]
        if self._can_crop:
            self._caches[row].crop(-count)
            self._ids[row] = kept
        else:
            self._ids[row], self._caches[row] = [], self._new_cache()
            self._run(row, kept)

    def remove(self, rows: Sequence[int]) -> None:
        """Drop rows."""
        for row in rows:
            del self._ids[row], self._caches[row], self._factors[row], self._logits[row]

    def length(self, row: int) -> int:
        """Return the number of ids in a row."""
        return len(self._ids[row])

    def _verify_row(self, row: int, segments: Sequence[Sequence[int]]) -> Tensor:
        """Append a row's segments, cut where other rotary factors begin; return the logits behind each, (S, V_k)."""
        start = len(self._ids[row])
        parts: list[tuple[Factors, list[Sequence[int]]]] = []
        for segment, end in zip(segments, segment_ends(segments), strict=True):
            factors = self._factors_at(start + end)
            if not parts or parts[-1][0] != factors:
                parts.append((factors, []))
            parts[-1][1].append(segment)
        return torch.cat(
            [
                self._run(row, [i for segment in own for i in segment], [end - 1 for end in segment_ends(own)])
                for _, own in parts
            ]
        )

    def _factors_at(self, length: int) -> Factors:
        return factors_at(self._model.config, length) if self._is_rescaled else ()

    def _new_cache(self) -> Any:  # a DynamicCache
        from transformers import DynamicCache

        return DynamicCache() if self._can_crop else DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def _run(self, row: int, ids: Sequence[int], keep: Sequence[int] = ()) -> Tensor:
        """Run the model over a row's new ids; return the logits of some of them, the last if not said, (E, V_k)."""
        kept = self._ids[row]
        factors = self._factors_at(len(kept) + len(ids))
        columns = list(keep) or [len(ids) - 1]
        read = list(ids)
        if kept and factors != self._factors[row]:  # the whole row is read again, with the new ids at its end
            read, columns = [*kept, *ids], [len(kept) + column for column in columns]
            self._caches[row], kept = self._new_cache(), []
        if self._is_rescaled:
            forget_lengths(self._model)
        new, positions = torch.tensor([read]), torch.arange(len(kept), len(kept) + len(read))[None]
        logits, self._caches[row] = run(self._model, new, self._caches[row], columns, positions)
        self._ids[row], self._factors[row] = [*kept, *read], factors
        self._logits[row] = logits[0, -1]
        return logits[0]
