"""Attention `flow_packed`: what a transformers model calls in place of its own attention while tokens are packed.

All tokens of a forward lie flat in one sequence of batch 1; which row and position each has, and where earlier keys
and values are, is known to the active cache, not to the model. No mask is built and nothing is padded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

NAME = "flow_packed"
_UNKNOWN = ("s_aux", "sinks", "position_bias", "head_mask", "block_mask")
"""Arguments of some models' attention that change its result and that this one does not know."""


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of each token."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    window: int
    softcap: float


@dataclass(frozen=True)
class Attention:
    """One layer's parameters, beside its tensors."""

    layer: int
    scaling: float
    window: int
    """Number of last positions that a token sees, itself included; 0 = all."""
    softcap: float
    """Scores s become c tanh(s / c); 0 = not."""


class PackedCache(Protocol):
    """Keeps the keys and values of rows and attends to them."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
        """Store the new tokens' keys and values, then attend.

        Args:
            query: (T, H, D).
            keys: (T, H_kv, D).
            values: (T, H_kv, D_v).
        Returns:
            (T, H, D_v); rows of padding tokens hold zeros or anything finite.
        """


class UnsupportedAttention(Exception):
    """A model's attention asks for something that this one does not do; the message says what."""


_local = threading.local()


@contextmanager
def attending(cache: PackedCache, config: Any) -> Iterator[None]:  # config: a transformers config
    """Let a model's layers attend through a cache, in this thread.

    Args:
        cache: knows this forward's rows and positions.
        config: the model's; its attention implementation is switched and put back.
    """
    _register()
    before, _local.cache = getattr(_local, "cache", None), cache
    implementation = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        _local.cache = before
        config._attn_implementation = implementation


@cache
def _register() -> None:
    """Let transformers know this attention; only now, for importing it takes seconds."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, flow_packed)


def flow_packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,  # what models pass along: dropout, position ids, ...
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: (1, H, T, D) -> (1, T, H, D_v).

    Raises:
        UnsupportedAttention: an argument that would change the result is not known here.
    """
    unknown = [name for name in _UNKNOWN if others.get(name) is not None]
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(unknown)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # (T, H, D)
    if query.is_cuda or torch.compiler.is_compiling():
        out = _attend(*flat, module.flow_layer, scale, sliding_window or 0, softcap or 0.0)
    else:
        out = _local.cache.attend(
            *flat,
            Attention(int(module.layer_idx), scale, sliding_window or 0, softcap or 0.0),  # type: ignore[arg-type]
        )
    return out[None], None


def number_layers(model: torch.nn.Module) -> None:
    """Give attention modules their layer's number as a tensor, so that one compiled layer serves all of its kind."""
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if index is not None:
            module.flow_layer = torch.tensor(int(index))  # on the CPU, where reading it waits for nothing


@torch.library.custom_op("flowinfer::attend", mutates_args=())
def _attend(
    query: Tensor, keys: Tensor, values: Tensor, layer: Tensor, scaling: float, window: int, softcap: float
) -> Tensor:
    """Attend through the active cache; opaque to the compiler, which sees no cache."""
    cache: PackedCache = _local.cache
    return cache.attend(query, keys, values, Attention(int(layer), scaling, window, softcap)).contiguous()


@_attend.register_fake
def _(
    query: Tensor, keys: Tensor, values: Tensor, layer: Tensor, scaling: float, window: int, softcap: float
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], values.shape[2])
