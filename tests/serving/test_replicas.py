"""Replicas behind one address: who gets a question, and what a client hears where one is lost."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flowinfer.engine.base import Alternative, HeadWish, TokenEvent
from flowinfer.errors import LoadError
from flowinfer.results import StepResult, Trace
from flowinfer.runs.replicas.site import MOST_SILENT, MOST_SILENT_FIRST, Gone, Hear
from flowinfer.runs.replicas.wire import Failed, Notice
from flowinfer.runs.replicas.wire import line_of as asking_line
from flowinfer.serving.happenings import Admitted, Answered, Happening, StepEnded, Wrote
from flowinfer.serving.replicas import load, wire
from flowinfer.serving.replicas.beginnings import Beginnings
from flowinfer.serving.replicas.router import Router
from flowinfer.serving.replicas.worker import ServingReplica
from tests.command import flowinfer
from tests.serving.asgi import Reply, ask, call, events_of
from tests.serving.conftest import FLOWS, Serve, Served

FLOW = {"one": "Qwen"}
LONG = "long " * 200


class Scripted:
    """A replica that says what a test lets it say."""

    def __init__(self, hear: Hear) -> None:
        self.hear = hear
        self.heard: queue.Queue[BaseModel] = queue.Queue()

    def send(self, message: BaseModel) -> None:
        self.heard.put(message)

    def kill(self) -> None:
        self.hear(Gone("exit code 0"))

    def say(self, message: BaseModel) -> None:
        self.hear(wire.line_of(message))

    def ready(self) -> None:
        told = {"status": "ready", "loading": None, "loaded": {}, "models": {}, "waiting_for": []}
        self.say(wire.Standing(told=told, context_lengths={"one": 1024}, loops=()))

    def put(self) -> wire.Put:
        """Wait for the next question."""
        while not isinstance(message := self.heard.get(), wire.Put):
            pass
        return message

    def tell(self, put: wire.Put, *happened: Happening) -> None:
        self.say(wire.Happened(events=tuple((put.number, one) for one in happened)))

    def begin(self, put: wire.Put, *pieces: str) -> None:
        """Write the beginning of an answer."""
        tokens = [TokenEvent(index, piece.encode(), 0.5, ()) for index, piece in enumerate(pieces)]
        self.tell(put, Admitted("s1", False), *(Wrote("s1", token) for token in tokens))

    def answer(self, put: wire.Put, text: str = "yes") -> None:
        result = StepResult(
            step="s1", text=text, passed_on=text, prompts={}, tokens=1, finish_reason="eos", seconds=0.1
        )
        trace = Trace(question_id="q", answer=text, finish_reason="eos", seconds=0.1, steps=(result,))
        self.tell(put, StepEnded(result), Answered(trace))

    def die(self, *last: BaseModel) -> None:
        for message in last:
            self.say(message)
        self.hear(Gone("signal SIGKILL"))


class ScriptedSite:
    cpu_bytes = 0

    def __init__(self, num_replicas: int = 2) -> None:
        self.num_replicas = num_replicas
        self.begun: list[queue.Queue[Scripted]] = [queue.Queue() for _ in range(num_replicas)]
        self.is_closed = False

    def begin(self, index: int, program: str, hear: Hear) -> Scripted:
        made = Scripted(hear)
        self.begun[index].put(made)
        return made

    def next(self, index: int, *, is_ready: bool = True) -> Scripted:
        """Wait until a replica is started, or started again."""
        made = self.begun[index].get()
        if is_ready:
            made.ready()
        return made

    def close(self) -> None:
        self.is_closed = True


class Cluster:
    """A server, its site and what it has said."""

    def __init__(self, serve: Serve, num_replicas: int = 2) -> None:
        self.site, self.notices = ScriptedSite(num_replicas), list[str]()

        def made(flows: Any, deliver: Any) -> Router:
            return Router(flows, self.site, deliver, on_notice=self.notices.append)

        self.server = serve(FLOW, responder=made, waits=False)

    def both(self) -> tuple[Scripted, Scripted]:
        """Return two replicas that are ready."""
        found = self.site.next(0), self.site.next(1)
        self.until(lambda said: [one["status"] for one in said["replicas"]] == ["ready", "ready"])
        return found

    def until(self, is_so: Callable[[Any], bool]) -> Any:
        """Wait until /ready says something; return what it says."""
        while not is_so(said := self.server.ask("GET", "/ready").data):
            time.sleep(0.005)
        return said

    def chat(self, question: str = "?", **body: Any) -> Asked:
        """Ask, without waiting for the answer."""
        messages = body.pop("messages", [{"role": "user", "content": question}])
        path = body.pop("path", "/v1/chat/completions")
        return Asked(self.server, ask(self.server.app, "POST", path, {"model": "one", "messages": messages} | body))


class Asked:
    """A request on its way."""

    def __init__(self, server: Served, work: Coroutine[Any, Any, Reply]) -> None:
        self._reply = asyncio.run_coroutine_threadsafe(work, server.loop)

    def reply(self) -> Reply:
        return self._reply.result()

    @property
    def text(self) -> str:
        reply = self.reply()
        assert reply.status == 200, reply.body
        text: str = reply.data["choices"][0]["message"]["content"]
        return text


def streamed(reply: Reply) -> str:
    """Return the text of a stream that ended well."""
    assert reply.status == 200 and reply.events[-1] == "[DONE]", reply.body
    return "".join(event["choices"][0]["delta"].get("content", "") for event in reply.events[:-1])


@pytest.fixture
def cluster(serve: Serve) -> Iterator[Cluster]:
    made = Cluster(serve)
    yield made
    made.server.desk.service.close()
    assert made.site.is_closed


def test_a_question_goes_to_the_replica_with_fewest_rows(cluster: Cluster) -> None:
    first, second = cluster.both()
    asked = [cluster.chat(f"{number}") for number in range(2)]
    kept = first.put()
    second.answer(second.put(), "one")
    cluster.until(lambda said: [one["rows"] for one in said["replicas"]] == [1, 0])
    asked += [cluster.chat("2")]
    second.answer(second.put(), "two")
    first.answer(kept, "other")
    assert sorted(one.text for one in asked) == ["one", "other", "two"]


def test_a_conversation_goes_on_where_its_beginning_was_read(cluster: Cluster) -> None:
    first, second = cluster.both()
    other = cluster.chat("?")
    kept = first.put()
    begun = cluster.chat(LONG)
    second.answer(second.put(), "begun")
    first.answer(kept)
    assert (begun.text, other.text) == ("begun", "yes")
    turns = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "begun"}]
    on = cluster.chat(messages=[*turns, {"role": "user", "content": "and then?"}])
    second.answer(second.put(), "went on")
    assert on.text == "went on"


def test_a_conversation_leaves_a_replica_that_is_much_busier(cluster: Cluster) -> None:
    first, second = cluster.both()
    asked = [cluster.chat(LONG + str(number)) for number in range(6)]
    puts = [first.put() for _ in range(5)]
    second.answer(second.put(), "elsewhere")
    for put in puts:
        first.answer(put)
    assert sorted(one.text for one in asked) == ["elsewhere", *["yes"] * 5]


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=6)), max_size=12))
def test_the_reader_of_the_longest_beginning_is_known_until_it_has_gone(
    read: list[tuple[int, list[int]]],
) -> None:
    """A beginning's hash stands for all before it, as here its tuple does."""
    known, last = Beginnings(), dict[int, int]()
    for replica, blocks in read:
        hashes = [hash(tuple(blocks[: end + 1])) for end in range(len(blocks))]
        held = [last[one] for one in hashes if one in last]
        is_long = 2 * len(held) >= len(blocks)
        assert known.replica(hashes) == (held[-1] if held and is_long else None)
        known.note(hashes, replica)
        last |= dict.fromkeys(hashes, replica)
    for replica in range(4):
        known.forget(replica)
    assert all(known.replica([one]) is None for one in last)


def test_a_stream_that_was_told_something_ends_with_an_error(cluster: Cluster) -> None:
    first, _ = cluster.both()

    async def read() -> list[Any]:
        body = {"model": "one", "messages": [{"role": "user", "content": "?"}], "stream": True}
        made = call(cluster.server.app, "POST", "/v1/chat/completions", body)
        task, text = made.start(), ""
        put = await asyncio.to_thread(first.put)
        first.begin(put, "half", " of")
        async for message in made.messages():
            text += message.get("body", b"").decode()
            if "half" in text and not put.number < 0:
                first.die()
                put = put.model_copy(update={"number": -1})
        await task
        return events_of(text)

    *told, last = cluster.server.run(read())
    assert "half of".startswith("".join(event["choices"][0]["delta"].get("content", "") for event in told))
    assert last["error"] == {
        "message": "the process that was to answer has ended: signal SIGKILL",
        "type": "server_error",
        "param": None,
        "code": "replica_lost",
    }


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_told_nothing_of_is_asked_of_another_replica(cluster: Cluster, stream: bool) -> None:
    """Nothing of what the lost one has written is in the answer, and nobody hears of it."""
    first, second = cluster.both()
    asked = cluster.chat(stream=stream, logprobs=not stream or None)
    put = first.put()
    first.begin(put, *([] if stream else ["lost"]))
    first.die()
    put = second.put()
    second.begin(put, "yes")
    second.answer(put)
    assert (streamed(asked.reply()) if stream else asked.text) == "yes"
    if not stream:
        assert [token["token"] for token in asked.reply().data["choices"][0]["logprobs"]["content"]] == ["yes"]


def test_a_question_that_ends_every_process_is_asked_three_times(cluster: Cluster) -> None:
    first, second = cluster.both()
    asked = cluster.chat()
    for replica in (first, second):
        replica.put()
        replica.die()
    first = cluster.site.next(0)
    first.put()
    first.die()
    assert (asked.reply().status, asked.reply().error["code"]) == (503, "replica_lost")


def test_a_client_that_goes_takes_its_question_back(cluster: Cluster) -> None:
    first, _ = cluster.both()

    async def leave() -> wire.Put:
        body = {"model": "one", "messages": [{"role": "user", "content": "?"}], "stream": True}
        made = call(cluster.server.app, "POST", "/v1/chat/completions", body)
        task = made.start()
        put = await asyncio.to_thread(first.put)
        made.gone.set()
        await task
        return put

    put = cluster.server.run(leave())
    assert first.heard.get() == wire.Withdraw(number=put.number)
    first.answer(put)  # what is still said of it is nobody's
    cluster.until(lambda said: not any(one["rows"] for one in said["replicas"]))


def test_a_lost_replica_is_started_again_and_shown(cluster: Cluster) -> None:
    first, _ = cluster.both()
    first.die()
    again = cluster.site.next(0, is_ready=False)
    said = cluster.until(lambda said: said["replicas"][0]["starts"] == 1)
    assert [one["status"] for one in said["replicas"]] == ["loading", "ready"] and said["status"] == "ready"
    again.ready()
    cluster.until(lambda said: said["replicas"][0]["status"] == "ready")
    metrics = cluster.server.ask("GET", "/metrics").body.decode()
    assert 'flowinfer_replica_starts_total{replica="1"} 1.0' in metrics
    assert 'flowinfer_replica_ready{replica="1"} 1.0' in metrics
    assert cluster.notices == ["replica 1 has ended: signal SIGKILL; it is started again"]


def test_questions_wait_until_a_replica_is_ready(cluster: Cluster) -> None:
    first = cluster.site.next(0, is_ready=False)
    asked = cluster.chat()
    cluster.until(lambda said: said["status"] == "loading")
    assert cluster.server.ask("GET", "/ready").status == 503
    first.say(Notice(text="loading Qwen on cpu"))
    first.ready()
    first.answer(first.put())
    assert asked.text == "yes" and cluster.notices == ["loading Qwen on cpu"]
    assert cluster.server.ask("GET", "/ready").status == 200
    assert cluster.server.ask("GET", "/v1/models/one").data["flowinfer"]["context_length"] == 1024


def test_what_no_replica_can_load_is_told_to_all_who_wait(cluster: Cluster) -> None:
    first = cluster.site.next(0, is_ready=False)
    asked = cluster.chat()
    first.die(Failed(error="LoadError", message="model 'Qwen' cannot be loaded", help="check ref"))
    service = cluster.server.desk.service
    service.changed.wait()
    problem = service.loading.problem
    assert isinstance(problem, LoadError) and problem.help == "check ref"
    assert problem.message == "replica 1: model 'Qwen' cannot be loaded" == asked.reply().error["message"]
    assert cluster.server.ask("GET", "/health").status == 503
    assert cluster.chat().reply().status == 503


def test_a_replica_whose_device_is_lost_is_given_up_and_the_others_go_on(cluster: Cluster) -> None:
    first, second = cluster.both()
    first.die(Failed(error="DeviceLost", message="cuda:0 has failed"))
    said = cluster.until(lambda said: said["replicas"][0]["status"] == "given up")
    assert said["status"] == "ready" and cluster.notices == ["replica 1 is given up: cuda:0 has failed"]
    asked = cluster.chat()
    second.answer(second.put())
    assert asked.text == "yes"
    second.die(Failed(error="DeviceLost", message="cuda:0 has failed"))
    assert cluster.until(lambda said: said["status"] != "ready")["status"] == "failed"


def test_a_replica_that_never_starts_is_given_up(cluster: Cluster) -> None:
    for index in (0, 1, 0, 1):
        cluster.site.next(index, is_ready=False).die()
    service = cluster.server.desk.service
    service.changed.wait()
    assert str(service.loading.problem) == "no replica is left: the last has ended: signal SIGKILL"


def test_a_line_that_is_no_message_ends_its_replica(cluster: Cluster) -> None:
    first, _ = cluster.both()
    first.hear(b'{"kind": "rubbish"}\n')
    cluster.site.next(0)
    why = 'it has said what is no message: \'{"kind": "rubbish"}\\n\''
    assert cluster.notices == [f"replica 1 has ended: {why}; it is started again"]


@pytest.mark.parametrize(("is_heard", "most"), [(True, MOST_SILENT), (False, MOST_SILENT_FIRST)])
def test_a_replica_that_says_nothing_at_so_many_looks_is_ended(is_heard: bool, most: int) -> None:
    replica, told = load.Replica(index=0), list[bytes | Gone]()
    replica.link, replica.is_heard = Scripted(told.append), is_heard
    for _ in range(most - 1):
        replica.look()
    assert not told
    replica.look()
    assert told == [Gone("exit code 0")]


def test_what_waits_when_the_server_ends_is_told_so(cluster: Cluster) -> None:
    first, _ = cluster.both()
    asked = cluster.chat()
    first.put()
    cluster.server.desk.service.close()
    assert (asked.reply().status, asked.reply().error["message"]) == (503, "the server was stopped")
    assert cluster.chat().reply().status == 503


def test_tokens_of_any_bytes_go_through_the_wire_whole() -> None:
    heads = (HeadWish("n1", "Qwen", b"\xe5\xb0", 0.25, 0.5), HeadWish("n2", "Ds", None, 0.25, 0.0))
    token = TokenEvent(3, b"\xff\x00", 0.5, heads, (Alternative(b"\x80", 0.5), Alternative(None, 0.25)))
    said = wire.Happened(events=((7, Wrote("s1", token)),))
    assert wire.said(wire.line_of(said)) == said


class Threads:
    """Replicas in threads of this process: everything but the process is real."""

    cpu_bytes, num_replicas = 1 << 30, 1

    def begin(self, index: int, program: str, hear: Hear) -> Threads:
        asked, asks = os.pipe()
        told, tells = os.pipe()
        self.asks = os.fdopen(asks, "wb", buffering=0)
        ways = ((self._be, (asked, tells)), (self._read, (told, hear)))
        self.threads = [threading.Thread(target=way, args=with_) for way, with_ in ways]
        for thread in self.threads:
            thread.start()
        return self

    def _be(self, asked: int, tells: int) -> None:
        with os.fdopen(asked, "rb") as source, os.fdopen(tells, "wb", buffering=0) as sink:
            ServingReplica(source, sink, leave=lambda: None).run()

    def _read(self, told: int, hear: Hear) -> None:
        with os.fdopen(told, "rb") as source:
            for line in source:
                hear(line)

    def send(self, message: BaseModel) -> None:
        self.asks.write(asking_line(message))

    def kill(self) -> None:
        self.asks.close()

    def close(self) -> None:
        self.kill()
        for thread in self.threads:
            thread.join()


def test_a_replica_tells_all_that_one_process_tells(serve: Serve) -> None:
    """Of a stream with every token's heads, of probabilities, and of what a request sets."""
    flows = {"drawn": FLOWS["drawn"]}
    server, other = serve(flows), serve(flows, responder=lambda flows, deliver: Router(flows, Threads(), deliver))
    body: dict[str, Any] = {"seed": 5, "temperature": 0.7, "max_tokens": 6, "stop": ["9"]}
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "3 + 4 = ?"}]
    for path, more in (
        ("/flowinfer/chat", {"stream": True}),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 3}),
    ):
        whole = {"model": "drawn", "messages": messages, **body, **more}
        assert said(other.ask("POST", path, whole)) == said(server.ask("POST", path, whole))


def said(reply: Reply) -> list[Any]:
    """Return what a reply says that does not go by the clock."""
    assert reply.status == 200, reply.body

    def timeless(data: Any) -> Any:
        if isinstance(data, dict):
            left = {name: timeless(value) for name, value in data.items()}
            return {name: value for name, value in left.items() if name not in ("seconds", "id", "created")}
        return [timeless(one) for one in data] if isinstance(data, list) else data

    return [timeless(event) for event in (reply.events if reply.body.startswith(b"data") else [reply.data])]


def test_an_item_with_half_a_surrogate_pair_is_refused(server: Served) -> None:
    """It could not be told of, here or to a replica."""
    question = {"id": "q", "question": "?", "reference": "", "choices": {"A": "\ud800"}}
    body = json.dumps({"model": "one", "fingerprint": "", "question": question, "text": "?"}).encode()
    reply = server.ask("POST", "/flowinfer/traces", body)
    assert reply.status == 400 and "half of a surrogate pair" in reply.error["message"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--replicas", "0"), "--replicas"),
        (("--replicas", "two"), "--replicas"),
        (("--replicas", "999"), "--replicas 999: this machine has"),
        (("--replicas", "2", "--swap"), "--swap and --replicas do not go together"),
        (("--cluster", "auto", "--swap"), "--swap and --replicas do not go together"),
    ],
)
def test_copies_that_there_cannot_be_are_refused_in_one_line(
    tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = flowinfer("serve", "pi", "--zoo", "lab", *options, cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and told in errors[0], done.stderr
