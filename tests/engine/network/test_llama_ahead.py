"""What is compiled ahead is what a model's files and config lead to; needs Triton, not a GPU."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.caches.launching import Ahead
from flowinfer.engine.network import llama_ahead
from flowinfer.spec import ModelSpec
from tests.engine.network.test_llama import WRITTEN
from tests.engine.network.test_runner import CONFIGS, network

assert CUDA is not None


class Noting(Ahead):
    """Notes kernels by name instead of compiling them."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.names: Counter[str] = Counter()

    def compile(self, kernel: Any, *arguments: object, **options: object) -> None:
        """Note its name."""
        self.names[kernel.__name__] += 1


@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_of_llamas_kind_leads_to_every_kernel_of_its_forward(name: str, tmp_path: Path) -> None:
    network(CONFIGS[name]).to(torch.bfloat16).save_pretrained(tmp_path)
    noting = Noting()
    llama_ahead.compile_for(noting, [ModelSpec(name="A", ref=str(tmp_path))])
    expected = {"_embed_kernel", "_linear_kernel", "_step_kernel", "_finish_kernel"}
    assert noting.names.keys() == expected | {
        "_norm_kernel",
        "_turn_kernel",
        "_attend_kernel",
        "_join_kernel",
        "_gate_kernel",
    }


@pytest.mark.parametrize("change", [{"model_type": "gpt2"}, {"num_attention_heads": 0}, {"hidden_size": None}, None])
def test_what_cannot_be_told_ahead_is_left_to_the_loader(change: dict[str, Any] | None, tmp_path: Path) -> None:
    network(CONFIGS["Qwen2"]).to(torch.bfloat16).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{" if change is None else json.dumps(json.loads(config.read_text()) | change))
    noting = Noting()
    llama_ahead.compile_for(noting, [ModelSpec(name="A", ref=str(tmp_path)), ModelSpec(name="B", ref="/nowhere")])
    assert not noting.names
