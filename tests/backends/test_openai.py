"""The endpoint backend against a stub server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from flowinfer.backends import openai
from flowinfer.backends.base import TextModel
from flowinfer.backends.openai import OpenAIModel
from flowinfer.errors import LoadError, RunError
from flowinfer.spec import Decoding, ModelSpec

Reply = tuple[int, str]


class Stub(ThreadingHTTPServer):
    """Answer requests with prepared replies, the last one again and again, and keep what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        self.server.headers.append(dict(self.headers))
        self.server.paths.append(self.path)
        replies = self.server.replies
        status, text = replies.pop(0) if len(replies) > 1 else replies[0]
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def said(text: str | None, *, reason: str = "stop", tokens: int | None = 7) -> Reply:
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}], **usage})


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def model(stub: Stub) -> Iterator[OpenAIModel]:
    made = connected(stub)
    yield made
    made.close()


def connected(stub: Stub, **options: Any) -> OpenAIModel:
    spec = ModelSpec(name="Far", ref="org/far-7b", backend="openai", base_url=stub.url, **options)
    return OpenAIModel(spec, httpx.Client(base_url=stub.url + "/"), pause_seconds=0.0)


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


@pytest.mark.parametrize(("reason", "known"), [("stop", "eos"), ("length", "length"), ("content_filter", "eos")])
def test_finish_reasons_are_translated(stub: Stub, model: OpenAIModel, reason: str, known: str) -> None:
    stub.replies = [said("x", reason=reason)]
    assert model.complete("hello", Decoding(), seed=1).finish_reason == known


def test_absent_content_and_usage_are_empty(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [said(None, tokens=None)]
    done = model.complete("hello", Decoding(), seed=1)
    assert (done.text, done.tokens) == ("", 0)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(stub: Stub, model: OpenAIModel, status: int) -> None:
    stub.replies = [(status, "busy"), (status, "busy"), said("at last")]
    assert model.complete("hello", Decoding(), seed=1).text == "at last"
    assert len(stub.asked) == 3


def test_lasting_failure_is_a_run_error_after_five_tries(stub: Stub, model: OpenAIModel) -> None:
    stub.replies = [(503, "overloaded")]
    with pytest.raises(RunError) as caught:
        model.complete("hello", Decoding(), seed=1)
    assert caught.value.message == f"'Far' at {stub.url}/: HTTP 503: overloaded"
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
    with pytest.raises(RunError, match="'Far': the endpoint's answer has no choices: "):
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
    with pytest.raises(RunError, match="'Far': the endpoint's answer is not JSON"):
        model.complete("hello", Decoding(), seed=1)


def test_unreachable_endpoint_is_a_run_error(stub: Stub) -> None:
    made = connected(stub)
    stub.server_close()
    made._client = httpx.Client(base_url="http://127.0.0.1:9/v1/")
    with pytest.raises(RunError, match=r"'Far' at http://127\.0\.0\.1:9/v1/: "):
        made.complete("hello", Decoding(), seed=1)
    made.close()


def test_key_is_read_from_the_named_variable(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "secret")
    stub.replies = [said("x")]
    spec = ModelSpec(name="Far", ref="far", backend="openai", base_url=stub.url, api_key_env="FAR_KEY")
    made = openai.load(spec, "cpu")
    made.complete("hello", Decoding(), seed=1)
    made.close()
    assert stub.headers[0]["Authorization"] == "Bearer secret"


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
