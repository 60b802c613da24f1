"""The lab's three networks: small, of three real architectures, and a little deeper than wide."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

NAMES = ("Qwen", "Ds", "Yi")
_KINDS = {"Qwen": "qwen2", "Ds": "qwen3", "Yi": "llama"}

_SHAPES: dict[str, dict[str, Any]] = {  # keyword arguments of transformers' configs, of several types
    "Qwen": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "Ds": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "Yi": {
        "hidden_size": 224,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 7,
        "num_key_value_heads": 7,
        "tie_word_embeddings": False,
    },
}

_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
"""For trying the whole recipe in seconds."""


def build(name: str, tokenizer: PreTrainedTokenizerFast, *, seed: int, size: str = "full") -> PreTrainedModel:
    """Build a model with fresh weights for its tokenizer.

    Args:
        name: Qwen, Ds or Yi.
        tokenizer: its tokenizer; the vocabulary and the end token come from it.
        seed: of the weights.
        size: "full", or "tiny" to try things.
    """
    shape = _SHAPES[name]
    if size == "tiny":
        shape = shape | _TINY | {"num_key_value_heads": 4 if name == "Yi" else 2}
        shape |= {"head_dim": 8} if name == "Ds" else {}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        _KINDS[name],
        **shape,
        **ids,
        bos_token_id=tokenizer.bos_token_id,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        initializer_range=0.05,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(**ids)
    return model
