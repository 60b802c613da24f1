"""What strangers, wrong keys, other models, cuts and ends do to a head and to a run."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from flowinfer.backends.exchange import Broken, Exchange
from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Observer
from flowinfer.engine.models import ModelPool
from flowinfer.errors import HeadCut, HeadLost, LoadError, RunError
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.remote import asked, client, wire
from flowinfer.remote.client import RemoteModel
from flowinfer.remote.direct import Direct
from flowinfer.remote.head import Head
from flowinfer.remote.server import HeadServer
from flowinfer.remote.wire import PROTOCOL, VERSION, Wire, called, parted, shown_place
from flowinfer.runs import remote
from flowinfer.runs.remote import Server, open_client
from flowinfer.spec import ModelSpec
from tests.engine import plans
from tests.engine.plans import answers, mix, one_step, run
from tests.remote.conftest import holding

KEY = b"fern-otter-quartz-71"


class Served:
    """A head at an address that stays, also where it is served anew."""

    def __init__(self, model: HfModel, key: bytes = KEY) -> None:
        self.model, self.key, self.heard = model, key, list[str]()
        self.port = 0
        self.begin()

    def begin(self) -> None:
        self.server = holding(self.model, self.key, ref="/models/tiny", say=self.heard.append)
        self.host, self.port = self.server.listen("127.0.0.1", self.port)
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.server.close()
        self.thread.join()

    def spec(self, **options: Any) -> ModelSpec:
        options = {"ref": "owner/tiny", "api_key_env": "HEAD_KEY"} | options
        return ModelSpec(name="A", backend="remote", base_url=f"{self.host}:{self.port}", **options)


@pytest.fixture
def served(models: dict[str, HfModel], monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("HEAD_KEY", KEY.decode())
    made = Served(models["A"])
    yield made
    made.end()


def test_a_head_is_used_with_its_key_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    RemoteModel(served.spec()).close()
    for wrong, words in (("not-the-key-at-all", "it refuses the key"), ("", "HEAD_KEY is not set")):
        monkeypatch.setenv("HEAD_KEY", wrong)
        with pytest.raises(LoadError, match=words):
            RemoteModel(served.spec())
    with pytest.raises(LoadError, match="it refuses the key"):
        RemoteModel(served.spec(api_key_env=None))
    assert not any(KEY.decode() in line for line in served.heard)


def test_a_head_that_does_not_know_the_key_is_not_trusted(models: dict[str, HfModel], served: Served) -> None:
    other = Served(models["A"], b"another-key-entirely")
    with pytest.raises(LoadError, match="refuses the key"):
        RemoteModel(other.spec())
    other.end()


@pytest.mark.parametrize("refused", ["other/name", "/models/tiny2"])
def test_another_model_than_the_flow_says_is_refused(served: Served, refused: str) -> None:
    with pytest.raises(LoadError, match="holds 'tiny', the flow says '" + refused.rpartition("/")[-1]):
        RemoteModel(served.spec(ref=refused))


def test_a_name_in_another_case_is_the_same_model(served: Served) -> None:
    RemoteModel(served.spec(ref="Owner/TINY")).close()
    same = ("ollama:Me/Qwen", "ollama:me/qwen:latest"), ("ollama:YI:6b", "ollama:yi:6B"), ("a\\B/c", "C/")
    assert [called(one) == called(other) for one, other in same] == [True] * 3
    assert called("ollama:yi:6b") != called("ollama:yi")


def test_nobody_there_is_told_with_the_cure(served: Served) -> None:
    spec = served.spec()
    served.end()
    with pytest.raises(LoadError, match=f"at 127.0.0.1:{served.port}: connection refused") as told:
        RemoteModel(spec)
    assert f"flowinfer head MODEL --listen 127.0.0.1:{served.port}" in str(told.value.help)


def test_what_is_no_head_is_told(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LoadError, match="a message of"):
            RemoteModel(ModelSpec(name="A", ref="tiny", backend="remote", base_url=f"127.0.0.1:{port}"))
        thread.join()


def framed(head: bytes, body: int = 0) -> bytes:
    return struct.pack("!II", len(head), body) + head


STRANGERS = {
    "nothing": b"",
    "a request of a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "endless": struct.pack("!II", 1 << 31, 0),
    "a body": framed(b"{}", 1 << 30),
    "no JSON": framed(b"\xff\xfe"),
    "no object": framed(b"[1]"),
    "deep": framed(b"[" * 2000),
    "no proof": framed(json.dumps({"nonce": "a"}).encode()),
    "a proof that is none": framed(json.dumps({"nonce": "a", "proof": "\u00e9" * 64}).encode()),
    "numbers": framed(json.dumps({"nonce": 1, "proof": 2}).encode()),
}


@pytest.mark.parametrize("bytes_", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_sent_away_and_others_go_on(served: Served, bytes_: bytes) -> None:
    with socket.create_connection((served.host, served.port)) as stranger:
        received = b""
        with suppress(OSError):  # it may be sent away before it has said all
            stranger.sendall(bytes_)
            stranger.shutdown(socket.SHUT_WR)
            while part := stranger.recv(1 << 16):
                received += part
    assert b"vocabulary" not in received
    RemoteModel(served.spec()).close()


QUESTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an unknown thing": {"ask": "shell"},
    "a row that is not there": {"ask": "work", "session": 1, "deeds": [{"do": "logits", "rows": [7]}]},
    "ids below zero": {"ask": "work", "session": 1, "deeds": [{"do": "add", "rows": [0], "prompts": [[-1]]}]},
    "ids that are not there": {"ask": "work", "session": 1, "deeds": [{"do": "add", "rows": [0], "prompts": [[9999]]}]},
    "an empty prompt": {"ask": "work", "session": 1, "deeds": [{"do": "add", "rows": [0], "prompts": [[]]}]},
    "two prompts for a row": {"ask": "work", "session": 1, "deeds": [{"do": "add", "rows": [0], "prompts": []}]},
    "an answer that is not kept": {"ask": "work", "session": 1, "deeds": [{"do": "fetch", "number": 3, "at": [0]}]},
    "one thing more": {"ask": "tokenizer", "path": "/etc/passwd"},
    "columns that are not there": {"ask": "work", "session": 1, "deeds": [{"do": "leave_out", "columns": [9999]}]},
    "more ids than it reads": {
        "ask": "work",
        "session": 1,
        "deeds": [{"do": "add", "rows": [0], "prompts": [[5] * 100_000]}],
    },
    "what was not begun": {
        "ask": "work",
        "session": 1,
        "deeds": [{"do": "add", "rows": [0], "prompts": [[5]]}, {"do": "logits", "rows": [0], "is_direct": True}],
    },
    "a group that it does not offer": {"ask": "direct"},
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_what_cannot_be_done_is_answered_and_the_connection_goes_on(served: Served, question: dict[str, Any]) -> None:
    model = RemoteModel(served.spec())
    assert model._wire is not None
    model._wire.send(question)
    answer, _ = model._wire.receive()
    assert answer["failed"] in ("asked", "model") and "Traceback" not in answer["why"]
    session = model.open()
    assert torch.isfinite(session.logits(session.add([[5, 6]]))).all()
    model.close()


@pytest.mark.parametrize("options", [{}, {"is_direct": True}], ids=["over it", "beside it"])
def test_rows_go_on_over_a_new_connection_where_one_is_cut(
    models: dict[str, HfModel], served: Served, options: dict[str, Any]
) -> None:
    """The connection breaks in the middle, twice; the texts are those of an unbroken run."""
    served.server.hold(Head(models["A"], "tiny", **options))
    plan = one_step(mix("A", "C"), max_tokens=8, topk="dense" if options else "auto")
    far, cuts = RemoteModel(served.spec()), [7, 7]
    assert far.is_direct == bool(options)
    ask = far._ask

    def cut(question: Any) -> Any:
        if cuts and question.ask == "work":
            cuts[0] -= 1
            if not cuts[0]:
                cuts.pop(0)
                for wire in list(served.server._wires):
                    wire.close()
        return ask(question)

    far._ask = cut  # type: ignore[method-assign]
    assert answers(plan, models | {"A": far}) == answers(plan, models)
    assert not cuts
    far.close()


def test_a_head_that_is_gone_ends_a_run_that_can_go_on(
    models: dict[str, HfModel], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.0)
    far = RemoteModel(served.spec())
    far.vocabulary()
    served.end()
    with pytest.raises(HeadLost, match=f"head 'A' at 127.0.0.1:{served.port} is lost: connection refused"):
        run(one_step(mix("A", "C"), max_tokens=8), models | {"A": far}, plans.QUESTIONS[:2])


def test_another_model_at_the_same_address_is_not_taken_for_the_first(
    models: dict[str, HfModel], served: Served
) -> None:
    far = RemoteModel(served.spec())
    served.end()
    served.model = models["C"]
    served.begin()
    with pytest.raises(HeadLost, match="it holds another model now"):
        far.prompt("hello")
    far.close()


def test_another_tokenizer_of_the_same_words_is_not_taken_for_the_first(served: Served) -> None:
    """Its prompts would read otherwise."""
    far = RemoteModel(served.spec())
    served.end()
    served.begin()
    assert served.server._head is not None
    served.server._head.about["tokenizer"] = "0" * 64
    with pytest.raises(HeadLost, match="it holds another model now"):
        far.prompt("hello")
    far.close()


def test_another_version_of_flowinfer_is_told_with_both_numbers(served: Served) -> None:
    same = RemoteModel(served.spec())
    assert served.server._head is not None
    served.server._head.about["version"] = "0.0.9"
    far = RemoteModel(served.spec())
    assert far.notes == (*same.notes, f"{far.where} runs flowinfer 0.0.9, this is {VERSION}")
    for one in (same, far):
        one.close()


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("gpu2:7070", ("gpu2", 7070)),
        ("10.0.0.7:1", ("10.0.0.7", 1)),
        ("[::1]:7070", ("::1", 7070)),
        *((wrong, None) for wrong in ("gpu2", "gpu2:", ":7070", "a:70707", "http://a:80", "::1:7070", "a b:1", "")),
    ],
)
def test_addresses(address: str, place: tuple[str, int] | None) -> None:
    assert parted(address) == place


@pytest.mark.parametrize(
    ("host", "words"), [("a" * 70, "is no name of a host"), ("a..b", "is no name of a host"), ("::1", "refused")]
)
def test_hosts_that_are_none_are_told(host: str, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    shown = shown_place(host, port)
    with pytest.raises(LoadError, match=words) as told:
        RemoteModel(ModelSpec(name="A", ref="tiny", backend="remote", base_url=shown))
    assert shown in told.value.message and parted(shown) == (host, port)


@pytest.mark.parametrize(
    ("value", "words"), [("schl\udcffssel-des-kopfes", "holds no key of a head"), ("", "is not set, or empty")]
)
def test_a_key_that_is_none_is_told_by_its_variables_name(
    served: Served, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv("HEAD_KEY", value)
    with pytest.raises(LoadError, match=f"the variable HEAD_KEY {words}"):
        RemoteModel(served.spec())


def test_another_version_of_the_protocol_is_told_by_both_numbers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as old:

        def answer() -> None:
            with old.accept()[0] as connection:
                Wire(connection).send({"flowinfer": 2, "nonce": "a"})

        thread = threading.Thread(target=answer)
        thread.start()
        spec = ModelSpec(name="A", ref="tiny", backend="remote", base_url=f"127.0.0.1:{old.getsockname()[1]}")
        with pytest.raises(LoadError, match=f"speaks version 2 of the protocol, this flowinfer {PROTOCOL}"):
            RemoteModel(spec)
        thread.join()


def test_a_client_that_is_gone_before_it_takes_what_goes_beside_is_nobody_elses_business(
    models: dict[str, HfModel], served: Served
) -> None:
    served.server.hold(Head(models["A"], "tiny", is_direct=True))
    one, other = RemoteModel(served.spec()), RemoteModel(served.spec())
    assert one._wire is not None and one.is_direct
    deeds = [asked.Add(rows=[0], prompts=[[5, 6]]), asked.Logits(rows=[0], is_direct=True)]
    one._wire.send(asked.Work(session=0, deeds=deeds).model_dump())
    one.close()
    for user in (other, RemoteModel(served.spec())):
        session = user.open()
        assert torch.isfinite(session.logits(session.add([[5, 6]]))).all()
        user.close()


def test_a_head_that_is_gone_before_it_sends_what_goes_beside_is_lost_at_once(
    models: dict[str, HfModel], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its member of the group stands still and is not closed: only the connection tells."""
    served.server.hold(Head(models["A"], "tiny", is_direct=True))
    far, is_over = RemoteModel(served.spec()), threading.Event()

    def dies(self: Direct, found: torch.Tensor) -> None:
        for connection in list(served.server._wires):
            connection.close()
        is_over.wait()

    monkeypatch.setattr(Direct, "send", dies)
    session = far.open()
    rows = session.add([[5, 6]])
    with pytest.raises(HeadCut, match=f"head 'A' at 127.0.0.1:{served.port}: the connection was closed"):
        session.logits(rows)
    is_over.set()
    far.close()


def test_a_client_that_is_gone_while_it_is_sent_what_goes_beside_is_let_go_at_once(
    models: dict[str, HfModel], served: Served
) -> None:
    """Its member of the group takes nothing and is not closed."""
    served.server.hold(Head(models["A"], "tiny", is_direct=True))
    far = RemoteModel(served.spec())
    assert far._wire is not None and far.is_direct
    deeds = [asked.Add(rows=[0], prompts=[[5, 6]]), asked.Verify(segments=[(0, [[7]] * 16)], is_direct=True)]
    far._wire.send(asked.Work(session=0, deeds=deeds).model_dump())
    far._wire.receive()
    far._wire.close()
    for thread in list(served.server._threads):
        thread.join()
    assert served.heard[-1].endswith("has gone: the connection was closed")
    far.close()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"", "something listens there and says nothing for 0.05 s: it is no head, or one that stands still"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "something listens there that does not speak as a head does: a message of",
        ),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "something listens there that does not speak as a head does: a message of"),
        (struct.pack("!II", 2, 0) + b"{}", "something listens there that does not speak as a head does"),
        (None, "something listens there that does not speak as a head does: the connection was closed"),
    ],
    ids=["nothing", "HTTP", "SSH", "JSON", "a tunnel to nowhere"],
)
def test_who_is_no_head_is_told_so(says: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if says == b"":
        monkeypatch.setattr(wire, "_PATIENCE_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as other:
        is_over = threading.Event()

        def answer() -> None:
            with other.accept()[0] as connection:
                if says is not None:
                    connection.sendall(says)
                    is_over.wait()

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(LoadError) as told:
            RemoteModel(ModelSpec(name="A", ref="tiny", backend="remote", base_url=address))
        is_over.set()
        thread.join()
    assert f"head 'A' at {address}: {words}" in told.value.message
    cure = (
        "name a head's port: " if says != b"" else "a head that stands still is ended and started again; where none is"
    )
    assert told.value.help is not None and told.value.help.startswith(cure)


def test_a_heads_port_that_is_taken_for_a_servers_is_told_so(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}"
    with (
        open_client(Server(url)) as user,
        pytest.raises(RunError, match=f"what listens at {url} does not speak HTTP") as told,
    ):
        remote.asked(user, "GET", "/v1/models")
    assert told.value.help == 'a head\'s port is the device="HOST:PORT" of a model'
    exchange = Exchange(f"{url}/v1", None)
    with pytest.raises(Broken, match="what answers there does not speak HTTP"):
        exchange.ask("models")
    exchange.close()


class Waiter(Observer):
    """Loads a head's model when somebody is told to wait for it."""

    def __init__(self, load: Callable[[], None]) -> None:
        self.told: list[str] = []
        self._load = load

    def notice(self, message: str) -> None:
        self.told.append(message)
        self._load()


def test_who_comes_while_the_model_is_loaded_waits_and_says_so(
    models: dict[str, HfModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEAD_KEY", KEY.decode())
    server = HeadServer(KEY)
    host, port = server.listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    flow = f'model A = "tiny" {{ device="{host}:{port}" api_key_env="HEAD_KEY" }}\nA'
    plan, waiter = ready(check(flow), this_machine()), Waiter(lambda: server.hold(Head(models["A"], "tiny")))
    monkeypatch.setenv("HEAD_KEY", "not-the-key-at-all")
    with pytest.raises(LoadError, match="it refuses the key"):
        ModelPool().get(plan, "A", waiter)
    monkeypatch.setenv("HEAD_KEY", KEY.decode())
    leaves = Waiter(lambda: setattr(leaves, "is_leaving", True))
    for problem in ("it is loading its model", "nobody waits for it"):  # a server that is stopped waits no more
        with pytest.raises(LoadError, match=problem):
            ModelPool().get(plan, "A", leaves)
    pool = ModelPool()
    assert isinstance(pool.get(plan, "A", waiter), RemoteModel)
    assert waiter.told == [f"head 'A' at {host}:{port}: it is loading its model: waiting for it"]
    pool.close()
    server.close()
    thread.join()
