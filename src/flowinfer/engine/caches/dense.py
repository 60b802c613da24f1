"""Keys and values of rows on a CPU: one stretch of memory per row and head, so that attending gathers nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.tiles import flat_places

_MOST_PADDED = 64
"""Longest chunk that is attended in one call for all rows; longer ones go row by row."""


@dataclass(frozen=True)
class _Layout:
    """Where one forward's tokens lie."""

    rows: Tensor
    """(T,) int64."""
    positions: Tensor
    """(T,) int64."""
    lengths: tuple[int, ...]
    """Tokens of each row in this forward, in order; the rows are consecutive in the flat tokens."""
    used: tuple[int, ...]
    """Those rows."""
    longest: int
    """Most positions that any of them has after this forward."""
    width: int
    """Most tokens of a row."""
    chosen: slice | Tensor
    """The rows as an index: a slice, and so without a copy, where they are the first ones."""
    places: dict[int, Tensor] = field(default_factory=dict)
    """By number of heads, where their keys go in a layer: (T H,)."""
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By window and heads: (A H, 1, L) or (A, 1, m, L), 0 where a query sees a key, else -inf."""


@dataclass(frozen=True)
class _Stored:
    """One layer's keys and values: (R, H_kv, C, D) and (R, H_kv, C, D_v)."""

    keys: Tensor
    values: Tensor


class DenseCache:
    """Keys and values of up to R rows; a `PackedCache`.

    Args:
        rows: R.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._capacity = 0
        self._layers: list[_Stored | None] = []
        self._layout: _Layout | None = None

    def begin(self, rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Say what the next forward holds: for each named row, `lengths` tokens from position `starts` on.

        Returns:
            rows and positions of the flat tokens, (T,) int64 each.
        """
        longest = max(start + length for start, length in zip(starts, lengths, strict=True))
        self._reserve(longest)
        width = max(lengths)
        is_single = width == 1  # the common case, worth its shortcut
        flat_rows, positions = (
            (torch.tensor(rows), torch.tensor(starts)) if is_single else flat_places(rows, starts, lengths)
        )
        used = tuple(rows)
        chosen = slice(0, len(used)) if used == tuple(range(len(used))) else torch.tensor(used)
        self._layout = _Layout(flat_rows, positions, tuple(lengths), used, longest, width, chosen)
        return flat_rows, positions

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copy a row over another, so that the rows in use can stay together."""
        for layer in self._layers:
            if layer is not None:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
        """Store and attend; see `PackedCache`."""
        layout = self._layout
        assert layout is not None, "begin comes first"
        stored = self._layer(attention.layer, keys, values)
        self._store(stored.keys, keys, layout)
        self._store(stored.values, values, layout)
        if layout.width == 1:
            return _attend_single(query, stored, layout, attention)
        if layout.width <= _MOST_PADDED:
            return _attend_padded(query, stored, layout, attention)
        return _attend_by_row(query, stored, layout, attention)

    def _store(self, kept: Tensor, states: Tensor, layout: _Layout) -> None:
        num_heads = states.shape[1]
        if num_heads not in layout.places:
            heads = layout.rows[:, None] * num_heads + torch.arange(num_heads)  # (T, H)
            layout.places[num_heads] = (heads * self._capacity + layout.positions[:, None]).view(-1)
        kept.view(-1, kept.shape[-1]).index_copy_(0, layout.places[num_heads], states.reshape(-1, kept.shape[-1]))

    def _reserve(self, length: int) -> None:
        if length <= self._capacity:
            return
        self._capacity = max(length, 2 * self._capacity, 64)
        for index, layer in enumerate(self._layers):
            if layer is not None:
                self._layers[index] = _Stored(self._grown(layer.keys), self._grown(layer.values))

    def _grown(self, states: Tensor) -> Tensor:
        grown = states.new_zeros(self._rows, states.shape[1], self._capacity, states.shape[3])
        grown[:, :, : states.shape[2]] = states
        return grown

    def _layer(self, index: int, keys: Tensor, values: Tensor) -> _Stored:
        while len(self._layers) <= index:
            self._layers.append(None)
        found = self._layers[index]
        if found is None:
            found = _Stored(
                keys.new_zeros(self._rows, keys.shape[1], self._capacity, keys.shape[2]),
                values.new_zeros(self._rows, values.shape[1], self._capacity, values.shape[2]),
            )
            self._layers[index] = found
        return found


def _attend_single(query: Tensor, stored: _Stored, layout: _Layout, attention: Attention) -> Tensor:
    """Attend for rows of one token each: one product of matrices per row and head, grouped heads as its lines."""
    keys = stored.keys[layout.chosen, :, : layout.longest].flatten(0, 1)  # (A H_kv, L, D)
    values = stored.values[layout.chosen, :, : layout.longest].flatten(0, 1)
    mask = _mask_of_heads(layout, stored.keys.shape[1], attention.window, query.dtype)  # (A H_kv, 1, L)
    asked = query.reshape(len(keys), -1, query.shape[-1])  # (A H_kv, G, D)
    if attention.softcap:
        out = _capped(asked, keys, values, mask, attention)
    else:
        scores = torch.baddbmm(mask, asked, keys.transpose(1, 2), alpha=attention.scaling)
        out = torch.bmm(scores.softmax(-1), values)
    return out.view(*query.shape[:2], -1)  # (A H_kv, G, D_v) -> (T, H, D_v)


def _attend_padded(query: Tensor, stored: _Stored, layout: _Layout, attention: Attention) -> Tensor:
    """Attend for all rows at once, queries padded to the longest chunk; grouped heads stand as further queries."""
    num_rows, width, longest = len(layout.used), layout.width, layout.longest
    num_kv, (_, num_heads, size) = stored.keys.shape[1], query.shape
    group = num_heads // num_kv
    keys = stored.keys[layout.chosen, :, :longest]  # (A, H_kv, L, D)
    values = stored.values[layout.chosen, :, :longest]
    is_even = min(layout.lengths) == width
    if is_even:
        padded = query.reshape(num_rows, width, num_kv, group, size)
    else:
        padded = query.new_zeros(num_rows * width, num_kv, group, size)
        padded.index_copy_(0, _padded_places(layout), query.reshape(-1, num_kv, group, size))
        padded = padded.view(num_rows, width, num_kv, group, size)
    asked = padded.permute(0, 2, 3, 1, 4).reshape(num_rows, num_kv, group * width, size)
    mask = _mask(layout, attention.window, query.dtype)  # (A, 1, m, L)
    if group > 1:
        mask = mask.repeat(1, 1, group, 1)  # (A, 1, G m, L)
    out = _attention(asked, keys, values, mask, attention)  # (A, H_kv, G m, D_v)
    out = out.view(num_rows, num_kv, group, width, -1).permute(0, 3, 1, 2, 4)  # (A, m, H_kv, G, D_v)
    out = out.reshape(num_rows * width, num_heads, -1)
    return out if is_even else out[_padded_places(layout)]


def _attend_by_row(query: Tensor, stored: _Stored, layout: _Layout, attention: Attention) -> Tensor:
    """Attend row by row, each with its own number of queries."""
    outs, first = [], 0
    group = query.shape[1] // stored.keys.shape[1]
    for row, length in zip(layout.used, layout.lengths, strict=True):
        positions = layout.positions[first : first + length]
        end = int(positions[-1]) + 1
        asked = query[first : first + length].transpose(0, 1)[None]  # (1, H, n, D)
        keys = stored.keys[row, :, :end].repeat_interleave(group, 0)[None]  # (1, H, L, D)
        values = stored.values[row, :, :end].repeat_interleave(group, 0)[None]
        mask = _added(_visible(positions, end, attention.window), query.dtype)[None, None]
        outs.append(_attention(asked, keys, values, mask, attention)[0].transpose(0, 1))
        first += length
    return torch.cat(outs)


def _padded_places(layout: _Layout) -> Tensor:
    """Return where each flat token stands among the padded ones: (T,)."""
    stretches = range(len(layout.lengths))
    return flat_places(stretches, [index * layout.width for index in stretches], layout.lengths)[1]


def _mask_of_heads(layout: _Layout, num_heads: int, window: int, dtype: torch.dtype) -> Tensor:
    """Return the mask of rows of one token, repeated for heads: (A H, 1, L); made once per forward."""
    if (window, num_heads) not in layout.masks:
        layout.masks[window, num_heads] = _mask(layout, window, dtype).expand(-1, num_heads, -1, -1).flatten(0, 1)
    return layout.masks[window, num_heads]


def _mask(layout: _Layout, window: int, dtype: torch.dtype) -> Tensor:
    """Return the mask of padded rows, the same for all heads: (A, 1, m, L); made once per forward."""
    if (window, 0) not in layout.masks:
        positions = layout.positions
        if min(layout.lengths) != layout.width:
            padded = torch.zeros(len(layout.used) * layout.width, dtype=torch.int64)
            positions = padded.index_copy_(0, _padded_places(layout), positions)
        visible = _visible(positions, layout.longest, window)
        layout.masks[window, 0] = _added(visible, dtype).view(len(layout.used), 1, layout.width, -1)
    return layout.masks[window, 0]


def _visible(positions: Tensor, length: int, window: int) -> Tensor:
    """Return which of the first `length` positions a token sees: (T,) -> (T, L) of bool."""
    columns = torch.arange(length)
    visible = columns <= positions[:, None]
    return visible & (columns > positions[:, None] - window) if window else visible


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 where a key is seen, else -inf; attention would make it of bools every time."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, attention: Attention) -> Tensor:
    """Attend: (A, H, m, D), (A, H, L, D), (A, H, L, D_v), mask broadcast to (A, H, m, L) -> (A, H, m, D_v)."""
    if attention.softcap:
        return _capped(query, keys, values, mask, attention)
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=attention.scaling)


def _capped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, attention: Attention) -> Tensor:
    """Attend with scores s of softcap c become c tanh(s / c)."""
    scores = query @ keys.transpose(-1, -2) * attention.scaling
    scores = attention.softcap * torch.tanh(scores / attention.softcap) + mask
    return scores.float().softmax(-1).to(values.dtype) @ values
