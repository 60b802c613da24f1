"""What a first check without transformers is made of: a config as transformers reads it, and formulas."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from flowinfer.backends import hf, plain
from flowinfer.backends.known import KnownNetwork
from flowinfer.backends.plain import described, last_logits, own_logits
from flowinfer.backends.remembered import Passed, recall
from flowinfer.checkpoint import Held, read_folder
from flowinfer.engine.network import probing
from flowinfer.engine.network.runner import HeadRunner, runner_of
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.conftest import shared_path
from tests.fusion import toys

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "architectures": ["LlamaForCausalLM"],
}
CONFIGS = (
    LlamaConfig(**SIZE, rope_theta=5e5, eos_token_id=[7, 9]),
    LlamaConfig(**SIZE | {"num_key_value_heads": 1}, head_dim=20, tie_word_embeddings=True, rms_norm_eps=0.02),
    MistralConfig(**SIZE, sliding_window=None),
    Qwen2Config(**SIZE, sliding_window=16, max_position_embeddings=77),
    Qwen3Config(**SIZE, head_dim=8),
)


def saved(config: Any, folder: Path) -> Any:
    """Save a model of a config with weights of all kinds; return its network."""
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    network.save_pretrained(folder)
    tiny.wrapped(toys.byte_level(), chat_template=tiny.CHAT).save_pretrained(folder)
    return network


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "model"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_formulas_give_what_transformers_own_network_gives(config: Any, folder: Path) -> None:
    network = saved(config, folder)
    known = described(read_folder(folder))
    assert known is not None
    weights = load_file(folder / "model.safetensors")
    torch.testing.assert_close(own_logits(weights, known), probing.plain_logits(network), rtol=1e-3, atol=1e-4)
    long = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(2))
    expected = network(input_ids=long[None]).logits[0, -1].detach()
    torch.testing.assert_close(last_logits(long, weights, known), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_config_is_read_as_transformers_reads_it(config: Any, folder: Path) -> None:
    network = saved(config, folder)
    ours = described(read_folder(folder))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"unheard_of": 1}))  # so that transformers takes it
    model = hf.load(ModelSpec(name="A", ref=str(folder)), "cpu")
    theirs, runner = recall(model.transformers_model), HeadRunner(model.transformers_model)
    assert ours is not None and ours.numbers is not None and runner._written is not None
    assert ours.layers == tuple(map(astuple, runner.layers))
    assert (ours.max_positions, ours.end_ids) == (theirs.max_positions, theirs.end_ids)
    assert ours.is_tied == network.config.tie_word_embeddings
    numbers = runner._written.numbers
    assert astuple(ours.numbers)[1:] == astuple(numbers)[1:]
    torch.testing.assert_close(ours.numbers.frequencies, numbers.frequencies, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"unheard_of": None},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"head_dim": 13},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_theta": 7.0},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["Qwen2ForCausalLM"]},
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": "2"},
        {"num_attention_heads": 0},
        {"num_attention_heads": True},
        {"vocab_size": 299},
        {"rms_norm_eps": None},
        {"tie_word_embeddings": True},
        {"quantization_config": {"bits": 4}},
        {"max_position_embeddings": None},
    ],
    ids=str,
)
def test_what_is_not_understood_is_transformers_to_load(change: dict[str, Any], understood: Path) -> None:
    held = read_folder(understood)
    told = json.loads((understood / "config.json").read_text())
    assert described(held) is not None
    try:
        (understood / "config.json").write_text(json.dumps(told | change))
        assert described(held) is None
    finally:
        (understood / "config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def understood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("understood")
    saved(CONFIGS[0], folder)
    return folder


@pytest.mark.parametrize("name", ["Qwen2.5-7B-Instruct", "DeepSeek-R1-Distill-Qwen-7B", "Yi-1.5-9B"])
def test_configs_of_the_papers_models_are_understood(name: str) -> None:
    folder = shared_path("data", "configs", name)
    config = json.loads((folder / "config.json").read_text())
    known = described(Held((folder / "model.safetensors",), plain._shapes(config)))
    assert known is not None and known.max_positions == config["max_position_embeddings"]


def test_a_generation_config_that_is_damaged_is_transformers_to_tell(understood: Path) -> None:
    held, path = read_folder(understood), understood / "generation_config.json"
    before = path.read_text()
    for text, ends in ((before, [7, 9]), ("{}", None), ('{"eos_token_id": 5}', 5)):
        path.write_text(text)
        known = described(held)
        assert known is not None and known.end_ids == ends
    for text in ("{", "[]", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        assert described(held) is None
    path.write_text(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_never_seen_is_written_out_and_compared_with_its_formulas(dtype: torch.dtype, folder: Path) -> None:
    """Whatever dtype these are in, beside that of the model."""
    saved(CONFIGS[0], folder)
    network = hf.load(ModelSpec(name="A", ref=str(folder)), "cpu").transformers_model
    assert isinstance(network, KnownNetwork) and network.passed.logits is not None and network.passed.session == ""
    network.passed = replace(network.passed, logits=network.passed.logits.to(dtype))
    runner = runner_of(network)
    assert isinstance(runner, HeadRunner) and runner.model is network


def test_where_it_differs_from_its_formulas_transformers_network_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(CONFIGS[0], folder)
    network = hf.load(ModelSpec(name="A", ref=str(folder)), "cpu").transformers_model
    network.merged()["model.layers.1.mlp.down_proj.weight"].neg_()
    runner = runner_of(network)
    assert isinstance(runner, HeadRunner) and runner.model is network.whole() and runner._written is None


def test_weights_that_are_no_numbers_are_never_remembered(folder: Path) -> None:
    saved(CONFIGS[0], folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        with pytest.raises(Exception, match="no numbers"):
            hf.load(ModelSpec(name="A", ref=str(folder)), "cpu")


def test_a_session_of_a_network_is_tried_when_it_is_opened(folder: Path) -> None:
    saved(CONFIGS[0], folder)
    model = hf.load(ModelSpec(name="A", ref=str(folder)), "cpu")
    model.open()
    assert recall(model.transformers_model.whole()) != Passed()
    assert recall(model.transformers_model.whole()).session == "BatchSession"
