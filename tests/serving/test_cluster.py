"""A server's replicas on a real Ray cluster of two nodes, one of which is killed. `make test-ray`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clusters import Nodes, cluster
from tests.endpoint import Stub, stub
from tests.runs.processes import wait_for
from tests.serving.asgi import events_of
from tests.serving.test_replica_processes import WRITES, Server, far_flow, text_of

__all__ = ["cluster", "stub"]
pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
LONG = "long " * 200


@pytest.fixture
def server(cluster: Nodes, stub: Stub, tmp_path: Path) -> Iterator[Server]:
    """Return a server on two nodes; what it writes ends when the test lets it."""
    stub.may_end.clear()
    stub.replies = [WRITES]
    made = Server(str(far_flow(stub, tmp_path)), "--cluster", cluster.wanted(2))
    made.wait_for()
    yield made
    stub.may_end.set()
    made.signal(signal.SIGTERM)
    assert made.ended() == 0


def test_a_node_that_is_killed_breaks_off_its_streams_and_no_others(cluster: Nodes, server: Server, stub: Stub) -> None:
    """Questions go to the replica with fewest rows, or where their beginning was read; what has told nothing is asked
    again of the other node, and a new node takes the place of the lost one."""
    stub.replies = [WRITES, WRITES, (200, []), (200, []), WRITES]
    said = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "?"}, {"role": "user", "content": "!"}]
    with ThreadPoolExecutor() as pool:
        streams = [server.ask(pool, model="far", stream=True, messages=said[:1])]
        server.wait_for(questions=[1, 0])
        streams.append(server.ask(pool, model="far", stream=True))
        server.wait_for(questions=[1, 1])
        silent = [server.ask(pool, model="far", stream=True, messages=said)]
        server.wait_for(questions=[2, 1])
        silent.append(server.ask(pool, model="far", stream=True))
        server.wait_for(questions=[2, 2])
        wait_for(lambda: len(stub.asked) == 4)
        cluster.kill()
        wait_for(lambda: sum(one["starts"] for one in server.states) == 1)
        wait_for(lambda: sorted(one["questions"] for one in server.states) == [0, 3])
        stub.may_end.set()
        ends = [events_of(stream.result().text) for stream in streams]
        broken, whole = sorted(ends, key=lambda events: events[-1] == "[DONE]")
        texts = {text_of(events_of(one.result().text)) for one in silent}
    assert broken[-1]["error"]["code"] == "replica_lost"
    assert "has ended: its actor has ended" in broken[-1]["error"]["message"]
    assert text_of(whole) == "half and whole" and texts == {"half and whole"}
    cluster.wanted(2)
    server.wait_for()
    assert server.chat(model="far").status_code == 200


def test_a_replica_that_is_killed_is_started_again_in_its_place(cluster: Nodes, server: Server) -> None:
    """There is no other place: what the lost one had is free for it."""
    os.kill(cluster.workers("flowinfer.serving.replicas.worker")[0], signal.SIGKILL)
    wait_for(lambda: sum(one["starts"] for one in server.states) == 1)
    server.wait_for()
    assert not any("no node has" in line for line in server.said)
