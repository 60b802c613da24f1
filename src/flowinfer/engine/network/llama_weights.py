"""What a decoder of Llama's kind consists of: of a transformers model, or of tensors by their names in its files.

The kind is the arithmetic of transformers' Llama, Mistral, Qwen2 and Qwen3. Nothing is believed: a written-out forward
over these weights serves only where it gives the model's own logits (probing.py).
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
    for kind in ("llama", "mistral", "qwen2", "qwen3")  # others scale or mask what only long rows would show
)


Matrix = Tensor | Packed
"""(N, K)."""


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; its matrices are all of one kind."""

    before_attention: Tensor
    qkv: Matrix
    bias: Tensor | None
    """Of queries, keys and values."""
    head_norms: tuple[Tensor, Tensor] | None
    """Of queries and keys, per head (Qwen3)."""
    out: Matrix
    before_mlp: Tensor
    gate_up: Matrix
    down: Matrix


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
    return read_weights(named, numbers)


def read_weights(named: Mapping[str, Any], numbers: Numbers) -> LlamaWeights:
    """Find the weights of merged layers by their names."""
    layers: list[LayerWeights] = []
    while (own := f"model.layers.{len(layers)}") + ".input_layernorm.weight" in named:
        head_norms = (named.get(f"{own}.self_attn.q_norm.weight"), named.get(f"{own}.self_attn.k_norm.weight"))
        layers.append(
            LayerWeights(
                before_attention=named[f"{own}.input_layernorm.weight"],
                qkv=named[f"{own}.self_attn.q_proj.linear.weight"],
                bias=named.get(f"{own}.self_attn.q_proj.linear.bias"),
                head_norms=head_norms if None not in head_norms else None,  # type: ignore[arg-type]  # not narrowed
                out=named[f"{own}.self_attn.o_proj.weight"],
                before_mlp=named[f"{own}.post_attention_layernorm.weight"],
                gate_up=named[f"{own}.mlp.gate_proj.linear.weight"],
                down=named[f"{own}.mlp.down_proj.weight"],
            )
        )
    embedding = named["model.embed_tokens.weight"]
    here = replace(numbers, frequencies=numbers.frequencies.to(embedding.device))
    return LlamaWeights(tuple(layers), embedding, named["model.norm.weight"], named["lm_head.weight"], here)


def _is_plain(layer: Any) -> bool:
    """Return whether a layer's linear layers are merged, of a kind that serves, and have no bias but the first."""
    own, mlp = layer.self_attn, layer.mlp
    leads, others = (own.q_proj, mlp.gate_proj), (own.o_proj, mlp.down_proj)
    if not all(type(one) is Lead for one in leads):
        return False
    linears = (*(one.linear for one in leads), *others)
    kinds = {type(one) for one in linears}
    is_one = kinds in ({nn.Linear}, {Int4Linear}) and all(getattr(one, "order", None) is None for one in linears)
    return is_one and all(one.bias is None for one in linears[1:]) and _is_silu(mlp.act_fn)


def _is_silu(function: Any) -> bool:  # a module or a function
    numbers = torch.linspace(-8, 8, 33)
    return torch.allclose(function(numbers), functional.silu(numbers))
