"""The engine's thread and what a request's text must equal: alone, among others, and from exec."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Sequence
from typing import Any

import pytest

from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.results import Question
from flowinfer.runs.judging import majority
from tests.serving.asgi import ask, call
from tests.serving.conftest import FLOWS, SETS, Serve, Served

QUESTIONS = ("3 + 4 = ?", "小明有3个苹果,又买了15个,一共有几个?", "Which is larger, 7 or 12?", "2*x + 7 = 19")


def exec_text(pool: ModelPool, flow: str, question: str, *, text: str | None = None, **sets: Any) -> str:
    """Return what `exec --prompt` answers, to a flow or to another text of it."""
    overrides = SETS | {name: str(value) for name, value in sets.items()}
    plan = ready(check(text or FLOWS[flow], zoo="lab", overrides=overrides), this_machine())
    item = Question(id="prompt", question=question, reference="")
    (trace,) = execute(plan, [item], batch=1, models=pool, vote=majority)
    assert trace.error is None
    return trace.answer


def text_of(reply: Any) -> str:
    """Return the text of a whole chat answer."""
    assert reply.status == 200, reply.body
    text: str = reply.data["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("flow", ["one", "pi", "s2p", "vote", "drawn"])
def test_a_flow_answers_over_the_server_what_exec_answers(server: Served, pool: ModelPool, flow: str) -> None:
    for question in QUESTIONS[:2]:
        assert text_of(server.chat(flow, question)) == exec_text(pool, flow, question)


def test_a_stream_of_a_flow_that_skips_steps_tells_its_whole_answer(serve: Serve) -> None:
    """Steps that never run were waited for, and the text was told of no stream."""
    server = serve(
        {"first": "(Qwen / Ds)[accept=confidence, at=0]", "then": "(Qwen / Ds)[accept=confidence, at=0] -> Yi"}
    )
    for flow in ("first", "then"):
        deltas = [event["choices"][0]["delta"] for event in server.chat(flow, QUESTIONS[0], stream=True).events[:-1]]
        told = "".join(delta.get("content") or "" for delta in deltas)
        assert told == text_of(server.chat(flow, QUESTIONS[0])) != ""
    assert sum(bool(delta.get("content")) for delta in deltas) > 1, "the last stage's text comes as it is written"


def test_a_question_without_choices_is_the_clients_mistake_where_a_flow_chooses(serve: Serve) -> None:
    server = serve({"chooses": "Qwen[by=likelihood]", "falls": "(Qwen / Ds[by=likelihood])[accept=confidence, at=1]"})
    for stream in (False, True):
        reply = server.chat("chooses", QUESTIONS[0], stream=stream)
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "no_choices", "messages")
    assert server.complete("chooses", [QUESTIONS[0]]).error["param"] == "prompt"
    reply = server.chat("falls", QUESTIONS[0])
    assert (reply.status, reply.error["code"]) == (400, "no_choices")


@pytest.mark.parametrize("flow", ["pi", "vote"])
def test_options_of_a_request_are_those_of_the_flow_set_otherwise(server: Served, pool: ModelPool, flow: str) -> None:
    options = {"temperature": 0.8, "top_p": 0.95, "seed": 11, "max_tokens": 9}
    assert text_of(server.chat(flow, QUESTIONS[0], **options)) == exec_text(pool, flow, QUESTIONS[0], **options)


def wishes(count: int) -> list[dict[str, Any]]:
    """Return so many requests, each with options of its own."""
    flows = ("one", "pi", "s2p", "drawn")
    return [
        {
            "model": flows[number % 4],
            "messages": [{"role": "user", "content": QUESTIONS[number % 3] + f" ({number})"}],
            "temperature": (0, 0.7, 1.3)[number % 3],
            "top_p": (1, 0.8)[number % 2],
            "seed": number,
            "max_tokens": 4 + number % 9,
            **({"stop": ["1", "\n"]} if number % 5 == 0 else {}),
        }
        for number in range(count)
    ]


async def all_at_once(server: Served, bodies: Sequence[dict[str, Any]]) -> list[str]:
    replies = await asyncio.gather(*(ask(server.app, "POST", "/v1/chat/completions", body) for body in bodies))
    return [text_of(reply) for reply in replies]


@pytest.mark.parametrize("count", [12, pytest.param(64, marks=pytest.mark.slow)])
def test_texts_of_requests_at_once_are_those_of_one_at_a_time(server: Served, count: int) -> None:
    bodies = wishes(count)
    together = server.run(all_at_once(server, bodies))
    assert together == [text_of(server.ask("POST", "/v1/chat/completions", body)) for body in bodies]
    assert len(set(together)) > count // 2


@pytest.mark.slow
def test_texts_of_requests_at_once_are_those_of_exec(server: Served, pool: ModelPool) -> None:
    """With all options of each: those of the answering step are written into the flow's text."""
    bodies = wishes(64)
    together = server.run(all_at_once(server, bodies))
    for body, text in zip(bodies, together, strict=True):
        written = f"{FLOWS[body['model']]}[max_tokens={body['max_tokens']}, stop={json.dumps(body.get('stop', []))}]"
        written = written.replace("Ds[temperature=0.9, top_p=0.9, seed=3]", "Ds")  # a request's count for all steps
        chosen = {name: body[name] for name in ("temperature", "top_p", "seed")}
        assert text == exec_text(pool, body["model"], body["messages"][0]["content"], text=written, **chosen)


def test_rows_of_clients_that_go_away_end_and_change_nobodys_text(server: Served) -> None:
    bodies = wishes(8)
    alone = [text_of(server.ask("POST", "/v1/chat/completions", body)) for body in bodies]

    async def with_deserters() -> list[str]:
        long = {"model": "pi", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 900}
        calls = [call(server.app, "POST", "/v1/chat/completions", long | {"stream": n % 2 == 0}) for n in range(4)]
        tasks = [one.start() for one in calls]
        answers = asyncio.create_task(all_at_once(server, bodies))
        await calls[0].sent.get()  # it has begun
        for one in calls:
            one.gone.set()
        texts = await answers
        await asyncio.gather(*tasks)
        await server.is_idle()
        return texts

    assert server.run(with_deserters()) == alone


@pytest.mark.slow
def test_requests_leave_nothing_behind(server: Served) -> None:
    """Not one object each, whole or streamed, answered or refused."""

    def num_objects(count: int) -> int:
        for number in range(count):
            body = {"model": "pi", "messages": [{"role": "user", "content": f"{number % 3} + 4 = ?"}], "max_tokens": 2}
            for more in ({}, {"stream": True}, {"logprobs": True}, {"n": 2}):
                server.ask("POST", "/v1/chat/completions", body | more)
        server.run(server.is_idle())
        gc.collect()
        return len(gc.get_objects())

    num_objects(3)
    before = num_objects(3)
    assert num_objects(12) - before < 12


@pytest.mark.parametrize("streams", [False, True])
def test_a_row_ends_within_eight_steps_of_its_client(server: Served, streams: bool) -> None:
    """The tokens written until nothing is under way are counted by the engine itself."""
    service = server.desk.service
    counted: list[int] = []
    plainly = service._ears.tokens_emitted

    def count(tokens: int) -> None:
        counted.append(tokens)
        plainly(tokens)

    async def leave() -> int:
        body = {"model": "one", "messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 900}
        one = call(server.app, "POST", "/v1/chat/completions", body | {"stream": streams})
        task = one.start()
        while len(counted) < 3:
            await asyncio.sleep(0.001)
        one.gone.set()
        await task
        before = len(counted)
        await server.is_idle()
        return len(counted) - before

    service._ears.tokens_emitted = count  # type: ignore[method-assign]  # a hook of the test's
    try:
        assert server.run(leave()) <= 8
    finally:
        service._ears.tokens_emitted = plainly  # type: ignore[method-assign]


def test_a_step_that_breaks_fails_its_questions_and_the_next_ones_are_answered(server: Served) -> None:
    right = text_of(server.chat("one", QUESTIONS[0]))
    loop = server.desk.service._scheduler._loops[next(iter(server.desk.service._scheduler._first))]
    turn = loop.turn
    faults = iter([ZeroDivisionError("a fault of the test's")])

    def broken() -> Any:
        for fault in faults:
            raise fault
        return turn()

    loop.turn = broken  # type: ignore[method-assign]
    try:
        failed = server.chat("one", QUESTIONS[0])
        assert failed.status == 500
        assert failed.error["message"] == "ZeroDivisionError: a fault of the test's"
        assert text_of(server.chat("one", QUESTIONS[0])) == right
    finally:
        loop.turn = turn  # type: ignore[method-assign]


def test_flows_share_models_and_loops(server: Served) -> None:
    service = server.desk.service
    assert set(service.loading.loaded) <= {"Qwen", "Ds", "Yi"}
    assert len(service._scheduler._loops) < len(service._steps)


def test_a_service_that_is_closed_tells_those_who_wait(serve: Serve) -> None:
    server = serve({"one": "Qwen"})

    async def close() -> tuple[int, str]:
        body = {"model": "one", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 900}
        one = asyncio.create_task(ask(server.app, "POST", "/v1/chat/completions", body | {"temperature": 2}))
        while not server.desk.service.under_way:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(server.desk.service.close)
        reply = await one
        return reply.status, reply.error["message"]

    assert server.run(close()) == (503, "the server was stopped")
    assert server.chat("one", "3 + 4 = ?").status == 503
