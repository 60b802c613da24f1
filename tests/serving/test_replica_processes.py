"""A server's replicas as processes, as clients meet them, whoever is killed; each imports torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.endpoint import Reply, Stub, event, stub
from tests.runs.processes import wait_for
from tests.runs.test_replica_processes import is_alive
from tests.serving.asgi import events_of
from tests.serving.test_clients import Process

__all__ = ["stub"]
pytestmark = pytest.mark.slow
WRITES: Reply = 200, [event("half "), event("and whole", finish_reason="stop")]
"""What a stream of the endpoint brings before it may end."""


def text_of(events: Sequence[Any]) -> str:
    """Return the text of a stream that ended well."""
    assert events[-1] == "[DONE]"
    return "".join(one["choices"][0]["delta"].get("content", "") for one in events[:-1])


class Server(Process):
    """A server of replicas."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments)
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))

    @property
    def states(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.address}/ready").json()["replicas"]
        return found

    @property
    def replicas(self) -> list[int]:
        """Return its replicas' processes in order: each has earlier cores than the next, or an earlier start."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        found = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return sorted(found, key=lambda pid: (min(os.sched_getaffinity(pid)), pid))

    def wait_for(self, status: Sequence[str] = ("ready", "ready"), **counts: list[int]) -> None:
        """Wait until /ready says so of its replicas."""

        def is_so() -> bool:
            now = self.states
            are = {name: [one[name] for one in now] for name in counts}
            return [one["status"] for one in now] == list(status) and are == counts

        wait_for(is_so, self.process)

    def ask(self, pool: ThreadPoolExecutor, **body: Any) -> Future[httpx.Response]:
        return pool.submit(self.chat, **body)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it; return its exit code, once nothing is left of it."""
        replicas = self.replicas
        self.signal(number)
        self._reader.join()
        code = self.ended()
        wait_for(lambda: not any(map(is_alive, replicas)))
        return code


def far_flow(stub: Stub, folder: Path) -> Path:
    """Return a flow that an endpoint writes."""
    model = f'model Far = "far" {{ backend=openai, base_url="{stub.url}", parallel=4 }}'
    (folder / "far.flow").write_text(f"{model}\nFar\n", encoding="utf-8")
    return folder / "far.flow"


@pytest.fixture
def slow(stub: Stub, tmp_path: Path) -> Iterator[Server]:
    """Return a server of a flow that has written the half of its answer until the test lets it write the rest."""
    stub.may_end.clear()
    stub.replies = [WRITES]
    server = Server(str(far_flow(stub, tmp_path)), "--replicas", "2")
    server.wait_for()
    yield server
    stub.may_end.set()
    if server.process.poll() is None:
        assert server.end() == 0


def test_two_replicas_answer_what_one_process_answers() -> None:
    flows = [str(ROOT / "pipelines" / f"{name}.flow") for name in ("s2p", "pi")]

    def answers(server: Process) -> list[str]:
        def ask(number: int) -> str:
            """Return the text of a request with options of its own."""
            options = {"seed": number, "temperature": (0, 0.8)[number % 3 == 0], "max_tokens": 6 + number % 3}
            messages = [{"role": "user", "content": f"{number} + 4 = ?"}]
            reply = server.chat(model=("s2p", "pi")[number % 2], messages=messages, **options)
            assert reply.status_code == 200, reply.text
            text: str = reply.json()["choices"][0]["message"]["content"]
            return text

        with ThreadPoolExecutor(12) as pool:
            return list(pool.map(ask, range(12)))

    alone = Process(*flows)
    whole = answers(alone)
    alone.signal(signal.SIGKILL)
    alone.process.communicate()
    server = Server(*flows, "--replicas", "2")
    server.wait_for()
    assert answers(server) == whole
    assert all(one["answered"] for one in server.states)
    assert server.end() == 0


def test_a_replica_that_is_killed_breaks_off_its_streams_and_no_others(slow: Server, stub: Stub) -> None:
    stub.replies = [WRITES, WRITES, (200, []), WRITES]
    with ThreadPoolExecutor() as pool:
        streams = [slow.ask(pool, model="far", stream=True) for _ in range(2)]
        slow.wait_for(questions=[1, 1])
        wait_for(lambda: len(stub.asked) == 2)
        silent = slow.ask(pool, model="far", stream=True)
        slow.wait_for(questions=[2, 1])
        wait_for(lambda: len(stub.asked) == 3)
        os.kill(slow.replicas[0], signal.SIGKILL)
        slow.wait_for(starts=[1, 0], questions=[0, 2])  # what has told nothing is asked again
        stub.may_end.set()
        ends = [events_of(stream.result().text) for stream in streams]
        broken, whole = sorted(ends, key=lambda events: events[-1] == "[DONE]")
        again = events_of(silent.result().text)
    assert broken[-1]["error"]["code"] == "replica_lost"
    assert text_of(whole) == text_of(again) == "half and whole"
    wait_for(lambda: any(line.startswith("replica 1 has ended: signal SIGKILL") for line in slow.said))
    assert len(slow.replicas) == 2


def test_a_server_that_is_killed_leaves_no_replica(slow: Server, stub: Stub) -> None:
    with ThreadPoolExecutor() as pool:
        asked = slow.ask(pool, model="far", stream=True)
        slow.wait_for(questions=[1, 0])
        assert slow.end(signal.SIGKILL) == -signal.SIGKILL
        assert asked.exception() is not None


def test_a_server_that_is_stopped_lets_its_replicas_finish(slow: Server, stub: Stub) -> None:
    """Though the signal comes to them too, as from whoever ends a whole group of processes."""
    with ThreadPoolExecutor() as pool:
        asked = slow.ask(pool, model="far", stream=True)
        slow.wait_for(questions=[1, 0])
        for pid in (*slow.replicas, slow.process.pid):
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{slow.address}/ready").json()["status"] == "draining")
        stub.may_end.set()
        assert text_of(events_of(asked.result().text)) == "half and whole"
    assert slow.ended() == 0


def test_what_no_replica_can_load_ends_the_server_with_one_line(tmp_path: Path, toy_zoo: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (toy_zoo.parent / "qwen").iterdir():
        (broken / file.name).write_bytes(b"{}" if file.name == "tokenizer.json" else file.read_bytes())
    (tmp_path / "one.flow").write_text(f'model Broken = "{broken}"\nBroken\n', encoding="utf-8")
    with pytest.raises(AssertionError) as raised:
        Process(str(tmp_path / "one.flow"), "--replicas", "2")
    (told,) = [line for line in str(raised.value).splitlines() if line.startswith("error: ")]
    assert "model 'Broken'" in told and "Traceback" not in str(raised.value)
