"""Heads and clients among strangers, liars and the deaf: each survives, and others go on."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.errors import FlowInferError, HeadCut, HeadLost
from flowinfer.remote import asked, client, server, wire
from flowinfer.remote.client import RemoteModel
from flowinfer.remote.head import Head
from flowinfer.remote.server import HeadServer
from flowinfer.remote.wire import Wire, WireError, introduce
from flowinfer.spec import ModelSpec
from tests.engine.plans import member, one_step, run
from tests.remote.conftest import Serve, begun, holding


def spec_of(port: int) -> ModelSpec:
    return ModelSpec(name="A", ref="A", backend="remote", base_url=f"127.0.0.1:{port}")


def works(port: int) -> None:
    """Assert that a head answers an ordinary client."""
    model = RemoteModel(spec_of(port))
    session = model.open()
    assert torch.isfinite(session.logits(session.add([[5, 6]]))).all()
    model.close()


def known(port: int) -> Wire:
    """Return the connection of a client that has shown the key."""
    made = Wire(socket.create_connection(("127.0.0.1", port)))
    introduce(made, b"", {"version": "0"})
    made.trust(seconds=60.0, most_body=1 << 30)
    return made


def test_a_stranger_that_sends_a_byte_now_and_then_is_sent_away(
    models: dict[str, HfModel], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = serve(models["A"])._port
    monkeypatch.setattr(wire, "_PATIENCE_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(0.02)  # a byte in so many seconds
        stranger.sendall(struct.pack("!II", 4000, 0))
        with suppress(ConnectionError):
            while True:
                try:
                    if not stranger.recv(1 << 16):
                        break
                except TimeoutError:
                    pass
                stranger.sendall(b" ")


def test_strangers_without_number_keep_no_client_away(models: dict[str, HfModel], serve: Serve) -> None:
    client = serve(models["A"])
    port = client._port
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * server.MOST_CONNECTIONS)]
    works(port)
    session = client.open()
    assert torch.isfinite(session.logits(session.add([[5, 6]]))).all()  # and those who were there go on
    for stranger in strangers:
        stranger.close()


def test_a_client_that_never_reads_holds_nobody_up(models: dict[str, HfModel]) -> None:
    head = holding(models["A"])
    port = begun(head)
    held = head._head
    assert held is not None
    counted, answer = [0], held.answer

    def count(*arguments: Any) -> Any:
        counted[0] += 1
        return answer(*arguments)

    held.answer = count  # type: ignore[method-assign]
    deaf = known(port)
    for _ in range(40):
        deaf.send({"ask": "echo", "size": 1 << 20})
    works(port)
    assert counted[0] < 40  # what nobody reads is not made
    deaf.close()
    head.close()


def test_a_head_that_is_long_at_work_says_so_and_one_that_stands_still_is_given_up(
    models: dict[str, HfModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a turn hears it too; a stopped process says nothing, though its connections stand."""
    monkeypatch.setattr(server, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(client, "SILENT_SECONDS", 0.4)
    head = holding(models["A"])
    port = begun(head)
    far = RemoteModel(spec_of(port))
    session, beats, has_beaten = far.open(), [0], threading.Event()
    message, held = Wire._message, head._head
    assert held is not None

    def counted(of: Wire) -> Any:
        found = message(of)
        beats[0] += found[0] == wire._AT_WORK
        if beats[0] == 30:  # longer than a silence may be
            has_beaten.set()
        return found

    monkeypatch.setattr(Wire, "_message", counted)
    with held._turn:
        asks = threading.Thread(target=lambda: session.logits(session.add([[5, 6]])))
        asks.start()
        has_beaten.wait()
    asks.join()
    with held._turn, head._beats, pytest.raises(HeadCut, match=r"127.0.0.1:\d+: it says nothing for 0.4 s"):
        far.open().logits([])
    far.close()
    head.close()


def test_a_lost_head_whose_silence_takes_long_to_find_is_not_looked_for_at_every_question(
    models: dict[str, HfModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a group that goes on without it would wait at each batch for one that stands still."""
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.0)
    head = holding(models["A"])
    port = begun(head)
    far, tries = RemoteModel(spec_of(port)), [0]
    clock = iter(range(0, 1000, 10))
    connect = far._connect

    def silent() -> Any:
        tries[0] += 1
        raise WireError("it says nothing for 10 s")

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # each look takes ten seconds
    monkeypatch.setattr(far, "_connect", silent)
    far.close()
    for expected in (1, 1, 1, 2):
        with pytest.raises(HeadLost, match="is lost: it says nothing for 10 s"):
            far._reconnect()
        assert tries == [expected]
    monkeypatch.undo()
    assert far._connect == connect
    far._lost = (0.0, "")
    far._reconnect()
    assert far._wire is not None and far._lost is None
    far.close()
    head.close()


def asked_of(draw: random.Random) -> Any:
    """Return something like a question: one of those that there are, with parts that are not."""
    rows = [draw.randrange(-1, 4) for _ in range(draw.randrange(4))]
    ids = [draw.choice([0, 5, 6, 9999, -1, 2**70, "x", None]) for _ in range(draw.randrange(4))]
    deed = draw.choice(
        [
            {"do": "add", "rows": rows, "prompts": [ids for _ in rows]},
            {"do": "add", "rows": [draw.randrange(4)], "prompts": [[5, 6]]},
            {"do": "feed", "chunks": [[row, ids] for row in rows]},
            {"do": "rollback", "row": draw.randrange(4), "count": draw.choice([0, 1, 10**9])},
            {"do": "remove", "rows": rows},
            {"do": "logits", "rows": rows, "best": draw.choice([0, 3, 10**9])},
            {"do": "verify", "segments": [[row, [ids]] for row in rows], "number": 1},
            {"do": "fetch", "number": draw.randrange(3), "at": rows},
            {"do": "leave_out", "columns": draw.choice([rows, [10**9]])},
            {"do": draw.choice(["shell", None, 3])},
        ]
    )
    whole = {"ask": "work", "session": draw.randrange(3), "deeds": [deed] * draw.randrange(3)}
    other = {"ask": draw.choice(["render", "vocabulary", "tokenizer", "echo", "x"]), "size": -1, "text": "a"}
    return draw.choice([whole, whole, whole, other, [], 7, {"ended": rows, **whole}])


def test_questions_of_any_kind_are_answered_or_end_their_connection_alone(
    models: dict[str, HfModel], serve: Serve
) -> None:
    client, draw = serve(models["A"]), random.Random(20)
    session = client.open()
    (row,) = session.add([[5, 6, 7]])
    before, liar = session.logits([row]), known(client._port)
    for _ in range(480):
        raw = json.dumps(asked_of(draw)).encode()
        if draw.random() < 0.1:
            raw = raw[: draw.randrange(len(raw))] + bytes(draw.randrange(256) for _ in range(draw.randrange(3)))
        try:
            liar._socket.sendall(struct.pack("!II", len(raw), draw.choice([0] * 30 + [1, 2**31])) + raw)
            answer, _ = liar.receive()
            assert "Traceback" not in str(answer)
        except (OSError, WireError):
            liar.close()
            liar = known(client._port)
    liar.close()
    assert torch.equal(session.logits([row]), before)


class Liar:
    """Answers as a head does, but for one answer that is bent by a seed."""

    def __init__(self, head: Head, seed: int) -> None:
        self._draw, self._answer = random.Random(seed), head.answer
        self._left = self._draw.randrange(1, 8)

    def __call__(self, *arguments: Any) -> Any:
        found = self._answer(*arguments)
        self._left -= 1
        return found if self._left else asked.Answer(*self._bent(found.head, bytes(found.body)))

    def _bent(self, told: dict[str, Any], body: bytes) -> Any:
        draw = self._draw
        told = dict(told)
        for key in list(told):
            if draw.random() < 0.5:
                told[key] = draw.choice([None, -1, 10**12, "x", [], {}, [1], [1, 2], [-1, 4], {"a": None}, 0.5])
            elif draw.random() < 0.2:
                del told[key]
        cut = draw.randrange(len(body) + 1)
        return told, draw.choice([body, body[:cut], body + b"x", bytes(len(body)), b"\xff" * len(body)])


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 80), marks=pytest.mark.slow)], ids=["few", "many"])
def test_answers_of_any_kind_fail_a_question_or_a_run_in_words(models: dict[str, HfModel], seeds: range) -> None:
    for seed in seeds:
        head = holding(models["A"])
        port = begun(head)
        assert head._head is not None
        head._head.answer = Liar(head._head, seed)  # type: ignore[method-assign]
        far = None
        try:
            far = RemoteModel(spec_of(port))
            found = run(one_step(member("A"), max_tokens=3), {"A": far}, ["hello"])
            assert all(" (at " not in (trace.error or "") for trace in found.values()), seed
        except FlowInferError:
            pass
        finally:
            if far is not None:
                far.close()
            head.close()


Describe = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def described(models: dict[str, HfModel]) -> Iterator[Callable[[dict[str, Any]], int]]:
    """Yield what serves a head that describes itself otherwise, and returns its port."""
    made: list[HeadServer] = []

    def make(changes: dict[str, Any]) -> int:
        head = holding(models["A"])
        assert head._head is not None
        head._head.about = {key: value for key, value in (head._head.about | changes).items() if value is not ...}
        made.append(head)
        return begun(head)

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "changes",
    [{"vocabulary": ...}, {"max_positions": "many"}, {"columns": 0}, {"notes": None}, {"ref": 3}, {"is_exact": ...}],
    ids=str,
)
def test_a_head_that_describes_itself_wrongly_is_refused_in_words(
    described: Callable[[dict[str, Any]], int], changes: dict[str, Any]
) -> None:
    with pytest.raises(FlowInferError, match="what it says of itself cannot be read"):
        RemoteModel(spec_of(described(changes)))
