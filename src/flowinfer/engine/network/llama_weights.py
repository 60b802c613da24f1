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

from flowinfer.backends.known import KnownNetwork
from flowinfer.backends.remembered import Numbers
from flowinfer.engine.network.merging import Lead

_FAMILY = tuple(
    f"transformers.models.{kind}.modeling_{kind}"
    for kind in ("llama", "mistral", "qwen2", "qwen3")  # others scale or mask what only long rows would show
)


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer."""

    before_attention: Tensor
    qkv: Tensor
    bias: Tensor | None
    """Of queries, keys and values."""
    head_norms: tuple[Tensor, Tensor] | None
    """Of queries and keys, per head (Qwen3)."""
    out: Tensor
    before_mlp: Tensor
    gate_up: Tensor
    down: Tensor


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
    def num_bytes(self) -> int:
        """Bytes of all matrices; the last one may be the embedding."""
        layers = [one for layer in self.layers for one in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return sum({one.data_ptr(): one.nbytes for one in (self.embedding, self.last, *layers)}.values())


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
    return read_weights(dict(model.named_parameters(remove_duplicate=False)), numbers)


def read_weights(named: Mapping[str, Tensor], numbers: Numbers) -> LlamaWeights:
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
