"""Real GPUs that fail in the middle, are not there, or are full: runs end with one clear line and lose nothing.

What breaks a GPU breaks it for its process, so every run has a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.engine.test_cuda import CPU, TWO, zoo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than 2 GPUs"),
]

PLUGIN = '''
"""Backend `failing`: as `hf`, but at the tenth question its GPU is broken by a kernel that does wrong."""
import os

import torch
import triton
from triton import language as tl

from flowinfer.backends import hf


@triton.jit
def wild(states):
    tl.store(states + tl.full([], 1 << 42, tl.int64), 1.0)


def fail(device, how):
    with torch.cuda.device(device):
        states = torch.zeros(1, device=device)
        if how == "assert":
            states[torch.tensor([7], device=device)]
        else:
            wild[(1,)](states)


def load(spec, device, dtype="auto", **more):
    model = hf.load(spec, device, dtype, **more)
    build = model.prompt

    def prompt(text, *given):
        if "9 + 9" in text and "FAIL_BY" in os.environ:
            fail(device, os.environ["FAIL_BY"])
        return build(text, *given)

    model.prompt = prompt
    return model
'''
HOLDER = """
import sys, torch
held, size = [], 1 << 36
while size >= 1 << 21:  # free memory may be in pieces
    free = torch.cuda.mem_get_info("cuda:1")[0] - int(sys.argv[1])
    if free < 1 << 21:
        break
    try:
        held.append(torch.empty(min(size, free), dtype=torch.int8, device="cuda:1"))
    except RuntimeError:
        size //= 2
print("held", flush=True)
sys.stdin.read()
"""
EXEC = ("exec", "-e", "(Qwen | Ds) -> Yi", "--zoo", "zoo.toml", "--dataset", "items.jsonl", "--no-cache")
OPTIONS = ("--batch", "2", "--set", "max_tokens=8", "--quiet")
"""Eight questions are on their way at once, so the tenth begins when two have their answers."""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a folder with the plug-in, installed for processes begun there, and a zoo over two GPUs."""
    (tmp_path / "failing.py").write_text(PLUGIN)
    info = tmp_path / "failing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flowinfer.backends]\nfailing = failing:load\n")
    text = Path(zoo(tmp_path / "zoo", TWO)).read_text(encoding="utf-8")
    on_second = 'device = "cuda:1"\n'
    (tmp_path / "zoo.toml").write_text(text.replace(on_second, on_second + 'backend = "failing"\n'), encoding="utf-8")
    items = [{"id": f"q{k}", "question": f"{k} + {k} = ?", "answer": str(2 * k), "kind": "gsm8k"} for k in range(12)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return tmp_path


def begun(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Begin the command line in a process of its own."""
    path = os.pathsep.join([str(cwd), *filter(None, sys.path)])
    found = {**os.environ, "PYTHONPATH": path, **environment}
    line = [sys.executable, "-m", "flowinfer", *arguments]
    return subprocess.Popen(line, cwd=cwd, env=found, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a process that was begun."""
    out, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return ended(begun(*arguments, cwd=cwd, **environment))


def answers(out: Path) -> Mapping[str, tuple[str, str | None]]:
    """Return the answer and the error of every question of the only run in a folder."""
    (run,) = out.iterdir()
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    traces = [json.loads(line)["trace"] for line in lines]
    assert len({trace["question_id"] for trace in traces}) == len(traces)
    return {trace["question_id"]: (trace["answer"], trace["error"]) for trace in traces}


def test_a_gpu_that_fails_in_the_middle_ends_a_run_that_goes_on_where_it_stood(work: Path) -> None:
    """Runs whose GPUs fail in two ways go on beside each other, for their starts take most of the time."""
    ways = ("assert", "access")
    runs = [begun(*EXEC, *OPTIONS, "--out", how, cwd=work, FAIL_BY=how) for how in ways]
    for broken in map(ended, runs):
        assert broken.returncode == 3, broken.stderr
        (told,) = [line for line in broken.stderr.split("\n") if line.startswith("error:")]
        assert "cuda:1" in told and "'Ds'" in told and "has failed in step" in told and "CUDA error" in told, told
        assert "Traceback" not in broken.stderr and "--resume goes on" in broken.stderr
    kept = [answers(work / how) for how in ways]
    assert all(0 < len(one) < 12 and not any(error for _, error in one.values()) for one in kept), kept
    runs = [begun("exec", "--resume", "--out", how, "--quiet", cwd=work) for how in ways]
    for how, before, resumed in zip(ways, kept, map(ended, runs), strict=True):
        assert resumed.returncode == 0, resumed.stderr
        after = answers(work / how)
        assert before.items() <= after.items() and len(after) == 12
        assert not any(error for _, error in after.values())


def test_a_gpu_that_is_left_out_is_named_before_anything_is_loaded(work: Path) -> None:
    done = command(*EXEC, *OPTIONS, cwd=work, CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 3, done.stderr
    assert "model 'Ds' is declared on cuda:1, which this machine does not have" in done.stderr
    assert "Traceback" not in done.stderr and not (work / "runs").exists()


@pytest.mark.parametrize("free", [8 << 20, 700 << 20])
def test_a_gpu_that_others_have_filled_is_told_or_done_with(free: int, work: Path) -> None:
    """Nothing begins there, or some rows fit: either all is answered, or one line says why."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(free)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        done = command(*EXEC, *OPTIONS, "--out", "runs", cwd=work)
    finally:
        holder.communicate("")
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        assert len(answers(work / "runs")) == 12
    else:
        (told,) = [line for line in done.stderr.split("\n") if line.startswith("error:")]
        assert "memory" in told or "GB free" in told, told
    after = command(*EXEC, *OPTIONS, "--out", "after", cwd=work)
    assert after.returncode == 0 and len(answers(work / "after")) == 12


def test_devices_of_a_zoo_that_names_the_cpu_need_no_gpu(work: Path) -> None:
    (work / "zoo.toml").write_text(Path(zoo(work / "cpu", CPU)).read_text(encoding="utf-8"), encoding="utf-8")
    done = command(*EXEC, *OPTIONS, "--out", "runs", cwd=work, CUDA_VISIBLE_DEVICES="9")
    assert done.returncode == 0, done.stderr
    assert len(answers(work / "runs")) == 12
