"""Tiny random transformers models, and pools that hand them to the engine without files."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from flowinfer.backends.hf import HfModel
from flowinfer.spec import ModelSpec
from tests.fusion import toys

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(kind: str, num_columns: int, max_positions: int = 256) -> Any:
    """Return the config of a tiny model: qwen2, llama, gpt2 or mistral (whose layers see the last 8 tokens)."""
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=num_columns,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=max_positions,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
    common = {
        "vocab_size": num_columns,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_positions,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if kind == "mistral":
        return MistralConfig(**common, sliding_window=8)
    return {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind](**common)


@cache
def network(kind: str, num_columns: int, seed: int = 0, max_positions: int = 256) -> Any:
    """Return a tiny random transformers model in float32."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(kind, num_columns, max_positions))
    return made.to(torch.float32).eval()


def wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers loads it."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def model(
    kind: str,
    name: str = "A",
    *,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    padding: int = 3,
    max_positions: int = 256,
    chat: str | None = None,
    eos: str | None = None,
    **spec: Any,
) -> HfModel:
    """Return a tiny model as the backend hands it to the engine, with a few logit columns that have no token."""
    own = tokenizer or (toys.sentencepiece() if kind in ("llama", "mistral") else toys.byte_level())
    known = own.get_vocab()
    end = eos or next((token for token in ("<|im_end|>", "</s>", "<|endoftext|>") if token in known), None)
    shell = wrapped(own, eos_token=end, chat_template=chat)
    num_columns = max(known.values()) + 1 + padding
    made = network(kind, num_columns, seed, max_positions)
    return HfModel(ModelSpec(name=name, ref=f"tiny/{name}", **spec), made, shell)
