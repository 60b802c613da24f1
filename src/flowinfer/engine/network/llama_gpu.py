"""The forward of Llama's kind of decoder on a GPU in bfloat16: few launches a layer, each begun early.

A step of up to 64 tokens is five launches a layer: norm + q/k/v, attention (turn, write, attend, join), output +
residual, norm + gate/up + silu, down + residual. Weights are nobody's output, so a launch fetches its first ones while
the one before still runs. More tokens go through cuBLAS. Nothing is believed: it serves only where both give the
model's own logits (probing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowinfer.engine.caches.attention import LayerShape, PackedCache
from flowinfer.engine.caches.kernels import paged_attention
from flowinfer.engine.caches.pages import PAGE, PagedForward
from flowinfer.engine.network.gemm import MOST_STEP_TOKENS, MOST_TOKENS


@dataclass(frozen=True)
class _Layer:
    """One decoder layer's weights."""

    before_attention: Tensor
    qkv: Tensor
    bias: Tensor | None
    head_norms: tuple[Tensor, Tensor] | None
    """Of queries and keys, per head (Qwen3)."""
    out: Tensor
    before_mlp: Tensor
    gate_up: Tensor
    down: Tensor
    num_heads: int
    num_kv_heads: int
    scaling: float
    window: int


class GpuLlamaForward:
    """Run a model of Llama's kind over packed tokens on a GPU.

    Args:
        model: a transformers model in bfloat16 whose linear layers are merged.
        shapes: what its layers keep.
    """

    def __init__(self, model: Any, shapes: Sequence[LayerShape]) -> None:  # transformers' models are untyped
        inner = model.model
        self._layers = [_layer(layer, shape) for layer, shape in zip(inner.layers, shapes, strict=True)]
        self._norms = [*(layer.before_attention for layer in self._layers), inner.norm.weight]
        self._eps: float = inner.norm.variance_epsilon
        self._embedding: Tensor = inner.embed_tokens.weight
        self._last: Tensor = model.lm_head.weight
        self._rotary = inner.rotary_emb
        self._tables: list[Tensor] = []
        """Cosines and sines of positions, each table longer than those before, which graphs may still read."""
        self.most_step_tokens = MOST_STEP_TOKENS

    def states(self, ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        """Return wanted tokens' last hidden states: (T,), (T,), (W,) -> (W, D)."""
        from flowinfer.engine.network import triton_rows

        del positions  # the cache has them
        assert isinstance(cache, PagedForward), "keys and values on a GPU lie in pages"
        if len(ids) <= self.most_step_tokens:
            return triton_rows.finish(self._step(ids, cache), wanted)
        return self._prompt(ids, cache)[wanted]

    def read(self, ids: Tensor, positions: Tensor, cache: PackedCache) -> None:
        """Run for keys and values alone."""
        self.states(ids, positions, ids[:0], cache)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of last hidden states: (W, D) -> (W, V_k)."""
        from flowinfer.engine.network import triton_gemm

        if len(states) > self.most_step_tokens:
            return functional.linear(states, self._last)
        return triton_gemm.skinny_linear(states, self._last, None)

    def _step(self, ids: Tensor, cache: PagedForward) -> Any:
        """Run few tokens; return half the last norm: (T,) -> (T, D)."""
        from flowinfer.engine.caches import triton_step
        from flowinfer.engine.network import triton_gemm, triton_rows
        from flowinfer.engine.network.triton_gemm import tiles_for

        tokens = len(ids)
        places = triton_step.Places(cache.rows, cache.positions, cache.table, self._turns(cache))
        down = tiles_for(self._layers[0].down.shape, tokens)
        counters = _Counters(sum(_num_counters(layer, tokens) for layer in self._layers), ids.device)
        parts = -(-self._embedding.shape[1] // down.block_n)
        total, half = triton_rows.embed(ids, self._embedding, self._norms[0], self._eps, parts)
        for index, (layer, after) in enumerate(zip(self._layers, self._norms[1:], strict=True)):
            keys, values = cache.layers[index]
            qkv = triton_gemm.scaled_linear(
                half, layer.qkv, layer.bias, tiles_for(layer.qkv.shape, tokens), counters.take(_blocks(layer.qkv))
            )
            tiles = tiles_for(layer.out.shape, tokens)
            attended = triton_step.step_attention(
                *(qkv, keys, values, places, self._head_norms(layer)),
                num_heads=layer.num_heads,
                scaling=layer.scaling,
                window=layer.window,
                splits=max(1, cache.splits),
                counters=counters.take(tokens * layer.num_kv_heads),
                is_early=tiles.is_early and tokens <= MOST_TOKENS,  # many tokens' programs are in each other's way
            )
            residual = triton_gemm.Residual(total, layer.before_mlp, self._eps)
            half = triton_gemm.added_linear(attended, layer.out, residual, tiles, counters.take(_blocks(layer.out)))
            tiles = tiles_for(layer.gate_up.shape, tokens)
            gated = triton_gemm.gated_linear(half, layer.gate_up, tiles, counters.take(_blocks(layer.gate_up)))
            residual = triton_gemm.Residual(total, after, self._eps)
            half = triton_gemm.added_linear(gated, layer.down, residual, down, counters.take(_blocks(layer.down)))
        return half

    def _prompt(self, ids: Tensor, cache: PagedForward) -> Tensor:
        """Run many tokens: (T,) -> (T, D)."""
        from flowinfer.engine.caches import triton_step
        from flowinfer.engine.network import triton_rows

        places = triton_step.Places(cache.rows, cache.positions, cache.table, self._turns(cache))
        total = functional.embedding(ids, self._embedding)
        states = triton_rows.norm(total, self._norms[0], self._eps)
        for index, (layer, after) in enumerate(zip(self._layers, self._norms[1:], strict=True)):
            keys, values = cache.layers[index]
            qkv = functional.linear(states, layer.qkv, layer.bias)
            triton_rows.turn_and_write(qkv, keys, values, places, self._head_norms(layer), layer.num_heads)
            attended = paged_attention(
                qkv.view(len(qkv), -1, keys.shape[-1])[:, : layer.num_heads],
                *(keys, values, cache.rows, cache.positions, cache.table),
                scaling=layer.scaling,
                window=layer.window,
                softcap=0.0,
                splits=cache.splits,
            )
            added = functional.linear(attended.flatten(1), layer.out)
            states = triton_rows.norm(total, layer.before_mlp, self._eps, added=added)
            added = functional.linear(triton_rows.gate(functional.linear(states, layer.gate_up)), layer.down)
            states = triton_rows.norm(total, after, self._eps, added=added)
        return states

    def _head_norms(self, layer: _Layer) -> Any:
        from flowinfer.engine.caches.triton_step import HeadNorms

        return HeadNorms(*layer.head_norms, self._eps) if layer.head_norms else None

    def _turns(self, cache: PagedForward) -> Tensor:
        """Return cosines and sines of all positions that the cache has room for: (P, 2, D / 2)."""
        length = cache.table.shape[1] * PAGE
        if not self._tables or len(self._tables[-1]) < length:
            self._tables.append(self._table(max(length, 4096)))
            if self._embedding.is_cuda:
                torch.cuda.current_stream(self._embedding.device).synchronize()  # other loops' streams read it too
        return self._tables[-1]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _table(self, length: int) -> Tensor:
        device = self._embedding.device
        cos, sin = self._rotary(self._embedding, torch.arange(length, device=device)[None])
        half = cos.shape[-1] // 2
        return torch.stack((cos[0, :, :half], sin[0, :, :half]), dim=1).contiguous()


class _Counters:
    """Zeros that splits count their arrivals in, a stretch for every launch."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._left = torch.zeros(count, dtype=torch.int32, device=device)

    def take(self, count: int) -> Tensor:
        """Return so many that nobody has."""
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _num_counters(layer: _Layer, tokens: int) -> int:
    return sum(map(_blocks, (layer.qkv, layer.out, layer.gate_up, layer.down))) + tokens * layer.num_kv_heads


def _blocks(weight: Tensor) -> int:
    """Return the most blocks that a matrix's outputs are cut into."""
    return -(-weight.shape[0] // 16)


def _layer(layer: Any, shape: LayerShape) -> _Layer:
    own, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before_attention=layer.input_layernorm.weight,
        qkv=own.q_proj.linear.weight,
        bias=own.q_proj.linear.bias,
        head_norms=(own.q_norm.weight, own.k_norm.weight) if hasattr(own, "q_norm") else None,
        out=own.o_proj.weight,
        before_mlp=layer.post_attention_layernorm.weight,
        gate_up=mlp.gate_proj.linear.weight,
        down=mlp.down_proj.weight,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        scaling=own.scaling,
        window=shape.window,
    )
