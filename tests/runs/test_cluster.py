"""Replicas on a real Ray cluster of two nodes: one process's answers, whichever node is lost. `make test-ray`."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import flowinfer
from tests.runs.processes import FLOW, answers, begun, num_answers, said, wait_for

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
WORKER = "flowinfer.runs.replicas.worker"


class Nodes:
    """A cluster whose head gives no place; replicas run on its other nodes."""

    def __init__(self, cache: Path) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address: str = self.cluster.address
        self.nodes: list[Any] = []
        self.cache = cache

    def wanted(self, count: int) -> str:
        """Have so many nodes; return the cluster's address."""
        while len(self.nodes) < count:
            self.nodes.append(self.cluster.add_node(num_cpus=1))
        self.cluster.wait_for_nodes()
        return self.address

    def kill(self) -> None:
        """Kill a node."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("nodes")
        patch.setenv("FLOWINFER_CACHE", str(cache))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Nodes(cache)
        yield made
        made.cluster.shutdown()


def num_workers(cache: Path) -> int:
    """Count the replicas' processes whose finished steps are kept there: those of these nodes."""
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_one = WORKER.encode() in (path / "cmdline").read_bytes()
            found += is_one and str(cache).encode() in (path / "environ").read_bytes()
        except OSError:
            continue
    return found


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


def test_a_driver_that_is_killed_leaves_no_replica_and_its_run_goes_on(
    cluster: Nodes, work: Path, alone: dict[str, object]
) -> None:
    process = begun(work, *run(cluster.wanted(2)))
    wait_for(lambda: num_answers(work) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: num_workers(cluster.cache) == 0)
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
        "  replicas: 0",
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
