"""Whether a transformers model can be run over packed tokens: what is known to fail, and a comparison at load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.caches import FOREIGN, TOLERANCE, layer_windows
from flowinfer.backends.plain import PROBE_LENGTHS, probe_rows
from flowinfer.backends.rotary import is_rescaled
from flowinfer.engine.caches.attention import Attention, LayerShape, PackedCache, UnsupportedAttention
from flowinfer.engine.caches.dense import DenseCache
from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import PagedCache, Pages
from flowinfer.engine.caches.tiles import flat_places

Forward = Callable[[Tensor, Tensor, Tensor, PackedCache], Tensor]
"""(ids (T,), positions (T,), wanted (W,), cache) -> logits (W, V_k)."""

_CHUNKS = ((3, 1), (1, 2), (1, 0))
"""Tokens of each row in one forward after the other."""


class NotPackable(Exception):
    """The packed engine cannot run this model; the message is the reason, in one line."""


def refuse(model: Any) -> None:
    """Refuse what is known not to work before anything is run."""
    config = model.config
    if not getattr(model, "_supports_attention_backend", True):  # a release without this word is left to the check
        raise NotPackable("its layers do not use transformers' attention interface")
    if None in layer_windows(config):
        raise NotPackable("it keeps more than keys and values")
    if is_rescaled(config):
        raise NotPackable("its rotary embedding depends on the length of the longest row")
    if getattr(config, "alibi", False) or "local" in (getattr(config, "attention_layers", None) or ()):
        raise NotPackable("its attention depends on distances that only a mask carries")


def _rows(model: Any) -> list[Tensor]:
    return probe_rows(model.get_input_embeddings().num_embeddings, model.device)


@torch.inference_mode()
def plain_logits(model: Any) -> Tensor:
    """Return transformers' own logits at the ends of the probe's rows: (2, V_k)."""
    rows = _rows(model)
    return torch.cat([model(input_ids=row[None], use_cache=False).logits[:, -1] for row in rows])


def check(model: Any, expected: Tensor, forward: Forward) -> tuple[LayerShape, ...]:  # a transformers model
    """Compare a model's packed forward with its own logits; return its layers' shapes.

    Args:
        model: with numbered layers.
        expected: its `plain_logits`.
        forward: over packed tokens.
    Raises:
        NotPackable: it fails or differs.
    """
    cache = _ProbeCache(len(PROBE_LENGTHS))
    try:
        difference = _difference(model, expected, forward, cache)
    except UnsupportedAttention as error:
        raise NotPackable(str(error)) from error
    except FOREIGN as error:
        raise NotPackable(f"a packed forward fails: {type(error).__name__}: {str(error)[:120]}") from error
    if not difference <= TOLERANCE[model.dtype]:
        raise NotPackable(f"a packed forward differs from transformers' own by {difference:.1e}")
    _check_windows(model, cache.shapes)
    return cache.shapes


def gives(model: Any, shapes: Sequence[LayerShape], expected: Tensor, forward: Forward) -> bool:
    """Return whether another forward of a transformers model gives its own logits, rounding aside."""
    if model.device.type == "cpu":
        cache = DenseCache(len(PROBE_LENGTHS))
        return _difference(model, expected, forward, cache) <= TOLERANCE[model.dtype] / 10
    paged = _PagedProbe(shapes, model.dtype, model.device)

    def placed(ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        del cache
        return forward(ids, positions, wanted, paged.placed)

    return _difference(model, expected, placed, paged) <= 2 * TOLERANCE[model.dtype]


@torch.inference_mode()
def _difference(model: Any, expected: Tensor, forward: Forward, cache: Any) -> float:
    """Run the probe packed, in chunks; return how far its last logits are from those expected, relatively.

    Several tokens of both rows, then more of one than of the other, which ends with them, then one token alone.
    """
    rows = _rows(model)
    starts, ends = [0] * len(rows), torch.zeros_like(expected)
    for lengths in _CHUNKS:
        own = [row for row, length in enumerate(lengths) if length]
        counts = [lengths[row] for row in own]
        tokens = torch.cat([rows[row][starts[row] : starts[row] + lengths[row]] for row in own])
        _, positions = cache.begin(own, [starts[row] for row in own], counts)
        wanted = torch.tensor(counts, device=model.device).cumsum(0) - 1
        ends[own] = forward(tokens, positions.to(model.device), wanted, cache).to(ends)
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    return float((ends.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


class _PagedProbe:
    """A cache in pages, on the model's device."""

    def __init__(self, shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> None:
        pages = Pages(len(PROBE_LENGTHS), len(PROBE_LENGTHS), max(PROBE_LENGTHS))
        for row, length in enumerate(PROBE_LENGTHS):
            pages.reserve(row, length)
        self._cache = PagedCache(shapes, pages, dtype, device)
        self._cache.sync()

    def begin(self, rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Say which tokens come next."""
        flat = [states.to(self._cache.table.device) for states in flat_places(rows, starts, lengths)]
        self.placed = self._cache.at(flat[0], flat[1], splits=splits_for(len(flat[0])))
        return flat[0], flat[1]


def _check_windows(model: Any, shapes: Sequence[LayerShape]) -> None:
    """Refuse a model whose layers have windows that its attention is not told of."""
    windows = layer_windows(model.config)
    if len(windows) != len(shapes):
        raise NotPackable(f"{len(shapes)} layers attend where {len(windows)} are expected")
    for index, (window, shape) in enumerate(zip(windows, shapes, strict=True)):
        if window != shape.window:
            raise NotPackable(f"layer {index} sees {shape.window or 'all'} tokens where {window or 'all'} are expected")


class _ProbeCache:
    """A dense cache, on the model's device or not, that notes each layer's shape."""

    def __init__(self, rows: int) -> None:
        self._dense = DenseCache(rows)
        self._shapes: dict[int, LayerShape] = {}

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Return what the layers keep, in order."""
        return tuple(self._shapes[index] for index in sorted(self._shapes))

    def begin(self, rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pass on."""
        return self._dense.begin(rows, starts, lengths)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
        """Note the shape and attend on the CPU."""
        self._shapes[attention.layer] = LayerShape(
            query.shape[1], keys.shape[1], keys.shape[2], values.shape[2], attention.window, attention.softcap
        )
        moved = [states.to("cpu") for states in (query, keys, values)]
        return self._dense.attend(moved[0], moved[1], moved[2], attention).to(query.device)
