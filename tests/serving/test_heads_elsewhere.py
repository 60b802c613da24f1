"""A served flow whose head is elsewhere, and what a client sees when that head goes and comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flowinfer.backends.base import TokenModel
from flowinfer.engine.base import Observer
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Plan
from flowinfer.remote import client
from flowinfer.remote.client import RemoteModel
from flowinfer.remote.server import HeadServer
from flowinfer.serving import service
from flowinfer.serving.flows import served
from flowinfer.serving.service import Service
from tests.remote.conftest import holding
from tests.serving.asgi import Reply, ask
from tests.serving.conftest import Serve, Served
from tests.serving.test_service import text_of

QUESTION = "3 + 4 = ?"


@pytest.fixture
def qwen(pool: ModelPool) -> TokenModel:
    model = pool.get(ready(check("Qwen", zoo="lab"), this_machine()), "Qwen", Observer())
    assert isinstance(model, TokenModel)
    return model


@pytest.fixture
def own() -> Iterator[ModelPool]:
    pool = ModelPool()
    yield pool
    pool.close()


def served_beside(serve: Serve, flow: str, port: int, models: ModelPool) -> Served:
    """Return a server of a flow over the head, as `far`, and of one of this process alone, as `near`."""
    return serve({"far": f'model Qwen = "qwen" {{ device="127.0.0.1:{port}" }}\n{flow}', "near": "Ds"}, models=models)


def begun(server: Served, name: str) -> Any:
    """Return the future of an answer."""
    body = {"model": name, "messages": [{"role": "user", "content": QUESTION}]}
    return asyncio.run_coroutine_threadsafe(ask(server.app, "POST", "/v1/chat/completions", body), server.loop)


def test_other_flows_go_on_while_a_lost_head_is_waited_for(
    serve: Serve, qwen: TokenModel, own: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 600.0)
    looked, connect = threading.Event(), RemoteModel._connect

    def noted(model: RemoteModel) -> Any:
        looked.set()
        return connect(model)

    with head(qwen) as port:
        server = served_beside(serve, "(Qwen | Ds)", port, own)
        first = text_of(server.chat("far", QUESTION))
    monkeypatch.setattr(RemoteModel, "_connect", noted)
    far = begun(server, "far")
    looked.wait()
    assert server.chat("near", QUESTION).status == 200 and not far.done()
    with head(qwen, port):
        reply: Reply = far.result()
        assert text_of(reply) == first


def test_other_flows_go_on_while_a_head_does_not_answer(serve: Serve, qwen: TokenModel, own: ModelPool) -> None:
    door = holding(qwen, ref="qwen")
    _, port = door.listen("127.0.0.1", 0)
    threading.Thread(target=door.serve, daemon=True).start()
    head = door._head
    assert head is not None
    asked, answer = threading.Event(), head.answer

    def noted(*arguments: Any) -> Any:
        asked.set()
        return answer(*arguments)

    server = served_beside(serve, "Qwen", port, own)
    first = text_of(server.chat("far", QUESTION))
    head.answer = noted  # type: ignore[method-assign]
    with head._turn:  # nobody is answered
        far = begun(server, "far")
        asked.wait()
        assert server.chat("near", QUESTION).status == 200 and not far.done()
    assert text_of(far.result()) == first
    door.close()


@contextmanager
def head(model: Any, port: int = 0) -> Iterator[int]:
    """Yield the port of a head; it is gone afterwards, and so are its connections."""
    server = holding(model, ref="qwen")
    _, port = server.listen("127.0.0.1", port)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield port
    server.close()
    thread.join()


def test_a_service_that_shares_its_models_waits_at_its_end_for_no_head_that_loads(own: ModelPool) -> None:
    door, waits = HeadServer(b""), threading.Event()
    host, port = door.listen("127.0.0.1", 0)
    accepting = threading.Thread(target=door.serve)
    accepting.start()
    flow = check(f'model Qwen = "qwen" {{ device="{host}:{port}" }}\nQwen')

    def hear(notice: str) -> None:
        if "waiting for it" in notice:
            waits.set()

    one = Service(*served({"far": flow}, this_machine()), lambda tell: tell(), models=own, on_notice=hear)
    one.start()
    waits.wait()
    one.close()
    assert not one._thread.is_alive()
    door.close()
    accepting.join()


def test_a_service_says_at_its_end_which_model_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_QUIET_SECONDS", 0.0)
    began, says, goes_on = threading.Event(), threading.Event(), threading.Event()

    class Slow(ModelPool):
        def get(self, plan: Plan, name: str, observer: Observer) -> Any:
            observer.model_loading(name, "cpu")
            began.set()
            goes_on.wait()
            return super().get(plan, name, observer)

    def hear(notice: str) -> None:
        if notice == "stopping as soon as Qwen is loaded":
            says.set()

    flow = check("Qwen -> Ds", zoo="lab")
    one = Service(*served({"one": flow}, this_machine()), lambda tell: tell(), models=Slow(), on_notice=hear)
    one.start()
    began.wait()
    closing = threading.Thread(target=one.close)
    closing.start()
    says.wait()
    goes_on.set()
    closing.join()
    assert one.loading.problem is None and not one.loading.loaded  # nor is any other loaded


def test_a_head_that_was_lost_answers_again_once_it_is_back(
    serve: Serve, qwen: TokenModel, own: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.0)
    with head(qwen) as port:
        server = served_beside(serve, "Qwen", port, own)
        first = text_of(server.chat("far", QUESTION))
    lost = server.chat("far", QUESTION)
    assert (lost.status, lost.data["error"]["code"]) == (500, "flow_failed")
    assert f"head 'Qwen' at 127.0.0.1:{port} is lost" in lost.data["error"]["message"]
    with head(qwen, port):
        assert text_of(server.chat("far", QUESTION)) == first


def test_a_given_text_is_read_by_a_head_elsewhere_as_here(serve: Serve, qwen: TokenModel, own: ModelPool) -> None:
    """`echo` with log probabilities, of a text that was written by nobody, and how it goes on."""
    with head(qwen) as port:
        far = f'model Qwen = "qwen" {{ device="127.0.0.1:{port}" }}\n(Qwen | Ds)'
        server = serve({"far": far, "near": "(Qwen | Ds)"}, models=own)
        asked = {"echo": True, "logprobs": 2, "max_tokens": 1}
        replies = [server.complete(flow, "3 + 4 = 7, so", **asked) for flow in ("far", "near")]
        assert [reply.status for reply in replies] == [200, 200], replies[0].data
        far_choice, near_choice = (reply.data["choices"][0] for reply in replies)
        assert len(near_choice["logprobs"]["tokens"]) > 3
        assert [far_choice[key] for key in ("text", "finish_reason")] == [
            near_choice[key] for key in ("text", "finish_reason")
        ]
        assert far_choice["logprobs"]["tokens"] == near_choice["logprobs"]["tokens"]
        for there, here in zip(*(one["logprobs"]["token_logprobs"] for one in (far_choice, near_choice)), strict=True):
            assert there == here if here is None else there == pytest.approx(here, abs=1e-4)
