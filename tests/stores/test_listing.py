"""Models that are found on a machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from flowinfer.stores.listing import LocalModel, local_models
from tests.command import flowinfer
from tests.ggufs import META, hub, ollama, split, write


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
    assert f"note: {home}/.cache/llama.cpp/cut.gguf is damaged: it ends 64 bytes too early" in shown.stdout
    assert "local" not in flowinfer("models", "--zoo", "lab", cwd=home).stdout


def test_what_is_not_whole_is_told_and_what_is_nothing_is_not(home: Path) -> None:
    folder = home / ".lmstudio/models/me"
    for name, lost in (("first", 0), ("second", 1)):
        split(folder / f"{name}.gguf")[lost].unlink()
    (folder / "gone.gguf").symlink_to(home / "nowhere.gguf")
    (folder / "folder.gguf").mkdir()
    (folder / "again").symlink_to(folder)
    ollama(home / ".ollama" / "models", "lost").unlink()
    (home / ".cache/huggingface/hub/models--some--folder/refs/main").write_bytes(b"\xff")
    problems = [one.problem or "" for one in local_models()]
    assert len(problems) == 7 and sum(map(bool, problems)) == 4
    told = "\n".join(problems)
    assert "of its 2 files 'first-00001-of-00002.gguf' is missing" in told
    assert "of its 2 files 'second-00002-of-00002.gguf' is missing" in told
    assert "is missing; its manifest names it" in told


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is barred to an administrator")
def test_folders_that_nobody_here_may_look_into_are_told(home: Path) -> None:
    barred = [home / ".ollama/models/manifests", home / ".lmstudio/models", home / ".cache/huggingface/hub"]
    for folder in barred:
        folder.chmod(0)
    found = {one.ref: one.problem for one in local_models()}
    for folder in barred:
        folder.chmod(0o755)
    assert all(found[str(folder)] == f"{folder} is another user's, and cannot be read" for folder in barred)


def test_a_machine_without_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OLLAMA_MODELS", "HF_HUB_CACHE", "LLAMA_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    shown = flowinfer("models", cwd=tmp_path)
    assert "no models of Ollama, LM Studio, llama.cpp or the hub cache here" in shown.stdout
