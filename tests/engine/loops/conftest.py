"""Tiny random models of their own: packing merges layers in place."""

from __future__ import annotations

import copy

import pytest

from flowinfer.backends.hf import HfModel
from tests.backends import tiny
from tests.fusion import toys


@pytest.fixture(scope="session")
def models() -> dict[str, HfModel]:
    """Return models of mixed vocabularies; W's layers see the last 8 tokens."""
    made = {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "C": tiny.model("gpt2", "C", seed=2, tokenizer=toys.byte_level(330)),
        "W": tiny.model("mistral", "W", seed=3),
        "A2": tiny.model("qwen2", "A2", seed=4),
    }
    for model in made.values():
        model._model = copy.deepcopy(model._model)
    return made
