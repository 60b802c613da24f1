"""Decoders of Llama's kind as their authors published them: for the first check of one that nothing is known of.

transformers' classes take longer to import than a model of 7 B to read. So where every entry of a config is known here
and every weight has the name and shape that follow from them, a model's own logits come from the few formulas below,
in float32 and from the weights as they lie in the files; what takes the model's place is compared with these. Any
other entry, name or shape leaves the model to transformers. Tests hold what is made of a config, and the formulas,
equal to transformers'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.remembered import Numbers, Passed
from flowinfer.checkpoint import Held, read_config

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_COUNTS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings"),
)
_ONLY: Mapping[str, Sequence[Any]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False, True),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
"""Entries that change what a decoder computes, with the values that are understood."""
_SILENT = {
    *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "max_window_layers"),
}
"""Entries that do not, or are looked at by themselves."""
_TOLD_APART = {"head_dim", "layer_types", "rms_norm_eps", "rope_parameters", "rope_theta", "sliding_window"}
PROBE_LENGTHS = (5, 3)
"""Rows of the check at load: two, so that rows that see one another are found out."""
_EMBEDDING, _LAST = "model.embed_tokens.weight", "lm_head.weight"


def described(held: Held) -> Passed | None:
    """Return what a model's files say of its forward, its logits left out; None where transformers has to say it."""
    folder = held.files[0].parent
    config = read_config(folder) or {}
    if not _is_known(config) or (base := _base(config)) is None or held.shapes != _shapes(config):
        return None
    try:
        ends = _ends(folder, config)
    except (OSError, ValueError, AttributeError):  # transformers says what is wrong with the file
        return None
    dim = _dim(config)
    layer = (config["num_attention_heads"], config["num_key_value_heads"], dim, dim, 0, 0.0)
    frequencies = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
    return Passed(
        layers=(layer,) * config["num_hidden_layers"],
        numbers=Numbers(frequencies, 1.0, dim**-0.5, config["rms_norm_eps"]),
        max_positions=config["max_position_embeddings"],
        end_ids=ends,
        is_tied=_is_tied(config),
    )


def probe_rows(size: int, device: torch.device) -> list[Tensor]:
    """Return the rows of ids that checks at load are run over, of a vocabulary of a size."""
    ids = torch.randint(0, size, (sum(PROBE_LENGTHS),), generator=torch.Generator().manual_seed(0))
    return list(torch.split(ids.to(device), list(PROBE_LENGTHS)))


def own_logits(weights: Mapping[str, Tensor], known: Passed) -> Tensor:
    """Return a model's logits at the ends of the probe's rows: (2, V_k) float32."""
    embedding = weights[_EMBEDDING]
    return torch.stack([last_logits(row, weights, known) for row in probe_rows(len(embedding), embedding.device)])


@torch.inference_mode()
def last_logits(ids: Tensor, weights: Mapping[str, Tensor], known: Passed) -> Tensor:
    """Return the logits that follow on a row of ids: (T,) -> (V_k,) float32.

    Args:
        ids: of one row.
        weights: by their names in the files; each is made float32 by itself.
        known: as `described` gives it.
    """
    assert known.numbers is not None, "described"
    eps = known.numbers.eps
    angles = torch.outer(torch.arange(len(ids), device=ids.device), known.numbers.frequencies.to(ids.device))
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, D / 2)
    states = weights[_EMBEDDING][ids].float()  # (T, hidden)
    for index, (heads, kv_heads, *_) in enumerate(known.layers):
        own = _Layer(weights, f"model.layers.{index}", eps)
        normed = own.norm("input_layernorm", states)
        queries = own.turned("q", own.linear("self_attn.q_proj", normed), heads, turns)
        keys = own.turned("k", own.linear("self_attn.k_proj", normed), kv_heads, turns)
        values = own.linear("self_attn.v_proj", normed).view(len(ids), kv_heads, -1)
        attended = _attended(queries, keys, values, known.numbers.scaling)
        states = states + own.linear("self_attn.o_proj", attended)
        normed = own.norm("post_attention_layernorm", states)
        gate, up = own.linear("mlp.gate_proj", normed), own.linear("mlp.up_proj", normed)
        states = states + own.linear("mlp.down_proj", gate * torch.sigmoid(gate) * up)
    state = _Layer(weights, "model", eps).norm("norm", states[-1])
    last = weights[_EMBEDDING if known.is_tied else _LAST]
    return torch.cat([part.float() @ state for part in torch.split(last, 16_384)])


class _Layer:
    """The weights of one layer by their own names."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, eps: float) -> None:
        self._weights, self._name, self._eps = weights, name, eps

    def linear(self, name: str, states: Tensor) -> Tensor:
        """Return W x + b: (T, K) -> (T, N)."""
        made = states @ self._weights[f"{self._name}.{name}.weight"].float().T
        bias = self._weights.get(f"{self._name}.{name}.bias")
        return made if bias is None else made + bias.float()

    def norm(self, name: str, states: Tensor) -> Tensor:
        """Return x w / sqrt(mean(x^2) + eps)."""
        weight = self._weights[f"{self._name}.{name}.weight"].float()
        return states / (states.square().mean(-1, keepdim=True) + self._eps).sqrt() * weight

    def turned(self, name: str, states: Tensor, heads: int, turns: Tensor) -> Tensor:
        """Return queries or keys, turned by their positions: (T, H D) -> (T, H, D)."""
        states = states.view(len(states), heads, -1)
        if f"{self._name}.self_attn.{name}_norm.weight" in self._weights:
            states = self.norm(f"self_attn.{name}_norm", states)
        first, second = states.chunk(2, dim=-1)
        turned = torch.complex(first, second) * turns
        return torch.cat((turned.real, turned.imag), dim=-1)


def _attended(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Let every token see those before it: (T, H, D), (T, H_kv, D), (T, H_kv, D) -> (T, H D)."""
    share = queries.shape[1] // keys.shape[1]
    keys, values = (states.repeat_interleave(share, dim=1) for states in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * scaling
    later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), values).flatten(1)


def _is_known(config: Mapping[str, Any]) -> bool:
    """Return whether every entry of a config is understood, but how positions turn."""
    kind = config.get("model_type")
    if kind not in _CLASSES or config.get("architectures") != [_CLASSES[kind]]:
        return False
    if config.keys() - _ONLY.keys() - _SILENT - _TOLD_APART - set(_COUNTS):
        return False
    if not all(value in _ONLY[name] for name, value in config.items() if name in _ONLY) or "hidden_act" not in config:
        return False
    counts = [config.get(name) for name in _COUNTS]
    if not all(type(count) is int and count > 0 for count in counts) or type(config.get("rms_norm_eps")) is not float:
        return False
    is_windowed = config.get("sliding_window", 0) is not None and kind == "mistral"
    is_plain = set(config.get("layer_types") or ()) <= {"full_attention"}
    is_whole = config["num_attention_heads"] % config["num_key_value_heads"] == 0
    return is_plain and is_whole and not is_windowed and _dim(config) > 0


def _dim(config: Mapping[str, Any]) -> int:
    """Return how many numbers a head has; 0 where that is not said as it is understood."""
    stated = config.get("head_dim")
    if type(stated) is int and stated % 2 == 0:
        return stated
    found, rest = divmod(config["hidden_size"], config["num_attention_heads"])
    return found if stated is None and not rest and found % 2 == 0 and config["model_type"] != "qwen3" else 0


def _base(config: Mapping[str, Any]) -> float | None:
    """Return what positions' frequencies are powers of; None where they are rescaled, or it is not said."""
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.get("rope_theta")}
    if not isinstance(rope, dict) or rope.keys() != {"rope_type", "rope_theta"} or rope["rope_type"] != "default":
        return None
    base: Any = rope["rope_theta"]
    return base if type(base) in (int, float) and config.get("rope_theta", base) == base else None


def _is_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", False))


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights that a config asks for, by name."""
    hidden, inner, dim, kind = config["hidden_size"], config["intermediate_size"], _dim(config), config["model_type"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not _is_tied(config):
        shapes[_LAST] = (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.o_proj.weight": (hidden, queries),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            layer[f"self_attn.{name}_proj.weight"] = (size, hidden)
            if kind == "qwen2":
                layer[f"self_attn.{name}_proj.bias"] = (size,)
        if kind == "qwen3":
            layer |= {"self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,)}
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def _ends(folder: Path, config: Mapping[str, Any]) -> Any:  # looked at where a vocabulary is made of it
    """Return which ids end an answer: as the generation config says, or the model's where there is none."""
    path = folder / "generation_config.json"
    return (json.loads(path.read_bytes()) if path.is_file() else config).get("eos_token_id")
