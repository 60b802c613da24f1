"""Clients that send rubbish, stop, break off, or do not read: never a 500, nothing stuck, no other text changed."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.serving import answers
from flowinfer.serving.bodies import ChatBody, CompletionBody
from tests.serving.asgi import ask, call
from tests.serving.conftest import Serve, Served

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = [*ChatBody.model_fields, *CompletionBody.model_fields, "n", "tools", "response_format", "user", "x"]
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "", None, 3])
MESSAGES = st.lists(
    JSON | st.fixed_dictionaries({"role": ROLES, "content": JSON | st.text(max_size=20)}), min_size=1, max_size=3
)
NUMBERS = st.integers(-3, 40) | st.floats(0, 3) | st.none() | st.booleans() | st.sampled_from([2**31, 2**64, 1e300])


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Bodies that are nearly right."""
    body: dict[str, Any] = {
        "model": draw(st.sampled_from(["one", "pi", "nobody", 5])),
        "max_tokens": draw(st.integers(1, 3)),
        "messages": draw(MESSAGES),
        "prompt": draw(JSON | st.lists(st.text(max_size=9), max_size=3)),
    }
    body |= draw(st.dictionaries(st.sampled_from(NAMES), JSON | NUMBERS, max_size=3))
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)):
        body.pop(name, None)
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 3:
        body["max_tokens"] = 3
    return body


@given(body=bodies(), path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
@settings(max_examples=150)
def test_no_json_is_a_fault_of_the_server(server: Served, body: dict[str, Any], path: str) -> None:
    body.pop("prompt" if path.endswith("chat/completions") else "messages", None)
    reply = server.ask("POST", path, body)
    assert reply.status in (200, 400, 404)
    if reply.status != 200:
        assert reply.error["message"]


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema of ours allows."""
    if "anyOf" in schema:
        return st.one_of([of_schema(one) for one in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)
    match schema.get("type"):
        case "object":
            known, needed = schema.get("properties", {}), schema.get("required", ())
            fields = {name: of_schema(one) for name, one in known.items()}
            wanted = {name: one for name, one in fields.items() if name in needed}
            return st.fixed_dictionaries(wanted, optional={n: one for n, one in fields.items() if n not in wanted})
        case "array":
            return st.lists(of_schema(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=3)
        case "string":
            return st.text(max_size=20)
        case "integer":
            return st.integers(low, min(high, low + 40) if "minimum" in schema else high)
        case "number":
            return st.floats(low, high)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return JSON


@pytest.mark.slow
@given(data=st.data(), name=st.sampled_from(["ChatBody", "CompletionBody", "TraceBody"]))
@settings(max_examples=300)
def test_what_the_description_allows_is_answered_or_refused_with_a_reason(
    server: Served, data: st.DataObject, name: str
) -> None:
    described = server.ask("GET", "/openapi.json").data["components"]["schemas"][name]
    paths = {"ChatBody": "/v1/chat/completions", "CompletionBody": "/v1/completions", "TraceBody": "/flowinfer/traces"}
    body = data.draw(of_schema(resolved(described, described.get("$defs", {}))))
    for limit in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(limit), int):
            body[limit] = min(body[limit], 3)
    body.setdefault("max_tokens", 3) if name != "TraceBody" else None
    reply = server.ask("POST", paths[name], body)
    assert reply.status in (200, 400, 404, 409), reply.body
    if reply.status != 200:
        assert reply.error["message"]
        assert reply.error["code"] != "unknown_parameter", reply.error


def resolved(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema with what it refers to in place."""
    if isinstance(schema, list):
        return [resolved(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: resolved(value, definitions) for key, value in schema.items() if key != "$defs"}


@given(raw=st.binary(max_size=60), path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
@settings(max_examples=60)
def test_no_bytes_are_a_fault_of_the_server(server: Served, raw: bytes, path: str) -> None:
    assert server.ask("POST", path, raw).status == 400


@given(path=st.text(max_size=30), method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT"]))
@settings(max_examples=60)
def test_no_address_is_a_fault_of_the_server(server: Served, path: str, method: str) -> None:
    encoded = "/" + path.replace("?", "").encode("utf-8", "replace").decode()
    assert server.ask(method, encoded).status < 500


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 5, 40])
def test_a_client_that_breaks_off_at_any_moment_leaves_nothing(server: Served, streams: bool, turns: int) -> None:
    body = {"model": "s2p", "messages": [{"role": "user", "content": "Count."}], "stream": streams, "temperature": 2}

    async def leave() -> None:
        one = call(server.app, "POST", "/v1/chat/completions", body | {"max_tokens": 600})
        task = one.start()
        for _ in range(turns):
            await asyncio.sleep(0.002)
        one.gone.set()
        await task
        await server.is_idle()

    server.run(leave())
    assert server.chat("one", "3 + 4 = ?", max_tokens=2).status == 200


def test_a_client_that_breaks_off_in_its_body_is_nothing(server: Served) -> None:
    async def leave() -> list[Any]:
        one = call(server.app, "POST", "/v1/chat/completions", b'{"model": "o', is_whole=False)
        task = one.start()
        one.gone.set()
        await task
        return [message async for message in one.messages()]

    sent = server.run(leave())
    assert [message.get("status") for message in sent] in ([], [499, None])


def test_a_client_that_does_not_read_holds_up_nobody(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows go on; it is given up once it has taken longer than a client may."""
    monkeypatch.setattr(answers, "_READER_SECONDS", 0.2)
    body = {"model": "one", "messages": [{"role": "user", "content": "Count."}], "stream": True, "max_tokens": 60}

    async def starve() -> int:
        one = call(server.app, "POST", "/v1/chat/completions", body)
        task = one.start()
        await one.sent.get()
        one.reads.clear()
        other = await ask(server.app, "POST", "/v1/chat/completions", body | {"stream": False, "max_tokens": 4})
        await task
        await server.is_idle()
        return other.status

    assert server.run(starve()) == 200


def test_a_question_that_waits_can_be_taken_back(serve: Serve) -> None:
    """More than the engine takes at once."""
    server = serve({"one": "Qwen"})
    body = {"model": "one", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 200, "temperature": 2}

    async def leave() -> int:
        calls = [call(server.app, "POST", "/v1/chat/completions", body) for _ in range(80)]
        tasks = [one.start() for one in calls]
        while not server.desk.service.num_waiting:
            await asyncio.sleep(0.001)
        waiting = server.desk.service.num_waiting
        for one in reversed(calls):
            one.gone.set()
        await asyncio.gather(*tasks)
        await server.is_idle()
        return waiting

    assert server.run(leave()) > 0
    assert server.chat("one", "3 + 4 = ?", max_tokens=2).status == 200


def test_each_flow_gets_its_share(serve: Serve) -> None:
    """A flow that is asked once is answered before another that is asked a hundred times has had all its answers."""
    server = serve({"much": "Qwen", "little": "(Ds | Yi)"})

    async def both() -> list[str]:
        order: list[str] = []

        async def one(model: str, number: int) -> None:
            body = {"model": model, "messages": [{"role": "user", "content": f"Count {number}."}], "max_tokens": 16}
            assert (await ask(server.app, "POST", "/v1/chat/completions", body | {"temperature": 2})).status == 200
            order.append(model)

        much = [asyncio.create_task(one("much", number)) for number in range(100)]
        while not server.desk.service.under_way:
            await asyncio.sleep(0.001)
        await one("little", 0)
        await asyncio.gather(*much)
        return order

    order = server.run(both())
    assert order.index("little") < 99


@pytest.mark.slow
def test_clients_that_come_stop_break_off_and_send_rubbish_leave_nothing_behind(server: Served) -> None:
    """Four hundred of them, at random; then texts are what they were and nothing is under way."""
    rng = random.Random(5)
    plain = {"model": "pi", "messages": [{"role": "user", "content": "3 + 4 = ?"}], "max_tokens": 12}
    before = server.ask("POST", "/v1/chat/completions", plain).data["choices"]

    async def client(number: int) -> None:
        await asyncio.sleep(rng.random() * 4)
        kind = rng.choice(["whole", "stream", "leave", "rubbish", "half"])
        body: Any = plain | {"model": rng.choice(["one", "pi", "s2p", "vote"]), "stream": kind == "stream"}
        if kind == "rubbish":
            body = json.dumps(body).encode()[: rng.randrange(60)]
        one = call(server.app, "POST", "/v1/chat/completions", body, is_whole=kind != "half")
        task = one.start()
        if kind in ("leave", "half"):
            await asyncio.sleep(rng.random() * 0.3)
            one.gone.set()
        await task

    async def soak() -> None:
        await asyncio.gather(*(client(number) for number in range(400)))
        await server.is_idle()

    server.run(soak())
    assert server.ask("POST", "/v1/chat/completions", plain).data["choices"] == before
    assert server.desk._questions == server.desk._tokens == 0
