"""The benchmarks run through with tiny shapes, so that a scarce GPU is not the first to try them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.backends.gguf_files import written
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "arguments",
    [
        ("gpu_step.py", "--batches", "1,2", "--contexts", "8"),
        ("multi_gpu.py", "--devices", "3", "--batches", "2", "--context", "8"),
        ("four_bit.py", "--batches", "1,2", "--context", "8"),
        ("dataset.py", "--questions", "4", "--paths", "ours,reference,question"),
        ("serve.py", "--clients", "1,2", "--questions", "4", "--tokens", "4", "--memory", "4"),
        ("stages.py", "--questions", "6", "--rows", "3", "--repeats", "1"),
        ("agreement.py", "--prompt", "8", "--batches", "1,2", "--tokens", "20", "--noises", "0.05", "--covers", "0"),
        ("sampling.py", "--prompts", "8", "--tokens", "4", "--questions", "1", "--samples", "5"),
        ("numerics.py", "--prompts", "2", "--length", "8"),
        ("start.py", "--flows", "one 7B", "--seconds", "400"),
        ("scale.py", "--replicas", "1", "--questions", "2", "--simulated", "20000"),
        ("cpu.py", "--batches", "1,2", "--tokens", "4", "--questions", "2", "--answer-tokens", "4"),
    ],
)
def test_a_benchmark_prints_its_table_and_writes_it(arguments: tuple[str, ...], tmp_path: Path) -> None:
    _run([*arguments, "--device", "cpu", "--size", "tiny"], tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stages.py --devices cpu,bla", "--devices: 'bla' is no device of this machine; it has cpu"),
        ("stages.py --plans (Ds|Foo)->Qwen", "--plans: '(Ds|Foo)->Qwen' is no plan like Qwen -> Yi; "),
        ("four_bit.py --models Foo", "--models: 'Foo' is none of Qwen, "),
        ("start.py --against /nowhere", "--against: /nowhere: no such folder"),
        ("gpu_step.py --batches 1,0", "--batches: '0' is no whole number of at least 1"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_measured(line: str, told: str) -> None:
    script, *options = line.split()
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and told in done.stderr.splitlines()[-1]


def test_the_one_of_steps_that_may_not_run_prints_its_table_and_writes_it(tmp_path: Path) -> None:
    _run(["control.py", "--out", str(tmp_path), "--questions", "2", "--dev", "20", "--latency", "1"], tmp_path)


def test_the_one_of_routes_prints_its_table_and_writes_it(tmp_path: Path) -> None:
    _run(["routes.py", "--questions", "50"], tmp_path)


def test_the_one_of_gguf_files_prints_its_table_and_writes_it(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs flowinfer[gguf]")
    files = [str(written(name)) for name in ("qwen", "ds")]
    _run(["gguf.py", *files, "--batches", "1,2", "--steps", "2", "--repeats", "1", "--threads", "1"], tmp_path)


def _run(arguments: Sequence[str], tmp_path: Path) -> None:
    """Run a benchmark, and compare what it has printed and written."""
    script, *options = arguments
    kept = ("--markdown", str(tmp_path / "table.md"), "--json", str(tmp_path / "table.json"))
    options = [option.format(tmp=tmp_path) for option in options]
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options, *kept]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for table in json.loads((tmp_path / "table.json").read_text(encoding="utf-8")):
        assert table["rows"] and all(len(row) == len(table["columns"]) for row in table["rows"])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in done.stdout
