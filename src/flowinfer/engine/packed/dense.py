"""Keys and values of rows on a CPU: one stretch of memory per row, so that attending gathers nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowinfer.engine.packed.attention import Attention

_MOST_PADDED = 64
"""Longest chunk that is attended in one call for all rows; longer ones go row by row."""


@dataclass(frozen=True)
class _Layout:
    """Where one forward's tokens lie."""

    rows: Tensor
    """(T,) int64."""
    positions: Tensor
    """(T,) int64."""
    slots: Tensor
    """(T,) int64: row * capacity + position."""
    lengths: tuple[int, ...]
    """Tokens of each row in this forward, in order; the rows are consecutive in the flat tokens."""
    used: tuple[int, ...]
    """Those rows."""
    longest: int
    """Most positions that any of them has after this forward."""


class DenseCache:
    """Keys and values of up to R rows; a `PackedCache`.

    Args:
        rows: R.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._capacity = 0
        self._layers: list[tuple[Tensor, Tensor] | None] = []  # each (R, C, H_kv, D)
        self._layout: _Layout | None = None
        self._masks: dict[int, Tensor] = {}

    def begin(self, rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Say what the next forward holds: for each named row, `lengths` tokens from position `starts` on.

        Returns:
            rows and positions of the flat tokens, (T,) int64 each.
        """
        longest = max(start + length for start, length in zip(starts, lengths, strict=True))
        self._reserve(longest)
        if max(lengths) == 1:
            flat_rows, positions = torch.tensor(rows), torch.tensor(starts)
        else:
            counts = torch.tensor(lengths)
            flat_rows = torch.tensor(rows).repeat_interleave(counts)
            first = counts.cumsum(0) - counts
            offsets = torch.arange(int(counts.sum())) - first.repeat_interleave(counts)
            positions = torch.tensor(starts).repeat_interleave(counts) + offsets
        slots = flat_rows * self._capacity + positions
        self._layout = _Layout(flat_rows, positions, slots, tuple(lengths), tuple(rows), longest)
        self._masks = {}
        return flat_rows, positions

    def move(self, source: int, target: int) -> None:
        """Copy a row over another, so that the rows in use can stay together."""
        for layer in self._layers:
            if layer is not None:
                for states in layer:
                    states[target] = states[source]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
        """Store and attend; see `PackedCache`."""
        layout = self._layout
        assert layout is not None, "begin comes first"
        own_keys, own_values = self._layer(attention.layer, keys, values)
        own_keys.view(-1, *keys.shape[1:]).index_copy_(0, layout.slots, keys)
        own_values.view(-1, *values.shape[1:]).index_copy_(0, layout.slots, values)
        if max(layout.lengths) <= _MOST_PADDED:
            return self._attend_padded(query, own_keys, own_values, layout, attention)
        return self._attend_by_row(query, own_keys, own_values, layout, attention)

    def _attend_padded(
        self, query: Tensor, keys: Tensor, values: Tensor, layout: _Layout, attention: Attention
    ) -> Tensor:
        """Attend for all rows at once, queries padded to the longest chunk; grouped heads stand as further queries."""
        num_rows, width, longest = len(layout.used), max(layout.lengths), layout.longest
        num_kv, (_, num_heads, size) = keys.shape[2], query.shape
        group = num_heads // num_kv
        is_whole = layout.used == tuple(range(num_rows))
        chosen = slice(0, num_rows) if is_whole else torch.tensor(layout.used)
        own_keys = keys[chosen, :longest].transpose(1, 2)  # (A, H_kv, L, D)
        own_values = values[chosen, :longest].transpose(1, 2)
        is_even = min(layout.lengths) == width
        if is_even:
            padded = query.view(num_rows, width, num_kv, group, size)
        else:
            places = self._places(layout, width)
            padded = query.new_zeros(num_rows * width, num_kv, group, size)
            padded.index_copy_(0, places, query.view(-1, num_kv, group, size))
            padded = padded.view(num_rows, width, num_kv, group, size)
        asked = padded.permute(0, 2, 3, 1, 4).reshape(num_rows, num_kv, group * width, size)
        mask = self._mask(layout, width, attention.window)  # (A, 1, m, L)
        if group > 1 and width > 1:
            mask = mask.repeat(1, 1, group, 1)  # (A, 1, G m, L)
        out = _attention(asked, own_keys, own_values, mask, attention)  # (A, H_kv, G m, D_v)
        out = out.view(num_rows, num_kv, group, width, -1).permute(0, 3, 1, 2, 4)  # (A, m, H_kv, G, D_v)
        out = out.reshape(num_rows * width, num_heads, -1)
        return out if is_even else out[self._places(layout, width)]

    def _attend_by_row(
        self, query: Tensor, keys: Tensor, values: Tensor, layout: _Layout, attention: Attention
    ) -> Tensor:
        """Attend row by row, each with its own number of queries."""
        outs, first = [], 0
        for row, length in zip(layout.used, layout.lengths, strict=True):
            positions = layout.positions[first : first + length]
            end = int(positions[-1]) + 1
            asked = query[first : first + length].transpose(0, 1)[None]  # (1, H, n, D)
            groups = query.shape[1] // keys.shape[2]
            own_keys = keys[row, :end].transpose(0, 1).repeat_interleave(groups, 0)[None]  # (1, H, L, D)
            own_values = values[row, :end].transpose(0, 1).repeat_interleave(groups, 0)[None]
            mask = _visible(positions, end, attention.window)[None, None]
            outs.append(_attention(asked, own_keys, own_values, mask, attention)[0].transpose(0, 1))
            first += length
        return torch.cat(outs)

    def _places(self, layout: _Layout, width: int) -> Tensor:
        """Return where each flat token stands among the padded ones: (T,)."""
        counts = torch.tensor(layout.lengths)
        first = counts.cumsum(0) - counts
        offsets = torch.arange(int(counts.sum())) - first.repeat_interleave(counts)
        return torch.arange(len(counts)).repeat_interleave(counts) * width + offsets

    def _mask(self, layout: _Layout, width: int, window: int) -> Tensor:
        """Return what is added to scores, (A, 1, m, L): 0 where a query sees a key; made once per forward."""
        if window not in self._masks:
            positions = layout.positions
            if min(layout.lengths) != width:
                padded = torch.zeros(len(layout.used) * width, dtype=torch.int64)
                positions = padded.index_copy_(0, self._places(layout, width), positions)
            visible = _visible(positions, layout.longest, window).view(len(layout.used), 1, width, -1)
            self._masks[window] = visible
        return self._masks[window]

    def _reserve(self, length: int) -> None:
        if length <= self._capacity:
            return
        self._capacity = max(length, 2 * self._capacity, 64)
        for index, layer in enumerate(self._layers):
            if layer is not None:
                keys, values = layer
                self._layers[index] = (self._grown(keys), self._grown(values))

    def _grown(self, states: Tensor) -> Tensor:
        grown = states.new_zeros(self._rows, self._capacity, *states.shape[2:])
        grown[:, : states.shape[1]] = states
        return grown

    def _layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        while len(self._layers) <= index:
            self._layers.append(None)
        found = self._layers[index]
        if found is None:
            found = (
                keys.new_zeros(self._rows, self._capacity, *keys.shape[1:]),
                values.new_zeros(self._rows, self._capacity, *values.shape[1:]),
            )
            self._layers[index] = found
        return found


def _visible(positions: Tensor, length: int, window: int) -> Tensor:
    """Return which of the first `length` positions a token sees: (T,) -> (T, L) of bool."""
    columns = torch.arange(length)
    visible = columns <= positions[:, None]
    return visible & (columns > positions[:, None] - window) if window else visible


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, attention: Attention) -> Tensor:
    """Attend: (A, H, m, D), (A, H, L, D), (A, H, L, D_v), mask broadcast to (A, H, m, L) -> (A, H, m, D_v)."""
    if not attention.softcap:
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=attention.scaling)
    scores = query @ keys.transpose(-1, -2) * attention.scaling
    scores = attention.softcap * torch.tanh(scores / attention.softcap)
    return scores.masked_fill(~mask, -torch.inf).float().softmax(-1).to(values.dtype) @ values
