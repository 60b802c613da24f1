"""Models that are found on a machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flowinfer.stores.listing import LocalModel, local_models
from tests.command import flowinfer
from tests.ggufs import META, hub, ollama, write


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_zoo: Path) -> Path:
    """Return a home with a model in every store, one of them cut short."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OLLAMA_MODELS", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    bare = {key: one for key, one in META.items() if key != "tokenizer.chat_template"}
    blob = ollama(tmp_path / ".ollama" / "models", template="{{ .Prompt }}")
    write(blob, bare)
    write(tmp_path / ".lmstudio/models/me/big-GGUF/big.Q4_K_M.gguf", {**META, "general.file_type": 15})
    short = write(tmp_path / ".cache/llama.cpp/cut.gguf")
    short.write_bytes(short.read_bytes()[:-64])
    cache = tmp_path / ".cache/huggingface/hub"
    hub(cache)
    folder = cache / "models--some--folder"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    shutil.copytree(toy_zoo.parent / "qwen", folder / "snapshots" / "abc")
    return tmp_path


def test_every_store_is_looked_into(home: Path) -> None:
    found = {one.ref: one for one in local_models()}
    assert found["ollama:tiny"] == LocalModel("ollama:tiny", "Ollama", 576, 32, "F32", 512, "go")
    big = found[str(home / ".lmstudio/models/me/big-GGUF/big.Q4_K_M.gguf")]
    assert (big.store, big.stored, big.template) == ("LM Studio", "Q4_K_M", "jinja")
    assert found["hf:some/repo-GGUF/m.Q4_0.gguf"].store == "hub cache"
    folder = found["hf:some/folder"]
    assert (folder.stored, folder.template, folder.problem) == ("float32", "jinja", None)
    cut = found[str(home / ".cache/llama.cpp/cut.gguf")]
    assert cut.problem is not None and "it ends 64 bytes too early" in cut.problem
    assert len(found) == 5


def test_models_lists_them_with_the_zoos(home: Path) -> None:
    said = json.loads(flowinfer("models", "--json", cwd=home).stdout)
    assert {one["ref"] for one in said["local"]} >= {"ollama:tiny", "hf:some/folder"}
    shown = flowinfer("models", cwd=home)
    assert "ollama:tiny" in shown.stdout and "Q4_K_M" in shown.stdout and "Traceback" not in shown.stderr
    assert "note: ~/.cache/llama.cpp/cut.gguf: " in shown.stdout
    assert "local" not in flowinfer("models", "--zoo", "lab", cwd=home).stdout


def test_a_machine_without_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OLLAMA_MODELS", "HF_HUB_CACHE", "LLAMA_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    shown = flowinfer("models", cwd=tmp_path)
    assert "no models of Ollama, LM Studio, llama.cpp or the hub cache here" in shown.stdout
