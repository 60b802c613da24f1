"""Weights that are read ahead: the same network as transformers' own loading gives, or none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2Config

from flowinfer.backends import hf, weights
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.fusion import toys

KINDS = ("qwen2", "llama", "gpt2", "mistral", "tied", "mixtral")


def _config(kind: str) -> Any:
    if kind == "mixtral":
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 2}
        return MixtralConfig(vocab_size=300, num_attention_heads=4, num_key_value_heads=2, **small)
    if kind == "tied":
        return Qwen2Config(**{**tiny.config("qwen2", 300).to_dict(), "tie_word_embeddings": True})
    return tiny.config(kind, 300)


def _folder(path: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    network: Any = AutoModelForCausalLM.from_config(_config(kind)).to(dtype)
    network.generation_config.max_length = 77
    network.save_pretrained(path, max_shard_size="40KB")
    tiny.wrapped(toys.byte_level(), eos_token="<|im_end|>", chat_template=tiny.CHAT).save_pretrained(path)
    return path


def _loaded(path: Path, *, ahead: bool, dtype: str = "auto") -> Any:
    spec = ModelSpec(name="A", ref=str(path))
    if ahead:
        weights.begin({"A": (spec, "cpu")}, kind="cpu")
        assert weights.is_begun(spec, "cpu")
    return hf.load(spec, "cpu", dtype).transformers_model


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_around_read_weights_is_transformers_own_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Parameters, buffers that no file holds, ties, dtypes, what it generates by; no conversion is passed over."""
    path = _folder(tmp_path, kind)
    theirs, ours = _loaded(path, ahead=False), _loaded(path, ahead=True)
    for named in ("named_parameters", "named_buffers"):
        expected = dict(getattr(theirs, named)(remove_duplicate=False))
        found = dict(getattr(ours, named)(remove_duplicate=False))
        assert expected.keys() == found.keys()
        for name, one in expected.items():
            assert one.dtype == found[name].dtype and torch.equal(one, found[name]), name
    ties = [model.get_input_embeddings().weight is model.get_output_embeddings().weight for model in (theirs, ours)]
    assert ties[0] == ties[1]
    assert ours.generation_config.max_length == theirs.generation_config.max_length == 77
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)


def test_weights_of_the_wanted_kind_are_taken_without_a_copy(tmp_path: Path) -> None:
    spec = ModelSpec(name="A", ref=str(_folder(tmp_path, "qwen2")))
    weights.begin({"A": (spec, "cpu")}, kind="cpu")
    reading = weights.take(spec, "cpu")
    assert reading is not None
    tensors = reading.tensors()
    assert weights.num_read(spec, "cpu") == sum(one.numel() * one.element_size() for one in tensors.values())
    made = weights.network_around(type(tiny.network("qwen2", 300)), _config("qwen2"), tensors, "float32")
    assert made is not None
    pointers = {one.data_ptr() for one in tensors.values()}
    assert all(parameter.data_ptr() in pointers for parameter in made[0].parameters())


def test_weights_that_must_be_cast_come_the_ordinary_way(tmp_path: Path) -> None:
    path = _folder(tmp_path, "llama", torch.bfloat16)
    theirs, ours = (_loaded(path, ahead=ahead, dtype="float32") for ahead in (False, True))
    assert ours.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize(
    "options", [{"quantization": "bnb-4bit"}, {"trust_remote_code": True}, {"ref": "/nowhere"}, {"backend": "openai"}]
)
def test_what_is_unusual_is_not_read_ahead(options: dict[str, Any], tmp_path: Path) -> None:
    spec = ModelSpec(**{"name": "A", "ref": str(_folder(tmp_path, "qwen2")), **options})
    weights.begin({"A": (spec, "cpu")}, kind="cpu")
    assert weights.take(spec, "cpu") is None


def test_a_file_that_ends_while_it_is_read_is_told_as_ever(tmp_path: Path) -> None:
    path = _folder(tmp_path, "qwen2")
    spec = ModelSpec(name="A", ref=str(path))
    weights.begin({"A": (spec, "cpu")}, kind="cpu")
    weights.settle()
    reading = weights.take(spec, "cpu")
    assert reading is not None
    broken = weights.Reading("A", [path / "gone.safetensors"], torch.device("cpu"))
    with weights.ThreadPoolExecutor(1) as pool:
        broken.run(pool)
    broken.settle()
    with pytest.raises(Exception, match=r"gone\.safetensors"):
        broken.tensors()


def test_reading_that_nobody_wants_any_more_stops(tmp_path: Path) -> None:
    files = sorted(_folder(tmp_path, "qwen2").glob("*.safetensors"))
    reading = weights.Reading("A", files, torch.device("cpu"))
    threading.Timer(0, reading.give_up).start()
    while not reading.given_up.is_set():
        pass
    with weights.ThreadPoolExecutor(1) as pool:
        reading.run(pool)
    with pytest.raises(weights.CancelledError):
        reading.tensors()


def test_what_nobody_takes_is_let_go(tmp_path: Path) -> None:
    spec = ModelSpec(name="A", ref=str(_folder(tmp_path, "qwen2")))
    weights.begin({"A": (spec, "cpu")}, kind="cpu")
    weights.drop()
    assert not weights.is_begun(spec, "cpu") and weights.take(spec, "cpu") is None
