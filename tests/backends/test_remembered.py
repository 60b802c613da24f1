"""What checks at load find is kept by all that decides it; what takes a module's place is checked each time."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flowinfer.backends import hf
from flowinfer.backends.known import KnownNetwork, whole
from flowinfer.backends.plain_tokenizer import KnownTokenizer
from flowinfer.backends.remembered import Passed, recall, remember
from flowinfer.backends.session import BatchSession
from flowinfer.backends.tokenizers import load_tokenizer
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.network.runner import HeadRunner, runner_of
from flowinfer.fusion.selfcheck import cache_folder, checks_folder
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.fusion import toys


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model's folder whose config is understood, with an empty cache."""
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / "cache"))
    tiny.network("qwen2", 300).save_pretrained(tmp_path / "model")
    tiny.wrapped(toys.byte_level(), chat_template=tiny.CHAT).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def folder(plain: Path) -> Path:
    """Return the same, whose config has an entry that only transformers may understand."""
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"unheard_of": 1}))
    return plain


def _loaded(folder: Path) -> Any:
    return hf.load(ModelSpec(name="A", ref=str(folder)), "cpu").transformers_model


def test_a_model_that_has_passed_is_taken_without_transformers_network(folder: Path) -> None:
    first = _loaded(folder)
    runner = HeadRunner(first)
    assert recall(first).session == BatchSession.__name__ and not isinstance(first, KnownNetwork)
    second = _loaded(folder)
    again = runner_of(second)
    assert isinstance(second, KnownNetwork) and isinstance(again, HeadRunner) and again.model is second
    assert again.layers == runner.layers
    logits = [PackedSession(one, 1, 64) for one in (runner, again)]
    assert torch.equal(*(session.logits(session.add([[5, 6, 7]])) for session in logits))


@pytest.mark.slow
def test_a_model_whose_config_is_understood_answers_without_transformers_networks(plain: Path) -> None:
    """They and torch's compiler, which they import, take longer than the weights of 7 B; its tokenizer is kept."""
    assert not {"transformers.modeling_utils", "torch._dynamo", "sympy"} & _imported_for_an_answer(plain)
    assert not _imported_for_an_answer(plain)


def _imported_for_an_answer(folder: Path) -> set[str]:
    """Return which heavy modules a process imports that answers one question."""
    code = (
        "import sys, flowinfer\n"
        f"with flowinfer.parse('model A = \"{folder}\"\\nA[max_tokens=2]', zoo='lab') as flow:\n"
        "    assert flow.run('one two').trace.error is None\n"
        "heavy = {'transformers', 'transformers.modeling_utils', 'torch._dynamo', 'sympy', 'huggingface_hub'}\n"
        "print(*(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_what_is_asked_of_transformers_own_network_is_asked_of_it(folder: Path) -> None:
    first = _loaded(folder)
    expected = dict(first.named_parameters())
    HeadRunner(copy.deepcopy(first))
    second = _loaded(folder)
    runner_of(second)  # stacks its weights
    found = dict(whole(second).named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    assert second.get_input_embeddings().num_embeddings == first.get_input_embeddings().num_embeddings
    sizes = [sum(one.numel() for one in network.parameters()) for network in (first, second)]
    assert sizes[0] == sizes[1]


def test_a_model_whose_forward_is_not_written_out_is_only_not_run_again(tmp_path: Path, folder: Path) -> None:
    tiny.network("gpt2", 300).save_pretrained(folder)
    HeadRunner(_loaded(folder))
    second = _loaded(folder)
    calls: list[int] = []
    second.register_forward_hook(lambda *_: calls.append(1))
    HeadRunner(second)
    assert not calls, "its own logits are remembered"


def test_what_takes_the_modules_place_is_compared_with_the_remembered_logits(folder: Path) -> None:
    HeadRunner(_loaded(folder))
    second = _loaded(folder)
    assert isinstance(second, KnownNetwork)
    second.merged()["model.layers.0.mlp.down_proj.weight"].mul_(2)  # as if files had changed behind times and sizes
    found = runner_of(second)
    assert isinstance(found, HeadRunner) and found.model is whole(second) and found._written is None


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_what_else_a_folder_says_is_read_again_when_it_changes(folder: Path, name: str) -> None:
    HeadRunner(_loaded(folder))
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(told | {"eos_token_id": 7, "eos_token": "<|im_start|>"}))
    model = hf.load(ModelSpec(name="A", ref=str(folder)), "cpu")
    token = model.tokenizer.token_to_id("<|im_start|>") if name.startswith("token") else 7
    assert token in model.vocabulary().eos_ids


def test_a_kept_tokenizer_is_the_folders_own(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}))  # for transformers to read
    made, kept = (load_tokenizer(str(folder)) for _ in range(2))
    assert type(made) is not KnownTokenizer and type(kept) is KnownTokenizer
    assert kept.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    assert kept.special_tokens_map == made.special_tokens_map
    assert (kept.eos_token_id, kept.get_chat_template()) == (made.eos_token_id, made.get_chat_template())


@pytest.mark.parametrize("change", ["weights", "config"])
def test_changed_files_are_checked_again(folder: Path, change: str) -> None:
    HeadRunner(_loaded(folder))
    if change == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes())
    else:
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    found = _loaded(folder)
    assert not isinstance(found, KnownNetwork)
    assert recall(found).layers == () and recall(found).logits is None


def test_a_damaged_record_is_a_missing_one(folder: Path) -> None:
    HeadRunner(_loaded(folder))
    for path in (*checks_folder().iterdir(), *(cache_folder() / "tokenizers").iterdir()):
        path.write_bytes(path.read_bytes()[:20])
    assert recall(_loaded(folder)).layers == ()  # of checks and tokenizers


def test_a_model_without_files_is_never_remembered(folder: Path) -> None:
    model = tiny.network("llama", 300, seed=5)
    remember(model, session="BatchSession")
    assert recall(model) == Passed() and not checks_folder().exists()
