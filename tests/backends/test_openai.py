"""The endpoint backend against a stub server on this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from flowinfer.backends import openai
from flowinfer.backends.base import TextModel
from flowinfer.backends.exchange import Exchange
from flowinfer.backends.keys import read_key
from flowinfer.backends.openai import OpenAIModel
from flowinfer.errors import LoadError, RunError
from flowinfer.spec import Decoding, ModelSpec
from tests.endpoint import Stub, connected, said, stub

__all__ = ["stub"]


@pytest.fixture
def model(stub: Stub) -> Iterator[OpenAIModel]:
    made = connected(stub)
    yield made
    made.close()


def test_text_tokens_and_reason_are_the_endpoints(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [said("答案是：B", tokens=5)]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.text, done.tokens, done.finish_reason) == ("答案是：B", 5, "eos")
    assert done.seconds >= 0


def test_request_says_model_prompt_and_options(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [said("x")]
    model.complete("hello", Decoding(max_tokens=9, temperature=0.5, top_p=0.9, stop=("END",)), seed=3)
    assert stub.paths == ["/v1/chat/completions"]
    assert stub.asked == [
        {
            "model": "org/far-7b",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
            "stop": ["END"],
        }
    ]


def test_system_message_is_sent_first(stub: Stub) -> None:
    stub.replies = [said("x")]
    made = connected(stub, system="Be brief.")
    made.complete("hello", Decoding(), seed=1)
    made.close()
    assert stub.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("reason", "known"), [("stop", "eos"), ("length", "length"), ("content_filter", "content_filter")]
)
def test_finish_reasons_are_translated(stub: Stub, model: OpenAIModel, reason: str, known: str) -> None:
    stub.replies = [said("x", reason=reason)]
    assert model.complete("hello", Decoding(), seed=1).finish_reason == known


def test_absent_usage_is_no_count(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [said("", tokens=None)]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.text, done.tokens, done.input_tokens) == ("", 0, 0)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(stub: Stub, model: OpenAIModel, status: int) -> None:
    stub.replies = [(status, "busy"), (status, "busy"), said("at last")]
    assert model.complete("hello", Decoding(), seed=1).text == "at last"
    assert len(stub.asked) == 3


def test_lasting_failure_is_a_run_error_after_five_tries(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [(503, "overloaded")]
    with pytest.raises(RunError) as caught:
        model.complete("hello", Decoding(), seed=1)
    assert caught.value.message == f"'Far' at {stub.url}: HTTP 503: overloaded"
    assert caught.value.help == "check base_url, model id and key"
    assert len(stub.asked) == 5


@pytest.mark.parametrize("status", [400, 401, 404])
def test_refusals_are_not_tried_again(stub: Stub, model: OpenAIModel, status: int) -> None:
    stub.replies = [(status, "no such model")]
    with pytest.raises(RunError, match=f"HTTP {status}: no such model"):
        model.complete("hello", Decoding(), seed=1)
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '"x"',
        '{"choices": ["x"]}',
        '{"choices": [{"message": "x"}]}',
        '{"choices": []}',
        '{"choices": [{}]}',
        "[]",
        "null",
    ],
)
def test_answers_without_choices_are_run_errors(stub: Stub, model: OpenAIModel, body: str) -> None:
    stub.replies = [(200, body)]
    with pytest.raises(RunError, match=r"'Far' at .*: the endpoint's answer has no choices: "):
        model.complete("hello", Decoding(), seed=1)


@pytest.mark.parametrize("usage", ["many", 7, None, {"completion_tokens": "many"}, {"completion_tokens": None}, []])
def test_a_strange_token_count_is_no_count(stub: Stub, model: OpenAIModel, usage: Any) -> None:
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": None}], "usage": usage}
    stub.replies = [(200, json.dumps(body))]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.text, done.tokens) == ("x", 0)


def test_content_in_parts_is_joined(stub: Stub, model: OpenAIModel) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]
    stub.replies = [(200, json.dumps({"choices": [{"message": {"content": parts}}]}))]
    assert model.complete("hello", Decoding(), seed=1).text == "one two"


def test_answers_that_are_not_json_are_run_errors(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [(200, "<html>")]
    with pytest.raises(RunError, match=r"'Far' at .*: the endpoint's answer is a page of HTML, not JSON: <html>"):
        model.complete("hello", Decoding(), seed=1)


def test_unreachable_endpoint_is_a_run_error(stub: Stub) -> None:
    spec = ModelSpec(name="Far", ref="far", backend="openai", base_url="http://127.0.0.1:9/v1")
    made = OpenAIModel(spec, Exchange("http://127.0.0.1:9/v1"), sleep=stub.pauses.append)
    with pytest.raises(RunError, match=r"'Far' at http://127\.0\.0\.1:9/v1: ") as caught:
        made.complete("hello", Decoding(), seed=1)
    assert caught.value.help == "is the server at 127.0.0.1:9 still running?"
    assert stub.pauses == [0.5, 1.0, 2.0, 4.0]
    made.close()


def test_key_is_read_from_the_named_variable(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "~k3y~")
    stub.replies = [said("x")]
    spec = ModelSpec(name="Far", ref="far", backend="openai", base_url=stub.url, api_key_env="FAR_KEY")
    made = openai.load(spec, "cpu")
    made.complete("hello", Decoding(), seed=1)
    made.close()
    assert stub.headers[0]["Authorization"] == "Bearer ~k3y~"


def test_unset_key_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    spec = ModelSpec(name="Far", ref="far", base_url="http://x", api_key_env="FAR_KEY")
    with pytest.raises(LoadError) as caught:
        openai.load(spec, "cpu")
    assert caught.value.message == "model 'Far': the environment variable FAR_KEY is not set"
    assert caught.value.help == "export FAR_KEY=..."


def test_missing_base_url_is_a_load_error() -> None:
    with pytest.raises(LoadError) as caught:
        openai.load(ModelSpec(name="Far", ref="far"), "cpu")
    assert caught.value.message == "model 'Far': backend openai needs base_url"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "127.0.0.1", "ftp://127.0.0.1/v1", "http://x:y/v1"])
def test_an_endpoint_that_is_not_there_is_a_load_error(url: str) -> None:
    """One dead endpoint stops the run; it does not fail every question after five tries each."""
    with pytest.raises(LoadError) as caught:
        openai.load(ModelSpec(name="Far", ref="far", base_url=url), "cpu")
    assert "model 'Far': " in caught.value.message and url in caught.value.message


def test_an_endpoint_that_lists_no_models_is_there(stub: Stub) -> None:
    openai.load(ModelSpec(name="Far", ref="far", base_url=stub.url), "cpu").close()


def test_endpoint_model_is_a_text_model(model: OpenAIModel) -> None:
    assert isinstance(model, TextModel)


@pytest.mark.parametrize("kept", ["sk-1234567890", " sk-1234567890\r", "sk-1234567890\n"])
def test_spaces_and_line_ends_around_a_key_are_left_out_and_told(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """Files with keys often end their lines in CR LF."""
    monkeypatch.setenv("FAR_KEY", kept)
    stub.replies = [said("x")]
    made = openai.load(ModelSpec(name="Far", ref="far", base_url=stub.url, api_key_env="FAR_KEY"), "cpu")
    made.complete("hello", Decoding(), seed=1)
    made.close()
    assert stub.headers[0]["Authorization"] == "Bearer sk-1234567890"
    note = "FAR_KEY has spaces or line ends around its key; they are left out"
    assert made.notes == ((note,) if kept != kept.strip() else ())


@pytest.mark.parametrize(
    ("kept", "fault"),
    [
        ("", "is empty"),
        (" \r\n", "holds only spaces, so no key"),
        ("sk-12345\r67890", "holds control characters, so no key"),
        ("sk-12345\x1b[31m", "holds control characters, so no key"),
        ("Bearer sk-12345", "holds a space, so no key"),
        ("sk-钥匙12345", "holds characters that are not ASCII, so no key"),
        ("sk-\udc80-12345", "holds characters that are not ASCII, so no key"),
    ],
)
def test_what_cannot_be_a_key_is_refused_by_its_variables_name(
    monkeypatch: pytest.MonkeyPatch, kept: str, fault: str
) -> None:
    monkeypatch.setenv("FAR_KEY", kept)
    with pytest.raises(LoadError) as caught:
        openai.load(ModelSpec(name="Far", ref="far", base_url="http://127.0.0.1:9", api_key_env="FAR_KEY"), "cpu")
    assert caught.value.message == f"model 'Far': the environment variable FAR_KEY {fault}"
    assert "sk-" not in str(caught.value.help)


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://notopenai.com/v1", False),
        ("https://api.openai.com@evil.example/v1", False),
        ("http://localhost:8000/v1", False),
    ],
)
def test_openais_variable_is_read_for_its_own_hosts_only(url: str, is_sent: bool) -> None:
    spec = ModelSpec(name="Far", ref="far", base_url=url)
    key = read_key(spec, {"OPENAI_API_KEY": "sk-1234567890"})
    assert key.value == ("sk-1234567890" if is_sent else None)
    assert "sk-1234567890" not in repr(key)


def test_user_and_password_of_an_address_go_into_the_header_and_nowhere_else(stub: Stub) -> None:
    stub.replies = [(401, "no")]
    url = stub.url.replace("://", "://me%40x:pw%2F12345@") + "?api_key=k-998877&region=eu"
    spec = ModelSpec(name="Far", ref="far", backend="openai", base_url=url)
    made = openai.load(spec, "cpu")
    with pytest.raises(RunError) as caught:
        made.complete("hello", Decoding(), seed=1)
    made.close()
    assert stub.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"me@x:pw/12345").decode()
    assert stub.paths[-1] == "/v1/chat/completions?api_key=k-998877&region=eu"
    told = f"{caught.value} {caught.value.help} {spec!r} {spec.model_dump()} {spec.model_dump_json()}"
    assert not any(secret in told for secret in ("pw%2F", "pw/12345", "k-998877"))
    assert spec.base_url == stub.url.replace("://", "://***@") + "?api_key=***&region=eu"


def test_an_endpoint_that_says_the_key_is_not_repeated(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "k3y-of-far")
    spec = ModelSpec(name="Far", ref="far", base_url=stub.url, api_key_env="FAR_KEY")
    made = openai.load(spec, "cpu")
    stub.replies = [(401, "x" * 195 + "k3y-of-far is wrong"), said("your key is k3y-of-far")]
    with pytest.raises(RunError) as caught:
        made.complete("hello", Decoding(), seed=1)
    assert "k3y" not in caught.value.message and caught.value.help == "the key was read from FAR_KEY"
    assert made.complete("hello", Decoding(), seed=1).text == "your key is ***"
    made.close()


def test_redirects_are_not_followed(stub: Stub, model: OpenAIModel) -> None:
    stub.replies, stub.extra = [(307, "")], {"Location": "http://elsewhere.example/v1"}
    with pytest.raises(RunError) as caught:
        model.complete("hello", Decoding(), seed=1)
    assert caught.value.help == "base_url has moved: set it to where http://elsewhere.example/v1 is"
    assert len(stub.asked) == 1


def test_v1_is_added_where_only_there_something_answers(stub: Stub) -> None:
    stub.listed = {"/v1/models": (200, '{"data": []}')}
    stub.replies = [said("x")]
    made = openai.load(ModelSpec(name="Far", ref="far", base_url=stub.url.removesuffix("/v1")), "cpu")
    assert made.notes == (f"'Far': base_url lacks /v1, going on with {stub.url}",)
    made.complete("hello", Decoding(), seed=1)
    made.close()
    assert stub.paths == ["/models", "/v1/models", "/v1/chat/completions"]


def test_an_unknown_model_is_told_with_those_that_are_there(stub: Stub, model: OpenAIModel) -> None:
    stub.listed = {"/v1/models": (200, '{"data": [{"id": "org/far-7b-chat"}, {"id": "other"}]}')}
    stub.replies = [(404, '{"error": {"message": "no such model"}}')]
    with pytest.raises(RunError, match=r"HTTP 404: no such model$") as caught:
        model.complete("hello", Decoding(), seed=1)
    assert caught.value.help == (
        "did you mean 'org/far-7b-chat'? the endpoint does not list 'org/far-7b'; it lists org/far-7b-chat, other"
    )


@pytest.mark.parametrize(("asked", "pause"), [("7", 7.0), ("86400", 60.0), ("-5", 0.0), ("nan", 0.0), ("soon", 0.0)])
def test_a_wanted_pause_is_kept_within_bounds(stub: Stub, model: OpenAIModel, asked: str, pause: float) -> None:
    stub.replies, stub.extra = [(429, "busy"), said("x")], {"Retry-After": asked}
    model.complete("hello", Decoding(), seed=1)
    assert stub.pauses == [pause]


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("Thu, 01 Jan 1970 00:00:12 GMT", 12.0),
        ("Thu, 01 Jan 1970 01:00:00 GMT", 60.0),
        ("Wed, 31 Dec 1969 23:00:00 GMT", 0.0),
    ],
)
def test_a_pause_may_be_asked_for_by_a_date(stub: Stub, asked: str, pause: float) -> None:
    stub.replies, stub.extra = [(503, "busy"), said("x")], {"Retry-After": asked}
    made = connected(stub, clock=lambda: 0.0)
    made.complete("hello", Decoding(), seed=1)
    made.close()
    assert stub.pauses == [pause]


def test_half_characters_become_replacement_characters(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [(200, '{"choices": [{"message": {"content": "a\\ud800b"}}]}')]
    assert model.complete("hello", Decoding(), seed=1).text == "a\ufffdb"


@pytest.mark.parametrize("count", [-(10**23), 10**23, True, 3.5])
def test_an_impossible_token_count_is_no_count(stub: Stub, model: OpenAIModel, count: Any) -> None:
    body = {"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": count}}
    stub.replies = [(200, json.dumps(body))]
    assert model.complete("hello", Decoding(), seed=1).tokens == 0
