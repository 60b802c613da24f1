"""Every row of what the server promises OpenAI's clients, with the public bug behind it where there was one."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.serving import answers
from flowinfer.serving.desk import Limits
from flowinfer.serving.flows import served
from tests.engine.plans import Ready
from tests.routed import PLAIN, table, write
from tests.serving.asgi import Reply, ask, call
from tests.serving.conftest import FLOWS, Serve, Served

ASK = [{"role": "user", "content": "3 + 4 = ?"}]
KEY = "a-key-of-the-tests"


def body(**changes: Any) -> dict[str, Any]:
    """Return a request's body; `None` takes a field out."""
    whole = {"model": "s2p", "messages": ASK, "max_tokens": 8} | changes
    return {name: value for name, value in whole.items() if value != "absent"}


def chat(server: Served, **changes: Any) -> Reply:
    return server.ask("POST", "/v1/chat/completions", body(**changes))


def streamed(server: Served, **changes: Any) -> list[Any]:
    reply = chat(server, stream=True, **changes)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    return reply.events


def text_of(events: list[Any], name: str = "content") -> str:
    deltas = [choice["delta"] for event in events[:-1] for choice in event["choices"]]
    return "".join(delta.get(name) or "" for delta in deltas)


def test_a_whole_answer_has_openais_form(server: Served) -> None:
    reply = chat(server)
    (choice,) = reply.data["choices"]
    assert reply.data["id"].startswith("chatcmpl-")
    assert reply.data["object"] == "chat.completion"
    assert reply.data["model"] == "s2p"
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["logprobs"] is None


def test_models_are_listed_with_what_is_known_of_their_flows(server: Served) -> None:
    listed = server.ask("GET", "/v1/models").data
    assert [one["id"] for one in listed["data"]] == list(FLOWS)
    assert listed["object"] == "list"
    one = server.ask("GET", "/v1/models/s2p").data
    assert one in listed["data"]
    assert one["flowinfer"]["flow"] == "Yi -> (Qwen | Ds)"
    assert one["flowinfer"]["heads"] == ["Yi", "Qwen", "Ds"]
    assert one["flowinfer"]["context_length"] == 1024
    assert "seed" in one["flowinfer"]["supported_parameters"]
    told = {
        name
        for name in FLOWS
        if "logprobs" in server.ask("GET", f"/v1/models/{name}").data["flowinfer"]["supported_parameters"]
    }
    assert told == FLOWS.keys() - {"vote"}


@pytest.mark.parametrize("path", ["/v1/models/s2q", "/v1/chat/completions"])
def test_an_unknown_model_is_a_404_with_the_nearest_name(server: Served, path: str) -> None:
    reply = server.ask("GET", path) if path.endswith("q") else chat(server, model="s2q")
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"
    assert reply.error["message"] == "the model 's2q' does not exist; did you mean 's2p'?"


@pytest.mark.parametrize(
    "content", ["3 + 4 = ?", [{"type": "text", "text": "3 + 4 = ?"}]], ids=["a text", "a list of text parts"]
)
def test_content_is_a_text_or_a_list_of_text_parts(server: Served, content: Any) -> None:
    reply = chat(server, messages=[{"role": "user", "content": content}])
    assert reply.data["choices"][0]["message"]["content"] == chat(server).data["choices"][0]["message"]["content"]


def test_system_and_history_fill_the_fields_that_templates_have_for_them(server: Served) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        *ASK,
    ]
    heard: list[Any] = []
    service = server.desk.service
    finished = service._ears.finished
    service._ears.finished = lambda question, result: heard.append(result) or finished(question, result)  # type: ignore
    try:
        chat(server, model="shown", messages=said)
        chat(server, model="one", messages=said)
    finally:
        service._ears.finished = finished  # type: ignore[method-assign]
    shown, turned = (next(iter(result.prompts.values())) for result in heard)
    assert "Be brief.|user: Hello\n\nassistant: Hi.|3 + 4 = ?" in shown
    assert shown.count("Be brief.") == 1
    places = [turned.index(text) for text in ("Be brief.", "Hello", "Hi.", "3 + 4 = ?")]
    assert places == sorted(places)


def test_messages_are_handed_through_as_they_are_where_a_flow_has_no_words(serve: Serve) -> None:
    """By the chat template, turn by turn; elsewhere turns of one role are joined."""
    server = serve({"bare": "defaults { prompts=none }\nQwen"}, sets={"max_tokens": "4"})
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
        {"role": "system", "content": "Be long."},
        *ASK,
    ]
    heard: list[Any] = []
    server.desk.service._ears.finished = lambda question, result: heard.append(result)  # type: ignore[method-assign]
    assert chat(server, model="bare", messages=said).status == 200
    (prompt,) = heard[0].prompts.values()
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in said)
    assert prompt == turns + "<|im_start|>assistant\n"
    last = [{"role": "user", "content": "One."}, {"role": "system", "content": "Two."}]
    assert chat(server, model="bare", messages=last).error["message"] == "the last message must be the user's"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_max_tokens_count_for_the_last_step_only(server: Served, name: str) -> None:
    reply = chat(server, **{"max_tokens": None, name: 3})
    first, last = reply.data["usage"]["flowinfer"]["steps"]
    assert last["completion_tokens"] == 3 * 2
    assert first["completion_tokens"] > 3
    assert reply.data["choices"][0]["finish_reason"] == "length"


def test_null_stands_for_what_is_not_given(server: Served) -> None:
    """llama.cpp 13700, BetterChatGPT 248."""
    names = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream", "n", "logprobs")
    absent = chat(server, max_tokens="absent").data["choices"]
    assert chat(server, **dict.fromkeys(names)).data["choices"] == absent


@pytest.mark.parametrize("stop", ["=", ["=", "never"]], ids=["a text", "a list"])
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(server: Served, stop: Any) -> None:
    whole = chat(server, model="one", max_tokens=24).data["choices"][0]["message"]["content"]
    assert "=" in whole
    choice = chat(server, model="one", max_tokens=24, stop=stop).data["choices"][0]
    assert choice["message"]["content"] == whole.partition("=")[0]
    assert choice["finish_reason"] == "stop"
    assert text_of(streamed(server, model="one", max_tokens=24, stop=stop)) == whole.partition("=")[0]


def test_a_seed_gives_one_text_and_another_seed_another(server: Served) -> None:
    texts = [
        chat(server, model="pi", temperature=1.5, seed=seed, max_tokens=20).data["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


REFUSED = [
    ("n", 2),
    ("n", True),
    ("logit_bias", {"50256": -100}),
    ("presence_penalty", 0.5),
    ("frequency_penalty", -1),
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice", "required"),
    ("functions", [{"name": "f"}]),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("response_format", {"type": "json_object"}),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
    ("reasoning_effort", "high"),
    ("store", True),
    ("top_k", 40),
    ("min_p", 0.1),
    ("repetition_penalty", 1.1),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_not_served_is_refused_by_name(server: Served, name: str, value: Any) -> None:
    reply = chat(server, **{name: value})
    assert reply.status == 400
    assert reply.error == {
        "message": f"'{name}' is not supported",
        "type": "invalid_request_error",
        "param": name,
        "code": "unsupported_parameter",
    }


NEUTRAL = {
    **{"n": 1, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "tools": [], "tool_choice": "none"},
    **{
        "response_format": {"type": "text"},
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    },
    **{"top_k": -1, "repetition_penalty": 1.0, "modalities": ["text"], "parallel_tool_calls": True},
}


def test_what_asks_for_nothing_changes_nothing(server: Served) -> None:
    assert chat(server, **NEUTRAL).data["choices"] == chat(server).data["choices"]


WRONG = [
    ({"temperature": -0.1}, "temperature", "'temperature': input should be greater than or equal to 0"),
    ({"temperature": "hot"}, "temperature", "'temperature': input should be a valid number"),
    ({"temperature": 3}, "temperature", "'temperature': input should be less than or equal to 2"),
    ({"top_p": 1.1}, "top_p", "'top_p': input should be less than or equal to 1"),
    ({"max_tokens": 0}, "max_tokens", "'max_tokens': input should be greater than or equal to 1"),
    ({"max_tokens": 3.5}, "max_tokens", "'max_tokens': input should be a valid integer"),
    ({"max_tokens": "8"}, "max_tokens", "'max_tokens': input should be a valid integer"),
    ({"seed": 2**70}, "seed", None),
    ({"stop": 5}, "stop", None),
    ({"stop": ["a", None]}, "stop", None),
    ({"stream": "yes"}, "stream", "'stream': input should be a valid boolean"),
    ({"stream_options": {"usage": True}}, "stream_options.usage", None),
    ({"model": 5}, "model", "'model': input should be a valid string"),
    ({"model": "absent"}, "model", "'model' is missing"),
    ({"messages": "absent"}, "messages", "'messages' is missing"),
    ({"messages": []}, "messages", None),
    ({"messages": "hello"}, "messages", "'messages': input should be a valid list"),
    ({"messages": ["hello"]}, "messages[0]", "messages[0] must be an object with role and content"),
    ({"messages": [{"role": "user", "content": "  "}]}, "messages", "the question is empty"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", None),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", None),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", None),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages", "the last message must be the user's"),
    ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, "messages", "the last message must be the user's"),
    ({"messages": [*ASK, {"role": "tool", "content": "x"}]}, "messages[1]", "messages[1]: tools are not supported"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
        "messages[0].content[0]: parts of type 'image_url' are not supported, only text",
    ),
    (
        {"top_logprobs": 21, "logprobs": True},
        "top_logprobs",
        "'top_logprobs': input should be less than or equal to 20",
    ),
    ({"top_logprobs": 3}, "top_logprobs", "'top_logprobs' is given without 'logprobs'"),
    ({"max_token": 5}, "max_token", "unknown parameter 'max_token'; did you mean 'max_tokens'?"),
]


@pytest.mark.parametrize(("changes", "param", "message"), WRONG)
def test_what_is_wrong_is_a_400_that_names_it(
    server: Served, changes: dict[str, Any], param: str, message: str | None
) -> None:
    reply = chat(server, **changes)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param
    assert message is None or reply.error["message"] == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"[1]", "the body must be a JSON object"),
        (b'{"temperature": NaN}', "NaN is no JSON number"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"a":' + b"[" * 100_000, "the body is nested too deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "the body is not JSON"),
    ],
    ids=["empty", "cut off", "a list", "NaN", "no UTF-8", "deep", "a long number"],
)
def test_a_body_that_is_no_json_object_is_a_400(server: Served, raw: bytes, message: str) -> None:
    reply = server.ask("POST", "/v1/chat/completions", raw)
    assert reply.status == 400
    assert message in reply.error["message"]


def test_a_stream_has_openais_form(server: Served) -> None:
    """openai-workflow 38, TensorRT-Edge-LLM 93."""
    events = streamed(server)
    *chunks, done = events
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("flow", ["one", "pi", "s2p", "vote"])
def test_pieces_of_a_stream_join_to_the_whole_answer(server: Served, flow: str) -> None:
    whole = chat(server, model=flow, max_tokens=20).data["choices"][0]["message"]
    events = streamed(server, model=flow, max_tokens=20)
    assert text_of(events) == whole["content"]
    assert text_of(events, "reasoning_content").strip("\n") == whole.get("reasoning_content", "")


def test_what_earlier_stages_wrote_is_reasoning(server: Served) -> None:
    message = chat(server).data["choices"][0]["message"]
    assert message["reasoning_content"].startswith("[Yi]\n")
    assert "reasoning_content" not in chat(server, model="one").data["choices"][0]["message"]
    voted = chat(server, model="vote").data["choices"][0]["message"]["reasoning_content"]
    assert [line for line in voted.split("\n") if line in ("[Qwen]", "[Ds]", "[Yi]")] == ["[Qwen]", "[Ds]", "[Yi]"]


def routed(serve: Serve, folder: Path, right: str) -> Served:
    """Return a server of routes between Qwen and `Ds -> Yi`, which is picked where it is right."""
    flows, before = ["Qwen", "Ds -> Yi"], 'defaults { prompts="plain", max_tokens=24 }\n'
    file = write(folder / "routes.json", table(flows, {ASK[0]["content"]: right}, before=before, zoo="lab"))
    return serve({"route": f'({" / ".join(flows)})[pick="{file}"]'})


@pytest.mark.parametrize("right", ["10", "01"])
def test_the_answer_of_a_picked_member_streams_from_its_first_token(serve: Serve, tmp_path: Path, right: str) -> None:
    """It came as reasoning, and then whole."""
    server = routed(serve, tmp_path, right)
    events = streamed(server, model="route", max_tokens=20)
    deltas = [choice["delta"] for event in events[:-1] for choice in event["choices"]]
    first = next(index for index, delta in enumerate(deltas) if delta.get("content"))
    assert sum(bool(delta.get("content")) for delta in deltas) > 10, "it comes token by token"
    assert not any(delta.get("reasoning_content") for delta in deltas[first:])
    whole = chat(server, model="route", max_tokens=20).data["choices"][0]["message"]
    assert text_of(events) == whole["content"]
    thought = text_of(events, "reasoning_content").strip("\n")
    assert thought == whole.get("reasoning_content", "") and thought.startswith("[Ds]\n" if right == "01" else "")
    assert "[Qwen]" not in thought and "[Yi]" not in thought


def test_a_picked_member_has_logprobs(serve: Serve, tmp_path: Path) -> None:
    choice = chat(routed(serve, tmp_path, "01"), model="route", logprobs=True, max_tokens=12).data["choices"][0]
    told = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
    assert told.decode() == choice["message"]["content"]


def test_a_last_member_streams_and_those_that_were_not_accepted_are_reasoning(serve: Serve) -> None:
    server = serve({"last": "(Qwen / Yi)[accept=confidence, at=1]", "first": "(Qwen / Yi)[accept=confidence, at=0]"})
    events = streamed(server, model="last", max_tokens=20)
    deltas = [choice["delta"] for event in events[:-1] for choice in event["choices"]]
    assert sum(bool(delta.get("content")) for delta in deltas) > 10, "it comes token by token"
    assert text_of(events) == chat(server, model="last", max_tokens=20).data["choices"][0]["message"]["content"]
    assert text_of(events, "reasoning_content").startswith("[Qwen]\n")
    accepted = streamed(server, model="first", max_tokens=20)
    pieces = [choice["delta"].get("content") for event in accepted[:-1] for choice in event["choices"]]
    assert len(list(filter(None, pieces))) == 1, "before it is judged nobody knows that it is the answer"


def test_usage_comes_last_with_no_choices_and_only_where_it_was_asked_for(server: Served) -> None:
    """ATOM 1711, gradio 11729, cline 8518, litellm 36553 and 30761."""
    *chunks, last, done = streamed(server, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert last["choices"] == []
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    whole = chat(server).data["usage"]
    assert [last["usage"][name] for name in ("prompt_tokens", "completion_tokens")] == [
        whole[name] for name in ("prompt_tokens", "completion_tokens")
    ]


def test_usage_sums_over_all_calls_of_models(server: Served) -> None:
    usage = chat(server).data["usage"]
    steps = usage["flowinfer"]["steps"]
    assert [(step["title"], step["calls"]) for step in steps] == [("Yi", 1), ("(Qwen | Ds)", 2)]
    assert usage["prompt_tokens"] == sum(step["prompt_tokens"] for step in steps)
    assert usage["completion_tokens"] == sum(step["completion_tokens"] for step in steps)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("flow", ["one", "pi", "s2p"])
def test_logprobs_are_those_of_the_fused_distribution_with_bytes(server: Served, flow: str) -> None:
    """vllm 4795 and 3707, ollama 16117: `true` alone works."""
    choice = chat(server, model=flow, logprobs=True, max_tokens=20).data["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == choice["message"]["content"]
    assert all(token["logprob"] <= 0 and token["top_logprobs"] == [] for token in tokens)
    chunks = streamed(server, model=flow, logprobs=True, max_tokens=20)[:-1]
    found = [
        one for chunk in chunks if chunk["choices"][0]["logprobs"] for one in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [one["bytes"] for one in found] == [one["bytes"] for one in tokens]
    assert all(
        math.isclose(one["logprob"], other["logprob"], abs_tol=1e-4) for one, other in zip(found, tokens, strict=True)
    )


def test_logprobs_of_a_flow_that_answers_with_one_of_several_texts_are_refused(server: Served) -> None:
    """They came as an empty list beside a text."""
    for reply in (chat(server, model="vote", logprobs=True), server.complete("vote", "3 + 4 = ?", logprobs=0)):
        assert (reply.status, reply.error["param"], reply.error["code"]) == (400, "logprobs", "unsupported_parameter")
        why = "'logprobs' is not served by 'vote': its answer is one of several texts, and it is decided later which"
        assert reply.error["message"] == why


@pytest.mark.parametrize("count", [1, 20])
def test_alternatives_of_tokens_are_fused_and_ordered(server: Served, count: int) -> None:
    tokens = chat(server, logprobs=True, top_logprobs=count).data["choices"][0]["logprobs"]["content"]
    for token in tokens:
        tops = token["top_logprobs"]
        assert len(tops) == count
        assert (tops[0]["bytes"], tops[0]["logprob"]) == (token["bytes"], token["logprob"])  # it is greedy
        assert [top["logprob"] for top in tops] == sorted((top["logprob"] for top in tops), reverse=True)
        assert sum(math.exp(top["logprob"]) for top in tops) < 1 + 1e-5
    older = server.complete("s2p", "3 + 4 = ?", logprobs=3, max_tokens=4).data["choices"][0]["logprobs"]
    assert all(0 < len(tops) <= 3 for tops in older["top_logprobs"])


def test_a_stop_text_takes_its_tokens_out_of_the_logprobs(server: Served) -> None:
    choice = chat(server, model="one", logprobs=True, max_tokens=24, stop="=").data["choices"][0]
    shown = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"]).decode()
    assert shown.startswith(choice["message"]["content"])
    assert len(shown) - len(choice["message"]["content"]) < 4  # of a token that the stop text cuts


def test_chinese_comes_in_whole_characters(server: Served) -> None:
    question = [{"role": "user", "content": "小明有3个苹果,又买了15个,一共有几个?"}]
    events = streamed(server, model="pi", messages=question, max_tokens=24)
    assert "\ufffd" not in text_of(events)
    assert (
        text_of(events)
        == chat(server, model="pi", messages=question, max_tokens=24).data["choices"][0]["message"]["content"]
    )


@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_that_is_too_long_is_never_cut_in_silence(server: Served, streams: bool) -> None:
    """TradingAgents 168."""
    reply = chat(server, messages=[{"role": "user", "content": "seven " * 1500}], stream=streams)
    assert reply.status == 400
    assert reply.error["code"] == "context_length_exceeded"
    assert reply.error["param"] == "messages"
    assert "which reads at most 1024 with its answer" in reply.error["message"]


def test_a_prompt_of_megabytes_is_refused_without_being_read_whole(server: Served) -> None:
    """Tokenized, it would hold up everybody for half a minute; what is long in few tokens is counted in full."""
    for said in ("seven " * 600_000, "a" * 3_000_000, "苹果" * 300_000):
        reply = chat(server, messages=[{"role": "user", "content": said}])
        assert reply.error["code"] == "context_length_exceeded"
        assert (least := re.search(r"has at least (\d+) tokens for '(Yi|Qwen)'", reply.error["message"]))
        assert int(least[1]) < 40_000
    turns = [{"role": role, "content": "seven " * 400} for role in ("user", "assistant") * 20]
    reply = chat(server, messages=[*turns, *ASK])
    assert "has at least" in reply.error["message"]


def test_completions_answer_each_prompt_of_a_list(server: Served) -> None:
    reply = server.complete("one", ["3 + 4 = ?", "5 + 6 = ?"], max_tokens=6)
    assert reply.data["object"] == "text_completion"
    assert [choice["index"] for choice in reply.data["choices"]] == [0, 1]
    alone = [server.complete("one", prompt, max_tokens=6).data["choices"][0] for prompt in ("3 + 4 = ?", "5 + 6 = ?")]
    assert [choice["text"] for choice in reply.data["choices"]] == [choice["text"] for choice in alone]


def test_completions_are_streamed_too(server: Served) -> None:
    prompts = ["3 + 4 = ?", "5 + 6 = ?"]
    *chunks, done = server.complete("s2p", prompts, max_tokens=6, stream=True).events
    assert done == "[DONE]"
    whole = server.complete("s2p", prompts, max_tokens=6).data["choices"]
    for index, choice in enumerate(whole):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


def test_logprobs_of_completions_have_the_older_form(server: Served) -> None:
    choice = server.complete("one", "3 + 4 = ?", max_tokens=6, logprobs=0).data["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert len(logprobs["token_logprobs"]) == len(logprobs["tokens"])
    assert logprobs["text_offset"][0] == 0


@pytest.mark.parametrize("model", ["one", "pi"])
def test_echo_tells_how_likely_each_token_of_the_prompt_is(server: Served, model: str) -> None:
    """As lm-eval asks for likelihoods, which leaves the last token out and looks at what begins the text."""
    texts = ["Question: 3 + 4 = ?\nAnswer: 7", "小明有3个苹果"]
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    reply = server.complete(model, texts, **asked)
    for text, choice in zip(texts, reply.data["choices"], strict=True):
        logprobs = choice["logprobs"]
        tokens, told, tops = logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]
        assert choice["text"].startswith(text) and len(tokens) == len(told) == len(tops)
        assert (told[0], tops[0]) == (None, None) and all(value <= 0 for value in told[1:])
        assert all(max(top.values()) >= value for top, value in zip(tops[1:], told[1:], strict=True))
        assert max(tops[-1].values()) == told[-1]  # it was written, as the likeliest
        for token, at in zip(tokens, logprobs["text_offset"], strict=True):
            assert "\ufffd" in token or choice["text"][at : at + len(token)] == token  # not of a half character
    only = server.complete(model, texts[0], **asked | {"max_tokens": 0}).data
    assert only["choices"][0]["text"] == texts[0]
    assert only["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(told_of(reply, 0)[:-1], nan_ok=True)
    assert only["usage"]["completion_tokens"] == 0 < only["usage"]["prompt_tokens"]


def told_of(reply: Reply, index: int) -> list[float | None]:
    told: list[float | None] = reply.data["choices"][index]["logprobs"]["token_logprobs"]
    return told


@pytest.mark.parametrize(
    ("model", "changes", "param", "why"),
    [
        ("s2p", {}, "echo", "several steps write the answer"),
        ("vote", {}, "echo", "several steps write the answer"),
        ("one", {"max_tokens": 5}, "max_tokens", "'echo' needs 'max_tokens' 0, or 1"),
        ("one", {"max_tokens": "absent"}, "max_tokens", "'echo' needs 'max_tokens' 0, or 1"),
        ("one", {"stream": True}, "stream", "'stream' does nothing beside 'echo'"),
        ("one", {"stream": False, "stream_options": {"include_usage": True}}, "stream_options", "beside 'echo'"),
        ("one", {"stop": "\n"}, "stop", "'stop' does nothing beside 'echo'"),
        ("one", {"temperature": 0.7}, "temperature", "'temperature' does nothing beside 'echo'; leave it out"),
        ("one", {"top_p": 0.5}, "top_p", "'top_p' does nothing beside 'echo'; leave it out"),
        ("one", {"n": 2}, "n", "'n' is not supported"),
        ("one", {"best_of": 2}, "best_of", "'best_of' is not supported"),
        ("one", {"suffix": "x"}, "suffix", "'suffix' is not supported"),
        ("one", {"echo": False}, "max_tokens", "it is for 'echo'"),
        ("one", {"prompt": [[1, 2]]}, "prompt", "token ids are not supported"),
    ],
)
def test_an_echo_that_cannot_be_is_refused_and_not_dropped(
    server: Served, model: str, changes: dict[str, Any], param: str, why: str
) -> None:
    """llama.cpp 27174: silently missing, it made an evaluation score chance."""
    asked = {"model": model, "prompt": "x", "echo": True, "logprobs": 1, "max_tokens": 0} | changes
    asked = {name: value for name, value in asked.items() if value != "absent"}
    reply = server.ask("POST", "/v1/completions", asked)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert why in reply.error["message"]


def test_a_route_says_that_it_picks_who_would_read_a_text(tmp_path: Path) -> None:
    routes = write(tmp_path / "routes.json", table(["Qwen", "Yi"], {"hello": "01"}, zoo="lab"))
    flow = check(f'{PLAIN}(Qwen / Yi)[pick="{routes}"]', zoo="lab")
    (route,), _ = served({"route": flow}, this_machine())
    assert route.unreadable is not None and route.unreadable.startswith("it picks who answers by the question; only a")


def test_temperature_0_is_refused_where_samples_are_drawn(serve: Serve) -> None:
    server = serve({"drawn": "Qwen[samples=3, temperature=0.8]"})
    reply = server.chat("drawn", "3 + 4 = ?", temperature=0)
    assert (reply.status, reply.error["param"]) == (400, "temperature")
    assert reply.error["message"] == (
        "'drawn' draws samples, which at temperature 0 are all the same; leave 'temperature' out, or give one above 0"
    )
    assert server.chat("drawn", "3 + 4 = ?", max_tokens=4).status == 200


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]], [], None, 5, [""], "", ["a", 5]])
def test_a_prompt_that_is_no_text_is_a_400(server: Served, prompt: Any) -> None:
    reply = server.complete("one", prompt)
    assert (reply.status, reply.error["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    ("name", "value"), [("best_of", 2), ("suffix", "x"), ("logprobs", 6), ("n", 3)], ids=lambda one: str(one)
)
def test_what_completions_do_not_do_is_refused_by_name(server: Served, name: str, value: Any) -> None:
    reply = server.complete("one", "x", **{name: value})
    assert (reply.status, reply.error["param"]) == (400, name)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/embeddings", 404),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/x", 404),
        ("POST", "/v1/responses", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("DELETE", "/v1/models/one", 405),
    ],
)
def test_what_is_not_there_is_told_in_openais_form(server: Served, method: str, path: str, status: int) -> None:
    """FastChat 3160, lm-eval 2740: never a 200."""
    reply = server.ask(method, path)
    assert reply.status == status
    assert reply.error["type"] == "invalid_request_error"


def test_health_ready_metrics_page_drawing_and_description_are_there(server: Served) -> None:
    chat(server)
    assert server.ask("GET", "/health").data == {"status": "ok"}
    assert server.ask("GET", "/ready").data["status"] == "ready"
    assert server.ask("GET", "/").headers["content-type"].startswith("text/html")
    drawing = server.ask("GET", "/flowinfer/flows/s2p.svg")
    assert drawing.headers["content-type"] == "image/svg+xml"
    assert drawing.body.startswith(b"<svg")
    assert server.ask("GET", "/flowinfer/flows/none.svg").status == 404
    paths = server.ask("GET", "/openapi.json").data["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models"} <= set(paths)


def test_metrics_count_requests_tokens_and_seconds_of_heads(server: Served) -> None:
    chat(server)
    chat(server, messages=[{"role": "user", "content": "seven " * 3000}])
    chat(server, model="nobody")
    text = server.ask("GET", "/metrics").body.decode()
    for line in (
        'flowinfer_requests_total{flow="s2p",status="200"}',
        'flowinfer_requests_total{flow="s2p",status="400"}',
        'flowinfer_requests_total{flow="",status="404"}',
        'flowinfer_prompt_tokens_total{flow="s2p"}',
        'flowinfer_completion_tokens_total{flow="s2p"}',
        'flowinfer_time_to_first_token_seconds_count{flow="s2p"}',
        'flowinfer_head_forward_seconds_total{flow="s2p",model="Ds",step="s2"}',
        "flowinfer_questions_waiting 0.0",
        'flowinfer_rows{loop="(Qwen | Ds)"} 0.0',
        "flowinfer_swaps_total 0.0",
    ):
        assert line in text, line


def test_keys_are_asked_for_where_there_are_some(serve: Serve) -> None:
    server = serve({"one": "Qwen"}, keys=(KEY, "another-key-of-the-tests"))
    for authorization in (
        {},
        {"Authorization": "Bearer wrong-key"},
        {"Authorization": KEY},
        {"Authorization": "Bearer é"},
    ):
        reply = server.ask("GET", "/v1/models", headers={k: v for k, v in authorization.items() if v.isascii()})
        assert reply.status == 401
        assert reply.error["type"] == "authentication_error"
        assert KEY not in reply.body.decode()
    for key in (KEY, "another-key-of-the-tests"):
        assert server.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"}).status == 200
    assert server.ask("GET", "/health").status == 200
    assert server.ask("GET", "/metrics").status == 401


def test_other_origins_are_let_in_only_where_they_are_named(server: Served, serve: Serve) -> None:
    origin = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in server.ask("GET", "/v1/models", headers=origin).headers
    open_ = serve({"one": "Qwen"}, cors_origins=["https://page.example"], keys=(KEY,))
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert open_.ask("OPTIONS", "/v1/chat/completions", headers=asked).status == 200
    refused = open_.ask("GET", "/v1/models", headers=origin)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"


def test_a_full_queue_is_a_429_with_a_time_to_come_back(serve: Serve) -> None:
    """vllm 2901 and 18826."""
    server = serve({"one": "Qwen"}, limits=Limits(questions=2))
    long = {"model": "one", "messages": ASK, "max_tokens": 900, "temperature": 2, "stream": True}

    async def fill(app: ASGIApp) -> Reply:
        calls = [call(app, "POST", "/v1/chat/completions", long) for _ in range(2)]
        tasks = [one.start() for one in calls]
        for one in calls:
            await one.sent.get()
        third = await ask(app, "POST", "/v1/chat/completions", long)
        for one in calls:
            one.gone.set()
        for task in tasks:
            await task
        return third

    reply = server.run(fill(server.app))
    assert reply.status == 429
    assert reply.error["type"] == "rate_limit_error"
    assert int(reply.headers["retry-after"]) >= 1
    assert server.chat("one", "3 + 4 = ?", max_tokens=2).status == 200
    assert server.complete("one", ["a", "b", "c"], max_tokens=2).status == 429


def test_a_queue_can_be_full_by_tokens(serve: Serve) -> None:
    server = serve({"one": "Qwen"}, limits=Limits(tokens=100))

    async def fill(app: ASGIApp) -> list[int]:
        first = call(
            app, "POST", "/v1/chat/completions", {"model": "one", "messages": ASK, "max_tokens": 90, "stream": True}
        )
        task = first.start()
        await first.sent.get()
        small = {"model": "one", "messages": ASK, "max_tokens": 50}
        statuses = [(await ask(app, "POST", "/v1/chat/completions", small)).status]
        first.gone.set()
        await task
        return [*statuses, (await ask(app, "POST", "/v1/chat/completions", small)).status]

    assert server.run(fill(server.app)) == [429, 200]


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_takes_too_long_is_ended(serve: Serve, streams: bool) -> None:
    server = serve({"one": "Qwen"}, limits=Limits(seconds=0.05))
    reply = server.chat("one", "Count.", max_tokens=1000, temperature=2, stream=streams)
    if reply.status == 200:
        assert streams
        assert reply.events[-1]["error"]["code"] == "timeout"
    else:
        assert (reply.status, reply.error["code"]) == (504, "timeout")
    server.run(server.is_idle())


def test_a_body_that_is_too_large_is_a_413(serve: Serve) -> None:
    server = serve({"one": "Qwen"}, limits=Limits(body_bytes=1000))
    assert server.chat("one", "x" * 2000).status == 413


def test_a_packed_body_is_a_415(server: Served) -> None:
    reply = server.ask("POST", "/v1/chat/completions", b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert reply.status == 415
    assert reply.error["message"] == "a body with Content-Encoding 'gzip' is not read; send it as it is"


def test_a_stream_gives_signs_of_life_while_there_is_nothing_to_tell(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In comments, which every client ignores, and not before the head of the answer."""
    monkeypatch.setattr(answers, "_SIGN_OF_LIFE_SECONDS", 0.0)
    reply = chat(server, stream=True)
    assert b": still at work\n\n" in reply.body
    assert reply.body.startswith(b"data: ")
    assert text_of(reply.events) == chat(server).data["choices"][0]["message"]["content"]


def test_a_body_that_does_not_come_is_a_408(serve: Serve) -> None:
    server = serve({"one": "Qwen"}, limits=Limits(body_seconds=0.02))
    assert server.ask("POST", "/v1/chat/completions", b'{"model"', is_whole=False).status == 408


def test_a_draining_server_takes_nothing_in(serve: Serve) -> None:
    server = serve({"one": "Qwen"})
    server.desk.is_draining = True
    assert server.ask("GET", "/ready").status == 503
    reply = server.chat("one", "3 + 4 = ?")
    assert (reply.status, reply.error["code"]) == (503, "not_ready")
    assert server.ask("GET", "/health").status == 200


def test_a_model_that_cannot_be_loaded_is_told_by_health_and_to_everybody(serve: Serve) -> None:
    class Broken(Ready):
        def get(self, *_: Any) -> Any:
            from flowinfer.errors import LoadError

            raise LoadError("the weights are gone")

    server = serve({"one": "Qwen"}, models=Broken({}))
    assert (server.ask("GET", "/health").status, server.ask("GET", "/ready").status) == (503, 503)
    assert server.chat("one", "3 + 4 = ?").error["message"] == "the weights are gone"
    lazy = serve({"one": "Qwen"}, models=Broken({}), loads_at_once=False)
    assert lazy.ask("GET", "/ready").status == 200
    reply = lazy.chat("one", "3 + 4 = ?")
    assert (reply.status, reply.error["message"]) == (500, "the weights are gone")


def test_who_waits_for_the_models_is_told_which_and_how_many_of_their_bytes_are_read(serve: Serve) -> None:
    class Held(ModelPool):
        may_go_on = threading.Event()

        def get(self, plan: Any, name: str, observer: Any) -> Any:
            if self.peek(plan, name) is None:
                observer.model_loading(name, "cpu")
                self.may_go_on.wait()
            return super().get(plan, name, observer)

    pool = Held()
    server = serve({"s": "Yi -> Qwen"}, models=pool, waits=False)

    async def listen() -> tuple[Reply, list[Any]]:
        listener = call(server.app, "GET", "/flowinfer/events")
        task = listener.start()
        while not server.desk.service.loading.now:
            await asyncio.sleep(0.001)
        early = await ask(server.app, "GET", "/ready")
        pool.may_go_on.set()
        await asyncio.to_thread(server.desk.service.changed.wait)
        while server.desk.service.loading.state != "ready":
            await asyncio.sleep(0.001)
        listener.gone.set()
        await task
        heard = [message["body"] async for message in listener.messages() if "body" in message]
        return early, Reply(200, {}, b"".join(heard)).events

    early, heard = server.run(listen())
    assert early.status == 503
    assert (early.data["status"], early.data["loading"]) == ("loading", "Yi")
    assert early.data["waiting_for"][0] == "model Yi"
    sizes = {name: one["bytes"] for name, one in early.data["models"].items()}
    assert all(size > 10_000 for size in sizes.values())
    assert {name: (one["state"], one["bytes_read"]) for name, one in early.data["models"].items()} == {
        "Yi": ("loading", 0),
        "Qwen": ("waiting", 0),
    }
    assert {event["event"] for event in heard} == {"models"}
    assert [heard[0]["status"], heard[-1]["status"]] == ["loading", "ready"]
    late = server.ask("GET", "/ready")
    assert late.status == 200
    assert {name: one["bytes_read"] for name, one in late.data["models"].items()} == sizes
    assert all(one["state"] == "loaded" and one["seconds"] > 0 for one in late.data["models"].values())


def test_what_is_asked_and_answered_is_logged_only_where_it_was_wished(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "the colour of my cat"
    logged: list[str] = []
    for log in (None, logged.append):
        server = serve({"one": "Qwen"}, log=log)
        asked = [{"role": "system", "content": "s-" + secret}, {"role": "user", "content": secret}]
        told = chat(server, model="one", messages=asked).data["choices"][0]["message"]["content"]
        streamed(server, model="one", messages=asked)
        for changes in ({"messages": [{"role": "user", "content": secret * 3000}]}, {"n": 2}, {"temperature": secret}):
            assert chat(server, model="one", **changes).status == 400
        server.ask("POST", "/v1/chat/completions", secret.encode())
        assert server.complete("one", [secret, "x"], max_tokens=2).status == 200
        said = capfd.readouterr()
        assert secret not in said.out + said.err
        assert secret not in str(server.desk.service.loading.notices)
        assert secret not in server.ask("GET", "/metrics").body.decode()
        assert bool(logged) == (log is not None)
    first, second = (json.loads(line) for line in logged[:2])
    assert first["request"] == second["request"]
    assert (first["model"], first["asked"]) == ("one", [asked])
    assert (second["status"], second["answered"]) == ("200", [told])


def test_an_error_in_mid_stream_is_an_event(serve: Serve) -> None:
    """The second stage's prompt is too long for its model, which is known only once the first has written."""
    server = serve({"twice": "Yi[max_tokens=24] -> Yi"})

    def tokens(words: int) -> int:
        message = server.chat("twice", "seven " * words).error["message"]
        return int(re.search(r"has (\d+) tokens", message)[1])  # type: ignore[index]

    per_word = (tokens(1200) - tokens(700)) // 500
    words = 1200 - -(-(tokens(1200) - 1020) // per_word)
    reply = server.chat("twice", "seven " * words, stream=True)
    assert reply.status == 200
    assert reply.events[-1]["error"]["code"] == "context_length_exceeded"
    assert text_of([*reply.events[:-1], None], "reasoning_content")


def test_everybody_hears_the_states_of_requests_and_none_of_their_texts(server: Served) -> None:
    async def listen() -> bytes:
        listening = call(server.app, "GET", "/flowinfer/events")
        task = listening.start()
        await listening.sent.get()
        await ask(server.app, "POST", "/v1/chat/completions", body())
        listening.gone.set()
        await task
        return b"".join([message["body"] async for message in listening.messages() if "body" in message])

    heard = Reply(200, {}, server.run(listen())).events
    assert [one["event"] for one in heard] == ["step_began", "step_ended", "step_began", "step_ended", "answered"]
    assert not any("text" in one or "bytes" in one for one in heard)
