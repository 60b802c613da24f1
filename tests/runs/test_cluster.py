"""Replicas on a real Ray cluster of two nodes: one process's answers, whichever node is lost. `make test-ray`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.clusters import Nodes, cluster
from tests.command import flowinfer
from tests.conftest import ROOT
from tests.runs.processes import FLOW, answers, begun, num_answers, said, wait_for

__all__ = ["cluster"]
pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
WORKER = "flowinfer.runs.replicas.worker"


def foreign(told: str) -> list[str]:
    """Return what was written on standard error by somebody else."""
    known = ("flow on", "note: ", "run ", "loading ", "loaded ", *map(str, range(10)))
    return [line for line in told.splitlines() if line and not line.startswith(known)]


def run(address: str) -> tuple[str, ...]:
    return ("exec", *FLOW, "--no-cache", "--batch", "2", "--cluster", address)


def test_a_node_that_is_killed_loses_nothing(cluster: Nodes, work: Path, alone: dict[str, object]) -> None:
    process = begun(work, *run(cluster.wanted(2)))
    wait_for(lambda: num_answers(work) >= 3, process)
    cluster.kill()
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert said(work) == alone and num_answers(work) == len(alone)
    assert "has ended: its actor has ended" in told and "nothing is lost" in told
    assert not foreign(told), "nothing of Ray's is on the terminal"


def test_a_node_that_comes_back_with_less_memory_free_is_taken(cluster: Nodes, work: Path) -> None:
    """As long as a copy has room there: what is kept for one is what it needs, not what was free at the beginning."""
    process = begun(work, *run(cluster.wanted(2)), "--limit", "400")
    wait_for(lambda: num_answers(work) >= 3, process)
    cluster.kill()
    wait_for(lambda: len(cluster.workers(WORKER)) == 1, process)
    cluster.wanted(2, memory=7 << 28)
    wait_for(lambda: len(cluster.workers(WORKER)) == 2, process)
    process.kill()
    process.communicate()
    wait_for(lambda: not cluster.workers(WORKER))


def test_a_driver_that_is_killed_leaves_no_replica_and_its_run_goes_on(
    cluster: Nodes, work: Path, alone: dict[str, object]
) -> None:
    process = begun(work, *run(cluster.wanted(2)))
    wait_for(lambda: num_answers(work) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not cluster.workers(WORKER))
    done = flowinfer("exec", "--resume", "--cluster", "here", "--replicas", "1", cwd=work)
    assert done.returncode == 0, done.stderr
    assert said(work) == alone


def test_a_sweep_of_which_a_node_is_killed_answers_as_one_process(cluster: Nodes, work: Path) -> None:
    sweep = ("sweep", "--models", "Yi,Qwen", "--zoo", "lab", "--datasets", "ceval", "--limit", "4", "--no-cache")
    whole = flowinfer(*sweep, "--out", "whole", cwd=work)
    assert whole.returncode == 0, whole.stderr
    process = begun(work, *sweep, "--cluster", cluster.wanted(2), "--out", "killed")
    wait_for(lambda: len(list((work / "killed").glob("*/steps/*/*.json"))) >= 3, process)
    cluster.kill()
    _, told = process.communicate()
    assert process.returncode == 0, told
    (one,), (other,) = (work / "whole").iterdir(), (work / "killed").iterdir()
    assert answers(other) == answers(one)


def test_nodes_are_shown_with_what_they_would_run(cluster: Nodes, work: Path) -> None:
    command = [sys.executable, "-m", "flowinfer", "cluster", "-e", "Yi -> Qwen", "--zoo", "lab", "--cluster"]
    done = subprocess.run([*command, cluster.wanted(2)], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    *shown, summary, _, _ = lines = done.stdout.splitlines()
    assert sorted(line for line in shown if line.startswith("  ")) == [
        "  replicas: 0 (it lends no CPU cores)",
        "  replicas: 1",
        "  replicas: 1",
    ]
    assert lines[-2:] == ["  Yi on cpu", "  Qwen on cpu"]
    assert summary == "2 replicas, each with 0 GPUs and 1 CPU cores:"


def test_a_cluster_that_is_not_there_is_told_in_one_line(work: Path) -> None:
    done = begun(work, *run("127.0.0.1:1"))
    _, told = done.communicate()
    assert done.returncode == 2 and told.startswith("error: no Ray cluster at '127.0.0.1:1'"), told
    assert len(told.splitlines()) == 2


def test_nodes_of_another_environment_are_refused_with_each_difference(
    cluster: Nodes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three models of the hub's cache one is not on the node, and one has another tokenizer there."""
    name = "transformers-0.0.1.dist-info"
    (work / "old" / name).mkdir(parents=True)
    (work / "old" / name / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 0.0.1\n")
    here, there = work / "here", work / "there"
    for hub, models in ((here, ("A", "B", "C")), (there, ("A", "B"))):
        for model in models:
            folder = hub / f"models--lab--{model}"
            shutil.copytree(ROOT / "src" / "flowinfer" / "zoos" / "lab" / "qwen", folder / "snapshots" / "1")
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text("1")
    other = there / "models--lab--B" / "snapshots" / "1"
    (other / "tokenizer.json").write_text("{}")
    (work / "zoo.toml").write_text("".join(f'[models.{model}]\nref = "lab/{model}"\n' for model in "ABC"))
    (work / "items.jsonl").write_text(json.dumps({"question": "?", "answer": "4", "kind": "exact"}))
    path = os.pathsep.join([str(work / "old"), *filter(None, sys.path)])
    cluster.wanted(2)
    address = cluster.wanted(3, PYTHONPATH=path, HF_HUB_CACHE=str(there))
    monkeypatch.setenv("HF_HUB_CACHE", str(here))
    asked = ("-e", "A -> B -> C", "--zoo", "zoo.toml", "--cluster", address)
    done = subprocess.run(
        [sys.executable, "-m", "flowinfer", "cluster", *asked], capture_output=True, text=True, cwd=work
    )
    told = [line.strip() for line in done.stdout.splitlines() if "cannot answer: " in line]
    assert done.returncode == 1
    assert [line for line in told if "transformers" in line] == [
        f"cannot answer: transformers {version('transformers')} here, 0.0.1 there"
    ]
    assert f"cannot answer: model 'B' is another there: tokenizer.json in {other}" in told
    assert f"cannot answer: model 'C' is missing there: nothing at {there / 'models--lab--C'}" in told
    done = subprocess.run(
        [sys.executable, "-m", "flowinfer", "exec", *asked, "--dataset", "items.jsonl"],
        capture_output=True,
        text=True,
        cwd=work,
    )
    cluster.kill()
    assert done.returncode == 2 and not (work / "runs").exists()
    told, cure = done.stderr.splitlines()
    assert told.startswith("error: node ") and f"transformers {version('transformers')} here, 0.0.1 there" in told
    assert cure == "  = help: make it the same there, or take the node out of the cluster"
