"""Flows made of models that a command names."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowinfer.errors import UsageError
from flowinfer.language.joined import flow_of, models_in
from tests.ggufs import hub, write


def test_several_models_write_one_text_and_one_writes_alone() -> None:
    assert flow_of(["ollama:qwen3:4b", "ollama:me/llama3.2"]) == (
        'model "qwen3:4b" = "ollama:qwen3:4b" { backend=gguf }\n'
        'model "llama3.2" = "ollama:me/llama3.2" { backend=gguf }\n'
        'defaults { name="qwen3:4b+llama3.2", prompts="none" }\n'
        '("qwen3:4b" | "llama3.2")\n'
    )
    assert flow_of(["Qwen"], zoo=["Qwen"]) == 'defaults { name="Qwen", prompts="none" }\n"Qwen"\n'


def test_what_is_named_twice_is_two_heads_and_others_of_one_name_are_numbered(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a" / "m.gguf"), write(tmp_path / "b" / "m.gguf")
    text = flow_of([str(one), str(other), str(one)])
    assert text.endswith('("m" | "m-2" | "m")\n') and text.count("model ") == 2
    assert f'model "m-2" = "{other}" {{ backend=gguf }}' in text


def test_transformers_folders_and_hub_ids_need_no_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert f'model "qwen" = "{tmp_path / "qwen"}"\n' in flow_of(["qwen/"])
    assert 'model "Qwen3-4B" = "Qwen/Qwen3-4B"\n' in flow_of(["hf:Qwen/Qwen3-4B"])
    hub(tmp_path / "hub", "Qwen/Qwen3-4B")
    assert 'model "Qwen3-4B" = "hf:Qwen/Qwen3-4B" { backend=gguf }' in flow_of(["hf:Qwen/Qwen3-4B"])


@pytest.mark.parametrize(
    ("word", "models"),
    [
        ("ollama:a+ollama:b:7b", ["ollama:a", "ollama:b:7b"]),
        ("a+b.gguf", ["a+b.gguf"]),  # a file of that name is there
        ("ollama:a", ["ollama:a"]),
        ("s2p", []),
        ("flows", []),
        ("model", ["model"]),
        ("x.flow", []),
        ("", []),
    ],
)
def test_a_word_is_models_or_something_else(
    word: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a+b.gguf")
    write(tmp_path / "model" / "m.gguf")
    write(tmp_path / "flows" / "m.gguf")
    (tmp_path / "flows" / "x.flow").write_text("Qwen")
    monkeypatch.chdir(tmp_path)
    assert models_in(word) == models


def test_a_word_that_is_no_model_among_models_is_told() -> None:
    with pytest.raises(UsageError, match=r"'llama' in 'ollama:a\+llama' is no model"):
        models_in("ollama:a+llama")
