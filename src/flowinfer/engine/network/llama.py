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
from torch import Tensor, nn
from torch.nn import functional

from flowinfer.engine.caches.attention import Attention, LayerShape, PackedCache
from flowinfer.engine.network.matrices import MOST_COPIED, Matrix
from flowinfer.engine.network.merging import Lead

_FAMILY = tuple(
    f"transformers.models.{kind}.modeling_{kind}"
    for kind in ("llama", "mistral", "qwen2", "qwen3")  # others scale or mask what only long rows would show
)
_MOST_STEP_TOKENS, _ALWAYS_STEP = 64, 8
"""Most tokens that a step has, and so few that no prompt's number of them needs to be told apart."""


class _Norm:
    """An RMS norm in five operations, half of what torch's own makes on a CPU.

    Args:
        module: transformers' own.
    """

    def __init__(self, module: Any) -> None:  # untyped in transformers
        self._weight: Tensor = module.weight
        self._eps = torch.full((1,), module.variance_epsilon, dtype=module.weight.dtype)
        self._share = 1 / self._weight.shape[0]

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
        model: a transformers model whose linear layers are merged.
        shapes: what its layers keep.
    """

    def __init__(self, model: Any, shapes: Sequence[LayerShape]) -> None:  # transformers' models are untyped
        inner = model.model
        self.most_step_tokens = _MOST_STEP_TOKENS
        is_small = sum(parameter.nbytes for parameter in model.parameters()) <= MOST_COPIED
        self._layers = [
            _layer(layer, shape, k, is_small) for k, (layer, shape) in enumerate(zip(inner.layers, shapes, strict=True))
        ]
        self._prompt_layers = [_unordered(layer) for layer in self._layers]
        """The same layers for prompts, whose lengths never end."""
        self._embedding: Tensor = inner.embed_tokens.weight
        self._norm = _Norm(inner.norm)
        self._last = Matrix(model.lm_head.weight, is_copied=is_small)
        self._rotary = inner.rotary_emb
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
        cos, sin = self._rotary(self._embedding, torch.arange(length)[None])
        half = sin.shape[-1] // 2
        return torch.stack((cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)), dim=1)


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

    def states(self, ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        """Return wanted tokens' last hidden states, before the last matrix: (T,), (T,), (W,) -> (W, hidden)."""

    def read(self, ids: Tensor, positions: Tensor, cache: PackedCache) -> None:
        """Run for keys and values alone."""

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of last hidden states: (W, hidden) -> (W, V_k)."""


def llama_forward(model: Any, shapes: Sequence[LayerShape]) -> Written | None:  # see LlamaForward
    """Return the written-out forward of a model, or None where it is of another kind."""
    is_family = type(model).__module__ in _FAMILY and type(model).__name__.endswith("ForCausalLM")
    kinds = {"cpu": (torch.float32, torch.float64), "cuda": (torch.bfloat16,)}
    if not is_family or model.dtype not in kinds.get(model.device.type, ()):
        return None
    is_plain = type(model.lm_head) is nn.Linear and model.lm_head.bias is None
    if not is_plain or not all(map(_is_plain, model.model.layers)):
        return None
    if model.device.type == "cuda":
        from flowinfer.engine.network.llama_gpu import GpuLlamaForward

        return GpuLlamaForward(model, shapes)
    return LlamaForward(model, shapes)


def _is_plain(layer: Any) -> bool:
    """Return whether a layer's linear layers are merged, unquantized and without bias where none is expected."""
    own, mlp = layer.self_attn, layer.mlp
    leads, others = (own.q_proj, mlp.gate_proj), (own.o_proj, mlp.down_proj)
    if not all(type(one) is Lead and type(one.linear) is nn.Linear for one in leads) or not all(
        type(one) is nn.Linear for one in others
    ):
        return False
    unbiased = (mlp.gate_proj.linear, own.o_proj, mlp.down_proj)
    return all(one.bias is None for one in unbiased) and _is_silu(mlp.act_fn)


def _is_silu(function: Any) -> bool:  # a module or a function
    numbers = torch.linspace(-8, 8, 33)
    return torch.allclose(function(numbers), functional.silu(numbers))


def _layer(layer: Any, shape: LayerShape, index: int, is_copied: bool) -> _Layer:
    own, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before_attention=_Norm(layer.input_layernorm),
        qkv=Matrix(own.q_proj.linear.weight, own.q_proj.linear.bias, is_copied=is_copied),
        head_norms=(_Norm(own.q_norm), _Norm(own.k_norm)) if hasattr(own, "q_norm") else None,
        out=Matrix(own.o_proj.weight, is_copied=is_copied),
        before_mlp=_Norm(layer.post_attention_layernorm),
        gate_up=Matrix(mlp.gate_proj.linear.weight, is_copied=is_copied),
        down=Matrix(mlp.down_proj.weight, is_copied=is_copied),
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        attention=Attention(index, own.scaling, shape.window, shape.softcap),
    )


def _unordered(layer: _Layer) -> _Layer:
    matrices = {name: getattr(layer, name).unordered() for name in ("qkv", "out", "gate_up", "down")}
    return replace(layer, **matrices)
