"""Damaged model folders are refused in one line by everything that looks at them before weights are loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flowinfer.backends.hf import load
from flowinfer.checkpoint import read_ahead, read_folder
from flowinfer.cli import app
from flowinfer.errors import LoadError
from flowinfer.language.check import check
from flowinfer.planning.needs import need_of
from flowinfer.spec import ModelSpec

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
}


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(*shape: Any, end: int = 8) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, end]}}


def folder_of(to: Path, **config: Any) -> Path:
    (to / "config.json").write_text(json.dumps(CONFIG | config))
    (to / "model.safetensors").write_bytes(safetensors(tensor(2), bytes(8)))
    return to


def index(folder: Path, *shards: Any) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    text = json.dumps({"weight_map": {str(number): shard for number, shard in enumerate(shards)}})
    (folder / "model.safetensors.index.json").write_text(text)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def weights(data: bytes) -> Callable[[Path], None]:
    return replaced("model.safetensors", lambda path: path.write_bytes(data))


def config(data: bytes) -> Callable[[Path], None]:
    return replaced("config.json", lambda path: path.write_bytes(data))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard outside": (lambda folder: index(folder, "../a.safetensors"), "'../a.safetensors', which lies outside"),
    "absolute shard": (lambda folder: index(folder, "/etc/passwd"), "names '/etc/passwd', which lies outside"),
    "missing shard": (lambda folder: index(folder, "part.safetensors", "b.safetensors"), "b.safetensors is missing"),
    "shards of no names": (lambda folder: index(folder, 3), "3 is missing; "),
    "no shards": (index, "names no weight files"),
    "pipe for weights": (replaced("model.safetensors", os.mkfifo), "model.safetensors is no regular file"),
    "pipe for a template": (replaced("chat_template.jinja", os.mkfifo), "chat_template.jinja is no regular file"),
    "folder for a config": (replaced("config.json", Path.mkdir), "config.json: is a directory"),
    "broken link": (
        replaced("tokenizer.json", lambda path: path.symlink_to("nowhere")),
        "tokenizer.json is a link to nothing",
    ),
    "empty weights": (weights(b""), "model.safetensors is damaged: its header cannot be read"),
    "cut header": (weights(b"\xff" * 12), "damaged: its header is longer than the file"),
    "cut data": (weights(safetensors(tensor(2))), "damaged: it ends 8 bytes too early"),
    "header of another kind": (weights(safetensors([3])), "damaged: its header cannot be read"),
    "nested header": (weights(b"\x10'\0\0\0\0\0\0" + b"[" * 10_000), "damaged: its header cannot be read"),
    "shape of words": (weights(safetensors(tensor("x"), bytes(8))), "damaged: its header cannot be read"),
    "shape beyond the file": (weights(safetensors(tensor(10**30), bytes(8))), "its header tells of more than it holds"),
    "config of a list": (config(b"[]"), "config.json is no JSON object"),
    "config of zeros": (config(bytes(9)), "config.json is no JSON"),
    "config in UTF-16": (config(b"\xff\xfe{\0}\0"), "config.json: UTF-16, not UTF-8"),
    "nested config": (config(b'{"a":' * 100_000), "config.json is no JSON: nested too deeply"),
    "endless digits": (config(b'{"a": ' + b"9" * 5000 + b"}"), "config.json is no JSON: "),
    "layers": (lambda folder: folder_of(folder, num_hidden_layers=10**9), "num_hidden_layers = 1000000000, the"),
    "infinite layers": (lambda folder: folder_of(folder, n_layer=float("inf")), "n_layer = inf, the weight files"),
    "nested layers": (
        lambda folder: folder_of(folder, text_config={"num_layers": 10**9}),
        "text_config.num_layers = 1",
    ),
    "experts": (lambda folder: folder_of(folder, num_local_experts=10**9), "num_local_experts = 1000000000, the"),
    "width": (lambda folder: folder_of(folder, hidden_size=10**12), "the weight files hold 0.0 M"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_with_place_and_cure(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(folder_of(tmp_path))
    with pytest.raises(LoadError) as caught:
        need_of(ModelSpec(name="A", ref=str(tmp_path)))
    assert said in caught.value.message and "\n" not in caught.value.message
    assert caught.value.help


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": "four"},
        {"num_key_value_heads": "x"},
        {"hidden_size": -8},
        {"hidden_size": 1.5},
        {"vocab_size": {}},
        {"model_type": "gpt2", "n_embd": "x", "n_layer": 1},
        {"intermediate_size": [1]},
        {"dtype": [1]},
    ],
)
def test_odd_values_of_a_config_leave_needs_unknown(tmp_path: Path, change: dict[str, Any]) -> None:
    need = need_of(ModelSpec(name="A", ref=str(folder_of(tmp_path, **change))))
    assert all(
        type(size) in (int, type(None)) for size in (need.parameters, need.weight_bytes, need.kv_bytes_per_token)
    )


def test_a_sound_folder_is_read(tmp_path: Path) -> None:
    assert read_folder(folder_of(tmp_path)).shapes == {"a": (2,)}


@pytest.mark.parametrize("command", ["models", "plan", "check", "doctor"])
def test_commands_tell_damage_in_one_line(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    weights(b"")(folder_of(tmp_path / "m"))
    (tmp_path / "zoo.toml").write_text('[models.A]\nref = "m"\n')
    (tmp_path / "f.flow").write_text("A\n")
    monkeypatch.setenv("FLOWINFER_ZOO", "zoo.toml")
    arguments = {"models": ["--zoo", "zoo.toml"], "doctor": []}.get(command, ["f.flow"])
    result = CliRunner().invoke(app, [command, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit | LoadError)
    assert "model.safetensors is damaged" in result.output + str(result.exception)
    assert (result.exit_code == 0) == (command in ("models", "check"))


@pytest.mark.parametrize(
    ("gone", "said"), [("model.safetensors", "no .safetensors file in"), ("tokenizer.json", "no tokenizer in")]
)
def test_check_tells_what_a_folder_lacks(tmp_path: Path, gone: str, said: str) -> None:
    (folder_of(tmp_path) / "tokenizer.json").write_text("{}")
    assert not check(f'model A = "{tmp_path}"\nA', zoo="lab").warnings
    (tmp_path / gone).unlink()
    (told,) = check(f'model A = "{tmp_path}"\nA', zoo="lab").warnings
    assert told.code == "W0101" and said in told.message


def test_a_hub_model_that_is_not_here_is_told_without_asking_the_hub(tmp_path: Path) -> None:
    """Whatever the hub's own client would say of it, half a minute later and in several lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(LoadError) as caught:
            load(ModelSpec(name="A", ref="org/a"), "cpu")
    said = "model 'A' is not on this machine and the hub cannot be reached: HF_HUB_OFFLINE is set"
    assert caught.value.message == said and "go online once" in (caught.value.help or "")


def test_reading_ahead_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    """An exception in a thread would fail the test."""
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10_000)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    read_ahead([tmp_path / "no folder", tmp_path]).join()
