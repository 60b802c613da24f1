"""The forward of Llama's kind of decoder, written out: few operations, no module calls.

Small models on a CPU spend most of a step between operations (on GPUs: llama_gpu.py). This is the arithmetic of
transformers' Llama, Mistral, Qwen2 and Qwen3, and nothing is believed: it serves only where it gives the model's own
logits (probing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from flowinfer.backends.int4 import Packed
from flowinfer.backends.known import WRITTEN
from flowinfer.backends.remembered import Numbers
from flowinfer.engine.caches.attention import Attention, LayerShape, PackedCache
from flowinfer.engine.network.llama_weights import LayerWeights, LlamaWeights, Mlp, weights_of
from flowinfer.engine.network.matrices import MOST_COPIED, Matrix

_MOST_STEP_TOKENS, _ALWAYS_STEP = 64, 8
"""Most tokens that a step has, and so few that no prompt's number of them needs to be told apart."""


class _Norm:
    """An RMS norm in five operations, half of what torch's own makes on a CPU.

    Args:
        weight: (D,).
        eps: what is added to the mean of squares.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = torch.full((1,), eps, dtype=weight.dtype)
        self._share = 1 / weight.shape[0]

    def __call__(self, states: Tensor) -> Tensor:
        """Return x w / sqrt(mean(x^2) + eps), of the same shape."""
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps, length, length, value=self._share).rsqrt_()
        return (states * scale).mul_(self._weight)


@dataclass(frozen=True)
class _Layer:
    """One decoder layer."""

    before_attention: _Norm
    qkv: Matrix
    head_norms: tuple[_Norm, _Norm] | None
    """Of queries and keys, per head (Qwen3)."""
    out: Matrix
    before_mlp: _Norm
    gate_up: Matrix
    down: Matrix
    num_heads: int
    num_kv_heads: int
    attention: Attention


class LlamaForward:
    """Run a model of Llama's kind over packed tokens.

    Args:
        weights: of the whole decoder.
        shapes: what its layers keep.
    """

    def __init__(self, weights: LlamaWeights, shapes: Sequence[LayerShape]) -> None:
        self.most_step_tokens = _MOST_STEP_TOKENS
        parts = [(layer, _dense(layer)) for layer in weights.layers]
        layers = [one for layer, mlp in parts for one in (layer.qkv, layer.out, mlp.gate_up, mlp.down)]
        sizes = {one.data_ptr(): one.nbytes for one in (weights.embedding, weights.last, *map(_plain, layers))}
        is_small = sum(sizes.values()) <= MOST_COPIED
        self.numbers = weights.numbers
        self._layers = [
            self._layer(layer, shape, k, is_small)
            for k, (layer, shape) in enumerate(zip(weights.layers, shapes, strict=True))
        ]
        self._prompt_layers = [_unordered(layer) for layer in self._layers]
        """The same layers for prompts, whose lengths never end."""
        self._embedding = weights.embedding
        self._norm = _Norm(weights.norm, self.numbers.eps)
        self._last = Matrix(weights.last, is_copied=is_small)
        self._table = torch.empty(0)

    def states(self, ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        """Return wanted tokens' last hidden states, before the last matrix: (T,), (T,), (W,) -> (W, hidden)."""
        return self._run(ids, positions, cache, len(wanted))[wanted]

    def read(self, ids: Tensor, positions: Tensor, cache: PackedCache) -> None:
        """Run for keys and values alone."""
        self._run(ids, positions, cache, 0)

    def _run(self, ids: Tensor, positions: Tensor, cache: PackedCache, num_wanted: int) -> Tensor:
        """Return the last hidden states of T tokens: (T,), (T,) -> (T, hidden).

        Args:
            ids, positions, cache: as of `HeadRunner.logits`.
            num_wanted: of how many tokens logits will be asked: of most in a step, of few in prompts.
        """
        states = functional.embedding(ids, self._embedding)
        cos, sin = self._turns(positions)
        is_step = len(ids) <= min(max(_ALWAYS_STEP, 2 * num_wanted), self.most_step_tokens)
        for layer in self._layers if is_step else self._prompt_layers:
            attended = cache.attend(*_heads(layer, states, cos, sin), layer.attention)  # (T, H, D)
            if not num_wanted and layer.attention.layer == len(self._layers) - 1:
                break  # its keys and values are kept, and nobody wants more
            states = layer.out.added(attended.flatten(1), states)
            gate, up = layer.gate_up(layer.before_mlp(states)).chunk(2, dim=-1)
            states = layer.down.added(functional.silu(gate).mul_(up), states)
        return self._norm(states)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of last hidden states: (W, hidden) -> (W, V_k)."""
        return self._last(states)

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions, (T, 1, D) each, the first half of the sines negative."""
        if self._table.shape[0] == 0 or int(positions.max()) >= self._table.shape[0]:
            self._table = self._rows_of_table(max(2 * self._table.shape[0], int(positions.max()) + 1, 256))
        cos, sin = self._table[positions].unsqueeze(2).unbind(1)
        return cos, sin

    @torch.inference_mode(False)
    @torch.no_grad()
    def _rows_of_table(self, length: int) -> Tensor:
        """Return cosines and sines of the first positions, (length, 2, D): an ordinary tensor, which can be copied."""
        halves = self.numbers.turns(length)
        cos, sin = (half.to(self._embedding.dtype) for half in halves)
        return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)

    def _layer(self, own: LayerWeights, shape: LayerShape, index: int, is_copied: bool) -> _Layer:
        eps, mlp = self.numbers.eps, _dense(own)
        return _Layer(
            before_attention=_Norm(own.before_attention, eps),
            qkv=Matrix(_plain(own.qkv), own.bias, is_copied=is_copied),
            head_norms=(_Norm(own.head_norms[0], eps), _Norm(own.head_norms[1], eps)) if own.head_norms else None,
            out=Matrix(_plain(own.out), is_copied=is_copied),
            before_mlp=_Norm(own.before_mlp, eps),
            gate_up=Matrix(_plain(mlp.gate_up), is_copied=is_copied),
            down=Matrix(_plain(mlp.down), is_copied=is_copied),
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            attention=Attention(index, self.numbers.scaling, shape.window, shape.softcap),
        )


def _heads(layer: _Layer, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (T, H, D), keys and values (T, H_kv, D)."""
    together = layer.qkv(layer.before_attention(states))
    num_turned = layer.num_heads + layer.num_kv_heads
    together = together.view(len(states), num_turned + layer.num_kv_heads, -1)
    turned = together[:, :num_turned]
    if layer.head_norms:
        parts = turned[:, : layer.num_heads], turned[:, layer.num_heads :]
        turned = torch.cat([norm(part) for norm, part in zip(layer.head_norms, parts, strict=True)], dim=1)
    turned = torch.addcmul(turned * cos, turned.roll(cos.shape[-1] // 2, -1), sin)
    return turned[:, : layer.num_heads], turned[:, layer.num_heads :], together[:, num_turned:]


class Written(Protocol):
    """A forward that takes the place of a model's modules."""

    most_step_tokens: int
    """Tokens above which they are taken to be a prompt's."""
    numbers: Numbers

    def states(self, ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        """Return wanted tokens' last hidden states, before the last matrix: (T,), (T,), (W,) -> (W, hidden)."""

    def read(self, ids: Tensor, positions: Tensor, cache: PackedCache) -> None:
        """Run for keys and values alone."""

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of last hidden states: (W, hidden) -> (W, V_k)."""


def llama_forward(model: Any, shapes: Sequence[LayerShape]) -> Written | None:  # as of `weights_of`
    """Return the written-out forward of a model, or None where it is of another kind."""
    weights = weights_of(model) if model.dtype in WRITTEN.get(model.device.type, ()) else None
    if weights is None or (model.device.type == "cpu" and (weights.is_packed or weights.is_mixture)):
        return None
    if model.device.type == "cuda":
        from flowinfer.engine.network.llama_gpu import GpuLlamaForward

        return GpuLlamaForward(weights, shapes)
    return LlamaForward(weights, shapes)


def _plain(matrix: Tensor | Packed) -> Tensor:
    assert isinstance(matrix, Tensor), "on a CPU weights of four bits keep their modules"
    return matrix


def _dense(layer: LayerWeights) -> Mlp:
    assert isinstance(layer.mlp, Mlp), "on a CPU experts keep their modules"
    return layer.mlp


def _unordered(layer: _Layer) -> _Layer:
    matrices = {name: getattr(layer, name).unordered() for name in ("qkv", "out", "gate_up", "down")}
    return replace(layer, **matrices)
