"""What a decoder of Llama's kind consists of: of a transformers model, or of tensors by their names in its files.

The kind is the arithmetic of transformers' Llama, Mistral, Qwen2 and Qwen3, and of Mixtral and Qwen3-MoE, where layers
have experts. Nothing is believed: a written-out forward over these weights serves only where it gives the model's own
logits (probing.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowinfer.backends.int4 import Int4Linear, Packed
from flowinfer.backends.known import KnownNetwork
from flowinfer.backends.remembered import Numbers
from flowinfer.engine.network.merging import Lead

_FAMILY = tuple(
    f"transformers.models.{kind}.modeling_{kind}"
    for kind in (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "mixtral",
        "qwen3_moe",
    )  # others scale or mask what only long rows would show
)


Matrix = Tensor | Packed
"""(N, K)."""


@dataclass(frozen=True)
class Mlp:
    """A feed-forward network."""

    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Experts:
    """Feed-forward networks of which a token passes some."""

    block: Any
    """Transformers' module of them and their router."""
    router: Tensor
    """(E, D)."""
    gate_up: Tensor
    """(E, 2 I, D)."""
    down: Tensor
    """(E, D, I)."""
    num_chosen: int
    is_normed: bool
    """Whether a token's shares sum to 1."""


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; its matrices, experts aside, are all of one kind."""

    before_attention: Tensor
    qkv: Matrix
    bias: Tensor | None
    """Of queries, keys and values."""
    head_norms: tuple[Tensor, Tensor] | None
    """Of queries and keys, per head (Qwen3)."""
    out: Matrix
    before_mlp: Tensor
    mlp: Mlp | Experts


@dataclass(frozen=True)
class LlamaWeights:
    """A whole decoder."""

    layers: tuple[LayerWeights, ...]
    embedding: Tensor
    norm: Tensor
    last: Tensor
    """The matrix that gives logits."""
    numbers: Numbers

    @property
    def is_packed(self) -> bool:
        """Return whether the layers' matrices are of four bits."""
        return any(isinstance(layer.qkv, Packed) for layer in self.layers)

    @property
    def is_mixture(self) -> bool:
        """Return whether there are layers of experts."""
        return any(isinstance(layer.mlp, Experts) for layer in self.layers)


def weights_of(model: Any) -> LlamaWeights | None:  # a transformers model, or a KnownNetwork
    """Return the weights of a model whose linear layers are merged, or None where it is of another kind."""
    if isinstance(model, KnownNetwork):
        assert model.passed.numbers, "known networks have been written out before"
        return read_weights(model.merged(), model.passed.numbers)
    is_family = type(model).__module__ in _FAMILY and type(model).__name__.endswith("ForCausalLM")
    is_plain = is_family and type(model.lm_head) is nn.Linear and model.lm_head.bias is None
    if not is_plain:
        return None
    layers, rotary = model.model.layers, model.model.rotary_emb
    scaling = layers[0].self_attn.scaling
    if not all(_is_plain(layer) and layer.self_attn.scaling == scaling for layer in layers):
        return None
    numbers = Numbers(
        rotary.inv_freq, float(rotary.attention_scaling), float(scaling), float(model.model.norm.variance_epsilon)
    )
    named = dict[str, Matrix](model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if isinstance(module, Int4Linear):
            named[f"{name}.weight"] = module.packed()
    experts = {index: _experts(layer.mlp) for index, layer in enumerate(layers) if _is_mixture(layer.mlp)}
    return read_weights(named, numbers, experts)


def read_weights(
    named: Mapping[str, Any], numbers: Numbers, experts: Mapping[int, Experts] | None = None
) -> LlamaWeights:
    """Find the weights of merged layers by their names, but those of layers whose experts are given."""
    layers: list[LayerWeights] = []
    while (own := f"model.layers.{len(layers)}") + ".input_layernorm.weight" in named:
        mlp = (experts or {}).get(len(layers)) or Mlp(
            named[f"{own}.mlp.gate_proj.linear.weight"], named[f"{own}.mlp.down_proj.weight"]
        )
        head_norms = (named.get(f"{own}.self_attn.q_norm.weight"), named.get(f"{own}.self_attn.k_norm.weight"))
        layers.append(
            LayerWeights(
                before_attention=named[f"{own}.input_layernorm.weight"],
                qkv=named[f"{own}.self_attn.q_proj.linear.weight"],
                bias=named.get(f"{own}.self_attn.q_proj.linear.bias"),
                head_norms=head_norms if None not in head_norms else None,  # type: ignore[arg-type]  # not narrowed
                out=named[f"{own}.self_attn.o_proj.weight"],
                before_mlp=named[f"{own}.post_attention_layernorm.weight"],
                mlp=mlp,
            )
        )
    embedding = named["model.embed_tokens.weight"]
    here = replace(numbers, frequencies=numbers.frequencies.to(embedding.device))
    return LlamaWeights(tuple(layers), embedding, named["model.norm.weight"], named["lm_head.weight"], here)


def _is_plain(layer: Any) -> bool:
    """Return whether a layer's linear layers are merged, of a kind that serves, and have no bias but the first."""
    own, mlp = layer.self_attn, layer.mlp
    leads, others = [own.q_proj], [own.o_proj]
    if not _is_mixture(mlp):
        leads, others = [*leads, mlp.gate_proj], [*others, mlp.down_proj]
    if not all(type(one) is Lead for one in leads):
        return False
    linears = (*(one.linear for one in leads), *others)
    kinds = {type(one) for one in linears}
    is_one = kinds in ({nn.Linear}, {Int4Linear}) and all(getattr(one, "order", None) is None for one in linears)
    is_gated = _is_silu((mlp.experts if _is_mixture(mlp) else mlp).act_fn)
    return is_one and all(one.bias is None for one in linears[1:]) and is_gated


def _is_mixture(mlp: Any) -> bool:  # a module
    return hasattr(mlp, "experts")


def _experts(block: Any) -> Experts:  # transformers' module
    own, router = block.experts, block.gate
    is_normed = bool(getattr(router, "norm_topk_prob", True))
    return Experts(block, router.weight, own.gate_up_proj, own.down_proj, int(router.top_k), is_normed)


def _is_silu(function: Any) -> bool:  # a module or a function
    numbers = torch.linspace(-8, 8, 33)
    return torch.allclose(function(numbers), functional.silu(numbers))
