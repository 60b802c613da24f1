"""The forward of Llama's kind of decoder on a GPU in bfloat16: few launches a layer, each begun early.

A step of up to 64 tokens is five launches a layer: norm + q/k/v, attention (turn, write, attend, join), output +
residual, norm + gate/up + silu, down + residual; seven where there are experts, with norm + router and the choice.
Weights are nobody's output, so a launch fetches its first ones while the one before still runs. More tokens go through
cuBLAS. Nothing is believed: it serves only where both give the model's own logits (probing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowinfer.backends.int4 import Packed
from flowinfer.engine.caches.attention import Attention, LayerShape, PackedCache
from flowinfer.engine.caches.kernels import paged_attention
from flowinfer.engine.caches.pages import PAGE, PagedForward
from flowinfer.engine.network.experts import mixed
from flowinfer.engine.network.gemm import MOST_STEP_TOKENS, MOST_TOKENS, int4_linear
from flowinfer.engine.network.llama_weights import Experts, LayerWeights, LlamaWeights, Matrix, Mlp


class GpuLlamaForward:
    """Run a model of Llama's kind over packed tokens on a GPU.

    Args:
        weights: of the whole decoder, in bfloat16.
        shapes: what its layers keep.
    """

    def __init__(self, weights: LlamaWeights, shapes: Sequence[LayerShape]) -> None:
        self._layers = list(zip(weights.layers, shapes, strict=True))
        self._norms = [*(layer.before_attention for layer in weights.layers), weights.norm]
        self.numbers = weights.numbers
        self._eps = weights.numbers.eps
        self._embedding = weights.embedding
        self._last = weights.last
        self.tables: list[Tensor] = []
        """Cosines and sines of positions, each table longer than those before, which graphs may still read."""
        self.most_step_tokens = MOST_STEP_TOKENS

    def states(self, ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        """Return wanted tokens' last hidden states: (T,), (T,), (W,) -> (W, D)."""
        from flowinfer.engine.network import triton_rows

        del positions  # the cache has them
        assert isinstance(cache, PagedForward), "keys and values on a GPU lie in pages"
        if len(ids) <= self.most_step_tokens:
            return triton_rows.finish(self._step(ids, cache), wanted)
        return self._prompt(ids, wanted, cache)

    def read(self, ids: Tensor, positions: Tensor, cache: PackedCache) -> None:
        """Run for keys and values alone."""
        self.states(ids, positions, ids[:0], cache)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of last hidden states: (W, D) -> (W, V_k)."""
        from flowinfer.engine.network import triton_gemm

        if len(states) > MOST_STEP_TOKENS:
            return _linear(states, self._last)
        return triton_gemm.skinny_linear(states, self._last, None)

    def _step(self, ids: Tensor, cache: PagedForward) -> Any:
        """Run few tokens; return half the last norm: (T,) -> (T, D)."""
        from flowinfer.engine.caches import triton_step
        from flowinfer.engine.network import triton_ends, triton_gemm, triton_rows

        tokens = len(ids)
        turns = self._turns(cache)
        counters = _Counters(sum(_num_counters(layer, shape, tokens) for layer, shape in self._layers), ids.device)
        parts = -(-self._embedding.shape[1] // _last_block(self._layers[0][0].mlp, tokens))
        total, half = triton_rows.embed(ids, self._embedding, self._norms[0], self._eps, parts, cache.rows)
        for index, ((layer, shape), after) in enumerate(zip(self._layers, self._norms[1:], strict=True)):
            tiles = triton_gemm.tiles_for(layer.qkv, tokens)
            qkv = triton_gemm.scaled_linear(half, layer.qkv, layer.bias, tiles, counters.take(_blocks(layer.qkv)))
            tiles = triton_gemm.tiles_for(layer.out, tokens)
            attended = triton_step.step_attention(
                *(qkv, cache.of(index), turns, self._head_norms(layer)),
                num_heads=shape.num_heads,
                scaling=self.numbers.scaling,
                window=shape.window,
                splits=max(1, cache.splits),
                counters=counters.take(tokens * shape.num_kv_heads),
                is_early=tiles.is_early and tokens <= MOST_TOKENS,  # many tokens' programs are in each other's way
            )
            residual = triton_ends.Residual(total, layer.before_mlp, self._eps, cache.rows)
            half = triton_gemm.added_linear(attended, layer.out, residual, tiles, counters.take(_blocks(layer.out)))
            half = self._mlp(layer.mlp, half, triton_ends.Residual(total, after, self._eps, cache.rows), counters)
        return half

    def _mlp(self, mlp: Mlp | Experts, half: Any, total: Any, counters: _Counters) -> Any:
        """Add a feed-forward network's output to the residual; return half the next norm: (T, D) -> (T, D)."""
        from flowinfer.engine.network import triton_experts, triton_gemm

        tokens = len(half.states)
        if isinstance(mlp, Experts):
            tiles = triton_gemm.tiles_for(mlp.router, tokens)
            logits = triton_gemm.scaled_linear(half, mlp.router, None, tiles, counters.take(_blocks(mlp.router)))
            chosen = triton_experts.route(logits, mlp.num_chosen, half.rows, is_normed=mlp.is_normed)
            gated = triton_experts.gated_experts(half, mlp.gate_up, chosen)
            return triton_experts.added_experts(gated, mlp.down, chosen, total, counters.take(_blocks(mlp.down[0])))
        tiles = triton_gemm.tiles_for(mlp.gate_up, tokens)
        gated = triton_gemm.gated_linear(half, mlp.gate_up, tiles, counters.take(_blocks(mlp.gate_up)))
        tiles = triton_gemm.tiles_for(mlp.down, tokens)
        return triton_gemm.added_linear(gated, mlp.down, total, tiles, counters.take(_blocks(mlp.down)))

    def _prompt(self, ids: Tensor, wanted: Tensor, cache: PagedForward) -> Tensor:
        """Run many tokens: (T,), (W,) -> (W, D); of the last layer no more than keys and values, where W is 0."""
        from flowinfer.engine.network import triton_rows

        turns, last = self._turns(cache), len(self._layers) - 1
        total = _rows(self._embedding, ids)
        states = triton_rows.norm(total, self._norms[0], self._eps)
        for index, ((layer, shape), after) in enumerate(zip(self._layers, self._norms[1:], strict=True)):
            qkv = _linear(states, layer.qkv, layer.bias)
            paged = cache.of(index)
            triton_rows.turn_and_write(qkv, paged, turns, self._head_norms(layer), shape.num_heads)
            if index == last and not len(wanted):
                break
            query = qkv.view(len(qkv), -1, shape.key_size)[:, : shape.num_heads]
            attention = Attention(index, self.numbers.scaling, shape.window, 0.0)
            attended = paged_attention(query, paged, attention, cache.splits)
            added = _linear(attended.flatten(1), layer.out)
            states = triton_rows.norm(total, layer.before_mlp, self._eps, added=added)
            if isinstance(layer.mlp, Experts):
                added = mixed(layer.mlp.block, states)
            else:
                added = _linear(triton_rows.gate(_linear(states, layer.mlp.gate_up)), layer.mlp.down)
            states = triton_rows.norm(total, after, self._eps, added=added)
        return _rows(states, wanted)

    def _head_norms(self, layer: LayerWeights) -> Any:
        from flowinfer.engine.caches.triton_step import HeadNorms

        return HeadNorms(*layer.head_norms, self._eps) if layer.head_norms else None

    def _turns(self, cache: PagedForward) -> Tensor:
        """Return cosines and sines of all positions that the cache has room for: (P, 2, D / 2)."""
        length = cache.table.shape[1] * PAGE
        if not self.tables or len(self.tables[-1]) < length:
            self.tables.append(self._table(max(length, 4096)))
            if self._embedding.is_cuda:
                torch.cuda.current_stream(self._embedding.device).synchronize()  # other loops' streams read it too
        return self.tables[-1]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _table(self, length: int) -> Tensor:
        turns = torch.stack(self.numbers.turns(length), dim=1)
        return turns.to(self._embedding.device, self._embedding.dtype).contiguous()


def _linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b of many tokens: (T, K), (N, K) -> (T, N)."""
    if isinstance(weight, Packed):
        return int4_linear(x, weight.words, weight.scales, weight.zeros, bias, weight.group)  # type: ignore[no-any-return]
    if x.is_meta:  # run ahead, where torch's own way would import its compiler
        return x.new_empty(len(x), len(weight))
    return functional.linear(x, weight, bias)


def _rows(states: Tensor, wanted: Tensor) -> Tensor:
    """Return some rows: (R, D), (W,) -> (W, D)."""
    if states.is_meta:  # as above
        return states.new_empty(len(wanted), states.shape[1])
    return functional.embedding(wanted, states)


class _Counters:
    """Zeros that splits count their arrivals in, a stretch for every launch."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._left = torch.zeros(count, dtype=torch.int32, device=device)

    def take(self, count: int) -> Tensor:
        """Return so many that nobody has."""
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _num_counters(layer: LayerWeights, shape: LayerShape, tokens: int) -> int:
    mlp = layer.mlp
    matrices = (mlp.router, mlp.down[0]) if isinstance(mlp, Experts) else (mlp.gate_up, mlp.down)
    return sum(map(_blocks, (layer.qkv, layer.out, *matrices))) + tokens * shape.num_kv_heads


def _last_block(mlp: Mlp | Experts, tokens: int) -> int:
    """Return how many outputs of a layer one program computes."""
    from flowinfer.engine.network import triton_experts, triton_gemm

    if isinstance(mlp, Experts):
        return triton_experts.tiles_for(mlp.down, tokens * mlp.num_chosen).block_n
    return triton_gemm.tiles_for(mlp.down, tokens).block_n


def _blocks(weight: Matrix) -> int:
    """Return the most blocks that a matrix's outputs are cut into."""
    return -(-weight.shape[0] // 16)
