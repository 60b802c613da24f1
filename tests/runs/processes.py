"""Runs whose processes are ended in the middle, as a user meets them, and what one process answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flowinfer.runs.store import read_records
from flowinfer.sweeps.folder import read_index
from tests.command import hear_signals

FLOW = ("-e", "Yi -> (Qwen | Ds)", "--zoo", "lab", "--dataset", "ceval", "--limit", "20")


def said(work: Path) -> dict[str, object]:
    """Return all of the only run's records that does not depend on the clock or the batch."""
    (run,) = (work / "runs").iterdir()
    found: dict[str, object] = {}
    for record in read_records(run):
        steps = [(step.step, step.text, step.prompts, step.tokens, step.finish_reason) for step in record.trace.steps]
        found[record.question.id] = (steps, record.trace.answer, record.trace.error, record.score)
    return found


def begun(work: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flowinfer", *arguments],
        cwd=work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )


def wait_for(what: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something is so; a process that ends before it is a failure."""
    while not what():
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def num_answers(work: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in work.glob("*/*/samples.jsonl"))


def answers(folder: Path) -> dict[object, Sequence[object]]:
    """Return each path's answers on each data set."""
    return {
        key: sorted((record.question.id, record.trace.answer) for record in read_records(folder / entry.run))
        for key, entry in read_index(folder).items()
    }
