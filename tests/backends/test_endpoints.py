"""What a server needs of an endpoint as a stage: streams, parameters it does not take, thoughts, prices, faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from flowinfer.backends import openai
from flowinfer.backends.base import Hearing
from flowinfer.backends.exchange import Exchange, Limits
from flowinfer.backends.openai import OpenAIModel
from flowinfer.errors import LoadError, RunError
from flowinfer.output.secrets import learn
from flowinfer.spec import Decoding, ModelSpec
from tests.endpoint import DONE, Reply, Stub, connected, event, said, stub

__all__ = ["stub"]


@pytest.fixture
def model(stub: Stub) -> Iterator[OpenAIModel]:
    made = connected(stub)
    yield made
    made.close()


def refused(message: str, param: str | None = None, status: int = 400) -> Reply:
    return status, json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param}})


def spoken(**message: Any) -> Reply:
    reason = message.pop("reason", "stop")
    return 200, json.dumps({"choices": [{"message": message, "finish_reason": reason}]})


def failure(model: OpenAIModel, hearing: Hearing | None = None) -> str:
    with pytest.raises(RunError) as caught:
        model.complete("hello", Decoding(), seed=1, hearing=hearing)
    assert "\n" not in caught.value.message
    return caught.value.message.partition(": ")[2]


def test_a_stream_is_heard_piece_by_piece_and_is_the_text(stub: Stub, model: OpenAIModel) -> None:
    usage = 'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}\n\n'
    stub.replies = [(200, [": hello\n\n", event("答"), event("案 B"), event(finish_reason="stop"), usage, DONE])]
    heard: list[str] = []
    done = model.complete("hello", Decoding(), seed=1, hearing=Hearing(heard.append))
    assert heard[0] == "答" and "".join(heard) == done.text == "答案 B"
    assert (done.tokens, done.input_tokens, done.finish_reason) == (3, 9, "eos")
    assert stub.asked[0]["stream"] is True and stub.asked[0]["stream_options"] == {"include_usage": True}


def test_who_wants_no_pieces_asks_for_no_stream(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [said("x")]
    model.complete("hello", Decoding(), seed=1, hearing=Hearing())
    assert "stream" not in stub.asked[0] and "stream_options" not in stub.asked[0]


def test_an_answer_that_comes_whole_though_a_stream_was_wanted_is_heard_once(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [said("whole")]
    heard: list[str] = []
    assert model.complete("hello", Decoding(), seed=1, hearing=Hearing(heard.append)).text == "whole"
    assert heard == ["whole"]


def test_half_characters_of_two_pieces_are_one_character(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [(200, [event("a\ud83d"), event("\ude00b\udc00"), event(finish_reason="stop"), DONE])]
    heard: list[str] = []
    assert model.complete("hello", Decoding(), seed=1, hearing=Hearing(heard.append)).text == "a😀b\ufffd"
    assert "".join(heard) == "a😀b\ufffd"


def test_a_secret_in_two_pieces_of_a_stream_is_not_told(stub: Stub, model: OpenAIModel) -> None:
    learn("s3cr3t-k3y")
    stub.replies = [(200, [event("it is s3cr"), event("3t-k3y, s3c"), event("ond", finish_reason="stop"), DONE])]
    heard: list[str] = []
    assert model.complete("hello", Decoding(), seed=1, hearing=Hearing(heard.append)).text == "it is ***, s3cond"
    assert "".join(heard) == "it is ***, s3cond"


def test_a_request_that_is_wanted_no_more_is_broken_off(stub: Stub, model: OpenAIModel) -> None:
    stub.may_end.clear()
    stub.replies = [(200, [event("begun")])]
    hearing = Hearing(lambda text: hearing.end())
    assert failure(model, hearing) == "wanted no more"
    assert stub.broken_off.wait(30)
    stub.may_end.set()


def test_who_wants_no_answer_any_more_waits_for_no_pause(stub: Stub) -> None:
    spec = ModelSpec(name="Far", ref="far", backend="openai", base_url=stub.url)
    made = OpenAIModel(spec, Exchange(stub.url), pause_seconds=3600.0)
    stub.replies = [(503, "busy")]
    hearing = Hearing()
    hearing.when_over = lambda stop: hearing.end()  # type: ignore[method-assign]  # as soon as it is asked
    assert failure(made, hearing) == "wanted no more"
    made.close()


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([event("half")], "the endpoint's stream broke off after 4 characters"),
        ([], "the endpoint's stream broke off after 0 characters"),
        (
            [event("x"), 'data: {"error": {"message": "no\\nmemory"}}\n\n'],
            "the endpoint says 200 and an error: no memory",
        ),
        (["data: {]\n\n"], "the endpoint's answer is not JSON: {]"),
        (["data: 3\n\n"], "the endpoint's stream has an event that is no part of an answer: 3"),
        (["data: " + "x" * (1 << 21)], "the endpoint's stream has an event larger than 1 MiB"),
    ],
)
def test_a_stream_that_goes_wrong_fails_its_question(
    stub: Stub, model: OpenAIModel, pieces: list[str], message: str
) -> None:
    stub.replies = [(200, pieces)]
    assert failure(model, Hearing(lambda text: None)) == message


def test_what_may_begin_a_secret_counts_among_what_came_before_a_stream_broke_off(
    stub: Stub, model: OpenAIModel
) -> None:
    learn("s3cr3t-k3y")
    stub.replies = [(200, [event("half s3cr")])]
    heard: list[str] = []
    assert failure(model, Hearing(heard.append)) == "the endpoint's stream broke off after 9 characters"
    assert heard == ["half "]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (200, '{"error": {"message": "quota\\nused up", "code": 403}}'),
            "the endpoint says 200 and an error: quota used up",
        ),
        ((200, "<!DOCTYPE html>\n<p>hi"), "the endpoint's answer is a page of HTML, not JSON: <!DOCTYPE html> <p>hi"),
        ((500, "<html>\n<h1>Bad\n"), "HTTP 500: <html> <h1>Bad"),
        ((200, ""), "the endpoint's answer is not JSON: "),
        (spoken(content=None), "the endpoint's answer has no text: content is null, finish_reason 'stop'"),
        (
            spoken(content=None, reason="tool_calls"),
            "the endpoint's answer has no text but a call of a tool: content is null, finish_reason 'tool_calls'",
        ),
    ],
)
def test_what_is_no_answer_fails_its_question_in_one_line(
    stub: Stub, model: OpenAIModel, reply: Reply, message: str
) -> None:
    stub.replies = [reply]
    assert failure(model) == message


def test_an_error_that_says_200_and_may_pass_is_tried_again(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [(200, '{"error": {"message": "rate limit", "code": 429}}'), said("at last")]
    assert model.complete("hello", Decoding(), seed=1).text == "at last"


def test_drips_are_not_waited_for_beyond_the_limit(stub: Stub) -> None:
    stub.may_end.clear()
    stub.replies = [(200, [event("x")])]
    spec = ModelSpec(name="Far", ref="far", backend="openai", base_url=stub.url)
    made = OpenAIModel(spec, Exchange(stub.url, limits=Limits(seconds=0.2)))
    assert failure(made, Hearing(lambda text: None)) == "no whole answer within 0.2 s"
    made.close()
    stub.may_end.set()


def test_a_refusal_is_the_answer_and_says_so(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [spoken(content=None, refusal="I cannot help with that.")]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.text, done.finish_reason) == ("I cannot help with that.", "content_filter")


def test_an_answer_that_was_filtered_may_be_empty(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [spoken(content=None, reason="content_filter")]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.text, done.finish_reason) == ("", "content_filter")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_stand_before_the_text(stub: Stub, model: OpenAIModel, name: str) -> None:
    stub.replies = [spoken(content="B", **{name: "A? no"})]
    assert model.complete("hello", Decoding(), seed=1).text == "<think>\nA? no\n</think>\n\nB"


def test_a_streamed_thought_is_the_same_text(stub: Stub, model: OpenAIModel) -> None:
    thoughts = [event(delta={"reasoning_content": piece}) for piece in ("A? ", "no")]
    stub.replies = [(200, [*thoughts, event("B", finish_reason="stop"), DONE])]
    heard: list[str] = []
    done = model.complete("hello", Decoding(), seed=1, hearing=Hearing(heard.append))
    assert done.text == "".join(heard) == "<think>\nA? no\n</think>\n\nB"


def test_a_thought_that_takes_all_tokens_is_cut_not_without_answer(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [spoken(content=None, reasoning_content="A? no", reason="length")]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.text, done.finish_reason) == ("<think>\nA? no", "length")


def test_a_stop_text_that_the_endpoint_does_not_heed_ends_the_text(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [spoken(content="B\nQuestion: C", reasoning_content="\nQuestion: x")]
    done = model.complete("hello", Decoding(stop=("\nQuestion:",)), seed=1)
    assert (done.text, done.finish_reason) == ("<think>\n\nQuestion: x\n</think>\n\nB", "stop")


@pytest.mark.parametrize(
    ("refusal", "gone", "instead"),
    [
        (refused("Unsupported parameter: 'seed' is not supported with this model.", "seed"), "seed", {}),
        (refused("`temperature` and `top_p` cannot both be specified for this model."), "top_p", {}),
        (refused("Unsupported value: 'temperature' does not support 0", "temperature"), "temperature", {}),
        (
            refused("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
            "max_tokens",
            {"max_completion_tokens": 512},
        ),
        (
            (422, '{"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}'),
            "seed",
            {},
        ),
    ],
)
def test_a_parameter_that_is_refused_by_name_is_left_out_once_and_for_all(
    stub: Stub, model: OpenAIModel, refusal: Reply, gone: str, instead: dict[str, int]
) -> None:
    stub.replies = [refusal, said("x")]
    done = model.complete("hello", Decoding(), seed=1)
    model.complete("hello again", Decoding(), seed=1)
    assert [gone in asked for asked in stub.asked] == [True, False, False]
    assert all(asked.items() >= instead.items() for asked in stub.asked[1:])
    assert [note for note in done.notes if f"'{gone}'" in note] == list(done.notes) and done.notes


def test_several_parameters_may_be_refused_one_after_another(stub: Stub, model: OpenAIModel) -> None:
    names = ("seed", "max_tokens", "max_completion_tokens", "temperature", "top_p")
    stub.replies = [*(refused(f"unknown field {name}", name) for name in names), said("x")]
    assert len(model.complete("hello", Decoding(), seed=1).notes) == 5
    assert set(stub.asked[-1]) == {"model", "messages"}


def test_a_value_that_is_refused_is_no_parameter_that_is(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [refused("max_tokens is too large: 512. This model supports at most 64.", "max_tokens")]
    assert failure(model).startswith("HTTP 400: max_tokens is too large")
    assert len(stub.asked) == 1


def test_further_fields_and_headers_are_sent(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_TOKEN", "t0ken-of-far")
    options: dict[str, Any] = {
        "headers": {"X-Title": "flows", "X-Api-Key": "Key $FAR_TOKEN"},
        "extra_body": {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}},
    }
    spec = ModelSpec(name="Far", ref="far", base_url=stub.url, **options)
    made = openai.load(spec, "cpu")
    stub.replies = [said("you sent t0ken-of-far")]
    assert made.complete("hello", Decoding(), seed=1).text == "you sent ***"
    made.close()
    assert (stub.headers[0]["X-Title"], stub.headers[0]["X-Api-Key"]) == ("flows", "Key t0ken-of-far")
    assert stub.asked[0].items() >= options["extra_body"].items()
    assert "t0ken" not in f"{spec!r} {spec.model_dump_json()} {spec.decisive()}"


def test_a_header_whose_variable_is_not_set_is_a_load_error(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAR_TOKEN", raising=False)
    spec = ModelSpec(name="Far", ref="far", base_url=stub.url, headers={"X-Key": "$FAR_TOKEN"})
    with pytest.raises(LoadError) as caught:
        openai.load(spec, "cpu")
    assert caught.value.message == "model 'Far': the environment variable FAR_TOKEN is not set, or empty"


def test_what_an_endpoint_has_read_before_is_told(stub: Stub, model: OpenAIModel) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 64}}
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    stub.replies = [(200, json.dumps(answer))]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.tokens, done.input_tokens, done.cached_tokens) == (3, 100, 64)


def test_what_says_how_an_endpoint_is_reached_or_paid_decides_no_text() -> None:
    plain = ModelSpec(name="A", ref="far", backend="openai", base_url="http://h/v1")
    paid = plain.model_copy(update={"parallel": 2, "input_cost": 1.5, "output_cost": 2.0, "cached_cost": 0.1})
    assert plain.decisive() == paid.decisive()
    assert not {"headers", "extra_body"} & set(plain.decisive())
    asked = plain.model_copy(update={"extra_body": {"top_k": 1}})
    assert asked.decisive() == plain.decisive() | {"extra_body": {"top_k": 1}}
