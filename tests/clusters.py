"""A real Ray cluster of several nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_MEMORY = 2 << 30
"""Bytes that each node lends: else what is free when it begins, and one that begins later might lend too little."""


class Nodes:
    """A cluster whose head gives no place; replicas run on its other nodes."""

    def __init__(self, cache: Path) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address: str = self.cluster.address
        self.nodes: list[Any] = []
        self.cache = cache

    def wanted(self, count: int, *, memory: int = _MEMORY, **environment: str) -> str:
        """Have so many nodes, new ones with memory and an environment of their own; return the cluster's address."""
        own = {"FLOWINFER_CACHE": str(self.cache)} | environment
        while len(self.nodes) < count:
            self.nodes.append(self.cluster.add_node(num_cpus=1, memory=memory, env_vars=own))
        self.cluster.wait_for_nodes()
        return self.address

    def workers(self, program: str) -> list[int]:
        """Return the replicas' processes on these nodes, by the module that they run."""
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_one = program.encode() in (path / "cmdline").read_bytes()
                if is_one and str(self.cache).encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found

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
