"""Flows whose stages are endpoints: their streams are passed on as they come, and broken off with the request."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from flowinfer.engine.models import ModelPool
from tests.endpoint import DONE, Stub, event, said, stub
from tests.serving.asgi import Call, call, events_of
from tests.serving.conftest import Serve, Served

__all__ = ["stub"]


def serving(stub: Stub, serve: Serve, tmp_path: Path, flow: str = "Far", more: str = "") -> Served:
    zoo = tmp_path / "zoo.toml"
    zoo.write_text(f'[models.Far]\nref = "far"\nbackend = "openai"\nbase_url = "{stub.url}"\n{more}')
    return serve({"far": flow}, models=ModelPool(), zoo=str(zoo))


async def begun(server: Served, wanted: str) -> Call:
    """Ask for a stream and read it until a text is in it."""
    body = {"model": "far", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    made = call(server.app, "POST", "/v1/chat/completions", body)
    task = made.start()
    assert task is not None
    told = ""
    while wanted not in told:
        message: Any = await made.sent.get()
        told += message.get("body", b"").decode()
    return made


async def rest(made: Call) -> str:
    return "".join([message.get("body", b"").decode() async for message in made.messages()])


def test_pieces_of_an_endpoints_stream_are_passed_on_as_they_come(stub: Stub, serve: Serve, tmp_path: Path) -> None:
    server = serving(stub, serve, tmp_path)
    stub.may_end.clear()
    stub.replies = [(200, [event("The first piece. "), event("The second.", finish_reason="stop")])]
    made = server.run(begun(server, "The first"))
    stub.may_end.set()
    events = events_of(server.run(rest(made)))
    assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == "stop"


def test_who_hangs_up_ends_the_request_to_the_endpoint(stub: Stub, serve: Serve, tmp_path: Path) -> None:
    server = serving(stub, serve, tmp_path)
    stub.may_end.clear()
    stub.replies = [(200, [event("The first piece. ")])]
    made = server.run(begun(server, "The first"))
    server.loop.call_soon_threadsafe(made.gone.set)
    assert stub.broken_off.wait(30)
    server.run(server.is_idle())
    stub.may_end.set()


@pytest.mark.parametrize(("option", "thought", "text"), [("", "A? no", "B"), ('think = "keep"\n', None, None)])
def test_a_thought_is_told_as_one_unless_it_is_kept_as_text(
    stub: Stub, serve: Serve, tmp_path: Path, option: str, thought: str | None, text: str | None
) -> None:
    server = serving(stub, serve, tmp_path, more=option)
    stub.replies = [(200, [event(delta={"reasoning_content": "A? no"}), event("B"), event(finish_reason="stop"), DONE])]
    chunks = server.chat("far", "hi", stream=True).events[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    told = "".join(delta.get("content") or "" for delta in deltas)
    assert told == (text or "<think>\nA? no\n</think>\n\nB")
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas).strip() == (thought or "")


def test_earlier_stages_at_endpoints_are_told_as_thoughts(stub: Stub, serve: Serve, tmp_path: Path) -> None:
    server = serving(stub, serve, tmp_path, "Far -> Far")
    stub.replies = [
        (200, [event("draft"), event(finish_reason="stop"), DONE]),
        (200, [event("final"), event(finish_reason="stop"), DONE]),
    ]
    chunks = server.chat("far", "hi", stream=True).events[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "final"
    assert "draft" in "".join(delta.get("reasoning_content") or "" for delta in deltas)


def test_filtered_answers_and_tokens_read_are_told_in_openais_words(stub: Stub, serve: Serve, tmp_path: Path) -> None:
    server = serving(stub, serve, tmp_path, more="output_cost = 1000000\n")
    status, body = said("x", reason="content_filter", tokens=2)
    assert isinstance(body, str)
    stub.replies = [(status, body.replace('"completion_tokens"', '"prompt_tokens": 40, "completion_tokens"'))]
    data = server.chat("far", "hi").data
    assert data["choices"][0]["finish_reason"] == "content_filter"
    assert (data["usage"]["prompt_tokens"], data["usage"]["completion_tokens"]) == (40, 2)
    assert data["usage"]["flowinfer"]["steps"][0]["cost"] == 2.0


def test_a_stream_that_breaks_off_is_an_error_of_the_stream(stub: Stub, serve: Serve, tmp_path: Path) -> None:
    server = serving(stub, serve, tmp_path)
    stub.replies = [(200, [event("The first piece. ")])]
    last = server.chat("far", "hi", stream=True).events[-1]
    assert "the endpoint's stream broke off after" in last["error"]["message"]


def test_an_endpoint_that_cannot_be_reached_is_not_told_to_be_loading(serve: Serve, tmp_path: Path) -> None:
    with socket.socket() as closed:  # nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        zoo = tmp_path / "zoo.toml"
        zoo.write_text(f'[models.Far]\nref = "far"\nbackend = "openai"\nbase_url = "{url}"\n')
        server = serve({"far": "Far"}, models=ModelPool(), zoo=str(zoo), loads_at_once=False)
        assert server.chat("far", "hi").status == 500
        told = server.ask("GET", "/ready").data
    assert (told["loading"], told["models"]["Far"]["state"], told["waiting_for"]) == (None, "waiting", [])
