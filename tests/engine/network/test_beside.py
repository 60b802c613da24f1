"""Kernels are compiled in processes beside a command's own, once for each model, code and kind of GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowinfer.engine.network import beside
from flowinfer.machine import Card, cards
from flowinfer.spec import ModelSpec

_H100 = Card("GPU-a", "H100", 80 << 30, capability=(9, 0))
_SHARES = """
import os, sys
from functools import partial
from pathlib import Path
from flowinfer.engine.network.beside import share

def write(number):
    if sys.argv[2] == str(number):
        raise ValueError("no such instruction")
    Path(sys.argv[1], str(number)).write_text(str(os.getpid()))

print(share([partial(write, number) for number in range(5)], 2))
print(os.getpid())
"""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, ...]]]:
    """Note what would be started on a machine that has an H100 and Triton."""
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(beside, "start", lambda *command: started.append(command))
    monkeypatch.setattr(beside, "cards", lambda: (_H100,))
    monkeypatch.setattr(beside, "find_spec", lambda name: object())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path))
    return started


@pytest.fixture
def llama(tmp_path: Path) -> ModelSpec:
    """Return a model of which nothing but the config is there."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return ModelSpec(name="A", ref=str(tmp_path))


def test_a_model_of_llamas_kind_is_compiled_for_once(begun: list[tuple[str, ...]], llama: ModelSpec) -> None:
    beside.begin([llama])
    ((program, told),) = begun
    assert program == beside.__name__ and json.loads(told) == [[llama.model_dump_json()], [[9, 0]]]
    note = beside._note(llama, (9, 0))
    note.parent.mkdir(parents=True)
    note.touch()
    beside.begin([llama])
    assert len(begun) == 1
    Path(llama.ref, "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    beside.begin([llama])
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("config", "change"),
    [
        ('{"model_type": "gpt2"}', {}),
        ("{", {}),
        ("[]", {}),
        (None, {}),
        ('{"model_type": "llama"}', {"quantization": "int8"}),
        ('{"model_type": "llama"}', {"backend": "openai"}),
        ('{"model_type": "llama"}', {"device": "cpu"}),
    ],
)
def test_nothing_is_begun_for_what_this_does_not_compile(
    config: str | None, change: dict[str, str], begun: list[tuple[str, ...]], tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    beside.begin([ModelSpec.model_construct(**dict(ModelSpec(name="A", ref=str(tmp_path)), **change))])
    assert begun == []


def test_nothing_is_begun_where_there_is_no_gpu(
    begun: list[tuple[str, ...]], llama: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "cards", lambda: ())
    beside.begin([llama])
    assert begun == []


@pytest.mark.parametrize("broken", ["", "3"])
def test_copies_of_a_process_share_its_jobs(broken: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _SHARES, tmp_path, broken], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    all_done, own = done.stdout.split()
    assert all_done == str(not broken)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted({"0", "1", "2", "3", "4"} - {broken})
    assert own not in {file.read_text() for file in tmp_path.iterdir()}
    assert ("no such instruction" in done.stderr) == bool(broken)


def test_what_goes_wrong_beside_is_told() -> None:
    beside.start("flowinfer.nosuch")
    assert beside.wait() == f"{sys.executable}: No module named flowinfer.nosuch"
    assert beside.wait() == "", "it is told once"


def test_where_no_process_can_begin_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    beside.start("flowinfer.nosuch")
    assert beside._begun == [] and beside.wait() == ""


def test_threads_of_all_devices_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def wait() -> None:
        beside.wait()
        order.append("waited for")

    class Process:
        returncode = 0

        def communicate(self, timeout: float) -> tuple[str, str]:
            other.start()
            order.append("ended")
            return "", ""

    other = threading.Thread(target=wait)
    monkeypatch.setattr(beside, "_begun", [Process()])
    wait()
    other.join()
    assert order == ["ended", "waited for", "waited for"]


def test_a_process_beside_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("while True: pass")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(beside, "_MOST_SECONDS", 0.0)
    beside.start("endless")
    (process,) = beside._begun
    assert beside.wait() == "it took more than 0.0 s"
    assert process.returncode == -signal.SIGKILL


@pytest.mark.gpu
def test_every_kernel_of_a_model_compiles_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine.network.test_runner import CONFIGS, network

    network(CONFIGS["Qwen2"]).bfloat16().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    spec = ModelSpec(name="A", ref=str(tmp_path / "model"))
    beside.begin([spec])
    assert beside._begun and beside.wait() == ""
    assert all(beside._note(spec, card.capability).exists() for card in cards())
    assert len(list((tmp_path / "kernels").glob("*/*.cubin"))) > 9
    beside.begin([spec])
    assert not beside._begun
