"""A device that fails fails at every call from then on: the run ends, can go on, and blames no question."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowinfer.engine import models
from flowinfer.errors import is_device_lost, is_memory_short
from tests.command import flowinfer

ECC = "CUDA error: uncorrectable ECC error encountered"


@dataclass
class Device:
    """Counts what is asked of it, and fails for good after so many calls; alive again after `mend`."""

    left: float = float("inf")

    def call(self) -> None:
        """Work, or fail."""
        self.left -= 1
        if self.left < 0:
            raise RuntimeError(f"{ECC}\nCUDA kernel errors might be asynchronously reported")


class OnDevice:
    """A session on a device that may fail."""

    def __init__(self, inner: Any, device: Device) -> None:
        self._inner, self._device = inner, device

    def __getattr__(self, name: str) -> Any:
        self._device.call()
        return getattr(self._inner, name)


class Model:
    """A model on a device that may fail; also where its memory is given back."""

    transformers_model = None

    def __init__(self, inner: Any, device: Device) -> None:
        self.inner, self._own = inner, device

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def open(self) -> OnDevice:
        """Open a session."""
        return OnDevice(self.inner.open(), self._own)

    def close(self) -> None:
        """Close, or fail."""
        self.inner.close()
        self._own.call()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Yield the device of model Yi; the other models are on another one."""
    found, load = Device(), models._load
    monkeypatch.setattr(
        models,
        "_load",
        lambda spec, placed: Model(load(spec, placed), found if spec.name == "Yi" else Device()),
    )
    yield found


def answers(run: Path) -> dict[str, tuple[str, str | None]]:
    """Return the answer and the error of every question of a run."""
    samples = run / "samples.jsonl"
    lines = samples.read_text(encoding="utf-8").split("\n")[:-1] if samples.exists() else []
    traces = [json.loads(line)["trace"] for line in lines]
    return {trace["question_id"]: (trace["answer"], trace["error"]) for trace in traces}


def exec_(cwd: Path, *more: str) -> Any:
    """Run a flow of two stages over eight questions, two at a time."""
    data = ("--dataset", "gsm8k", "--limit", "8", "--batch", "2", "--set", "max_tokens=6", "--no-cache", "--quiet")
    return flowinfer("exec", "-e", "Qwen -> Yi", "--zoo", "toy", *data, *more, cwd=cwd)


def test_exec_ends_with_one_error_and_goes_on_where_it_stood(device: Device, tmp_path: Path) -> None:
    whole = exec_(tmp_path, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    device.left = 20
    broken = exec_(tmp_path, "--out", "runs")
    assert broken.returncode == 3
    assert (
        sum(line.startswith("error:") for line in broken.stderr.split("\n")) == 1 and "Traceback" not in broken.stderr
    )
    assert f"error: cpu with 'Yi' has failed in step s2 Yi: {ECC}\n" in broken.stderr
    assert "what was answered is kept: --resume goes on" in broken.stderr
    (run,) = (tmp_path / "runs").iterdir()
    kept = answers(run)
    assert 0 < len(kept) < 8 and not any(error for _, error in kept.values())
    device.left = float("inf")
    resumed = flowinfer("exec", "--resume", "--out", "runs", "--quiet", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    (other,) = (tmp_path / "whole").iterdir()
    assert answers(run) == answers(other) and kept.items() <= answers(run).items()


@pytest.mark.parametrize("more", [("--batch", "2"), pytest.param(("--independent",), marks=pytest.mark.slow)])
def test_a_sweep_ends_with_one_error_and_goes_on_where_it_stood(
    device: Device, tmp_path: Path, more: tuple[str, ...]
) -> None:
    command = ("sweep", "--models", "Qwen,Yi", "--strategies", "single,si", "--depth", "2", "--datasets", "gsm8k")
    options = ("--limit", "6", "--set", "max_tokens=6", "--zoo", "toy", "--quiet")
    device.left = 20
    broken = flowinfer(*command, *options, *more, cwd=tmp_path)
    assert broken.returncode == 3, broken.stderr
    assert "error: cpu with 'Yi' has failed in step s1 Yi: " + ECC in broken.stderr
    assert not any(error for run in (tmp_path / "sweeps").glob("*/runs/*") for _, error in answers(run).values())
    device.left = float("inf")
    resumed = flowinfer("sweep", "--resume", "--quiet", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    found = [answers(run) for run in sorted((tmp_path / "sweeps").glob("*/runs/*"))]
    assert [len(one) for one in found] == [6, 6, 6, 6]
    assert not any(error for one in found for _, error in one.values())


def test_a_profile_ends_with_one_error(device: Device, tmp_path: Path) -> None:
    device.left = 4
    done = flowinfer("profile", "-e", "Yi", "--zoo", "toy", "--steps", "2", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"error: the device has failed while it was measured: {ECC}\n" in done.stderr
    assert "Traceback" not in done.stderr and "--resume" not in done.stderr


ABORTS = f"""
import os, sys, torch
from flowinfer import cli
from flowinfer.__main__ import main
from flowinfer.engine.faults import device_lost
from flowinfer.errors import DeviceLost

class Locked(torch.Tensor):
    def __del__(self):
        os.abort()  # as torch does where memory goes back that a lost device has used

def run():
    tensor = torch.ones(1).as_subclass(Locked)
    circle = [tensor]
    circle.append(circle)
    try:
        raise RuntimeError("{ECC}")
    except RuntimeError as error:
        raise device_lost("cuda:1", error) from error

cli.run = run
"""
AS_COMMAND = "main()"
AS_LIBRARY = "try:\n    run()\nexcept DeviceLost as error:\n    print('error:', error.message, file=sys.stderr)"


@pytest.mark.parametrize(("end", "code"), [(AS_COMMAND, 3), (AS_LIBRARY, 0)], ids=["command", "library"])
def test_a_process_that_has_lost_a_device_ends_as_it_would_whose_destructors_would_abort_it(
    end: str, code: int
) -> None:
    done = subprocess.run([sys.executable, "-c", ABORTS + end], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, f"error: cuda:1 has failed: {ECC}\n")


@pytest.mark.parametrize(
    ("text", "is_lost", "is_short"),
    [
        (ECC, True, False),
        ("CUDA error: an illegal memory access was encountered", True, False),
        ("Triton Error [CUDA]: unspecified launch failure", True, False),
        ("CUDA error: out of memory", False, True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False, True),
        ("Triton Error [CUDA]: out of memory", False, True),
        ("index out of range in self", False, False),
    ],
)
def test_a_lost_device_and_short_memory_are_told_apart(text: str, is_lost: bool, is_short: bool) -> None:
    error = RuntimeError(text)
    assert (is_device_lost(error), is_memory_short(error)) == (is_lost, is_short)
