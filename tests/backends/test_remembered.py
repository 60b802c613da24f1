"""What checks at load find is kept by all that decides it; what takes a module's place is checked each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowinfer.backends import hf
from flowinfer.backends.remembered import Passed, recall, remember
from flowinfer.backends.session import BatchSession
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.fusion.selfcheck import checks_folder
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.fusion import toys


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model's folder, with an empty cache."""
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / "cache"))
    tiny.network("qwen2", 300).save_pretrained(tmp_path / "model")
    tiny.wrapped(toys.byte_level(), chat_template=tiny.CHAT).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _loaded(folder: Path) -> Any:
    return hf.load(ModelSpec(name="A", ref=str(folder)), "cpu").transformers_model


def _calls(model: Any) -> list[int]:
    """Return a list that grows by one with each forward of transformers' own."""
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_model_that_has_passed_is_not_run_in_transformers_own_way_again(folder: Path) -> None:
    first = _loaded(folder)
    runner = HeadRunner(first)
    assert recall(first).session == BatchSession.__name__ and recall(first).logits is not None
    second = _loaded(folder)
    calls = _calls(second)
    again = HeadRunner(second)
    assert not calls, "its own logits are remembered"
    assert again.layers == runner.layers
    assert (again._written is None) == (runner._written is None)


def test_what_takes_the_modules_place_is_compared_with_the_remembered_logits(folder: Path) -> None:
    first = _loaded(folder)
    assert HeadRunner(first)._written is not None
    second = _loaded(folder)
    with torch.no_grad():  # as if the files had changed behind their times and sizes
        second.model.layers[0].mlp.down_proj.weight.mul_(2)
    assert HeadRunner(second)._written is None


@pytest.mark.parametrize("change", ["weights", "config"])
def test_changed_files_are_checked_again(folder: Path, change: str) -> None:
    HeadRunner(_loaded(folder))
    if change == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes())
    else:
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    found = recall(_loaded(folder))
    assert found.layers == () and found.logits is None


def test_a_damaged_record_is_a_missing_one(folder: Path) -> None:
    HeadRunner(_loaded(folder))
    for path in checks_folder().iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert recall(_loaded(folder)).layers == ()


def test_a_model_without_files_is_never_remembered(folder: Path) -> None:
    model = tiny.network("llama", 300, seed=5)
    remember(model, session="BatchSession")
    assert recall(model) == Passed() and not checks_folder().exists()
