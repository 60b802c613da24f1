"""Endpoints that answer anything in any way: nothing comes of it but an answer or a RunError, and soon."""

from __future__ import annotations

import gzip
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from flowinfer.backends.base import Hearing
from flowinfer.backends.exchange import Exchange, Limits
from flowinfer.backends.openai import OpenAIModel
from flowinfer.errors import RunError
from flowinfer.spec import Decoding, ModelSpec
from tests.fuzz.rounds import rounds

LIMITS = Limits(seconds=0.3, num_bytes=1 << 16)
THINGS: tuple[Any, ...] = (
    *(None, True, -1, 10**30, float("nan"), float("inf"), "", "x", "\ud800", "\x1b[31m", [], [[]], {}, {"text": 1}),
    *([{"text": "x"}], [{"text": 3}], [1], {"message": None}, {"message": {"content": ["x"]}}),
)


def thing(rng: random.Random, depth: int = 0) -> Any:
    """Return something like an answer in which anything may be of any type."""
    if depth > 4 or rng.random() < 0.2:
        return rng.choice(THINGS)
    whole = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    place: Any = whole
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else 0
        if rng.random() < 0.3:
            place[key] = thing(rng, depth + 1)
            break
        place = place[key]
    return whole


def body(rng: random.Random) -> bytes:
    """Return an answer's body."""
    answer = json.dumps(thing(rng)).encode()
    return rng.choice(
        (
            answer,
            answer,
            answer,
            answer[: rng.randrange(len(answer) + 1)],
            b"[" * 50_000,
            b'{"choices": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
            b"9" * 10_000,
            b"\xff\xfe\x00",
            b"data: " + answer + b"\n\ndata: [DONE]\n\n",
            b"data: " + answer.replace(b'"message"', b'"delta"') + b"\n\ndata: [DONE]\n\n",
            b"data: " + answer.replace(b'"message"', b'"delta"') + b"\n\n",
            b"<html><body>no</body></html>",
            b" " * (1 << 17),
        )
    )


def reply(rng: random.Random) -> bytes:
    """Return a whole reply: status, headers, body."""
    data = body(rng)
    status = rng.choice(
        (b"200 OK", b"200 OK", b"200 OK", b"301 x", b"401 x", b"404 x", b"429 x", b"500 x", b"999 x", b"x")
    )
    packing = rng.choice(("", "", "", "gzip", "br", "bomb", "lie"))
    headers = [b"Content-Type: " + rng.choice((b"application/json", b"text/event-stream", b"\xff"))]
    if packing in ("gzip", "bomb"):
        data = gzip.compress(data if packing == "gzip" else b"0" * (1 << 22))
    if packing:
        headers.append(b"Content-Encoding: " + (b"br" if packing == "br" else b"gzip"))
    length = rng.choice((len(data), len(data), len(data) + 9, max(0, len(data) - 9), -1, 10**20))
    headers.append(rng.choice((b"Content-Length: %d" % length, b"Transfer-Encoding: chunked", b"X: y")))
    headers += rng.choice(
        ([], [], [b"Retry-After: 1e9"], [b"Location: /v1/models"], [b"X: " + b"a" * 200_000], [b"bad"])
    )
    return b"HTTP/1.1 " + status + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + data


class Hostile:
    """A server that answers each request with the next reply, whole or drop by drop."""

    def __init__(self) -> None:
        self.rng = random.Random()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self._socket.accept()[0],), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.recv(1 << 16)
            data = reply(self.rng)
            if self.rng.random() < 0.1:
                for index in range(min(len(data), 100)):
                    connection.sendall(data[index : index + 1])
                    time.sleep(0.02)
            elif self.rng.random() < 0.95:
                connection.sendall(data)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.close()


@pytest.mark.slow
def test_whatever_an_endpoint_does_a_question_is_answered_or_fails(hostile: Hostile) -> None:
    spec = ModelSpec(name="Far", ref="far", backend="openai", base_url=hostile.url)
    for seed, rng in rounds():
        hostile.rng = rng
        model = OpenAIModel(spec, Exchange(hostile.url, "sk-secret-key", LIMITS), sleep=lambda seconds: None)
        try:
            heard: list[str] = []
            hearing = Hearing(heard.append) if rng.random() < 0.5 else Hearing()
            done = model.complete("hello", Decoding(), seed=1, hearing=hearing)
            assert done.text.encode("utf-8") is not None and done.tokens >= 0
            assert "".join(heard) == (done.text if hearing.wrote else "")
        except RunError as error:
            assert "sk-secret-key" not in f"{error.message} {error.help}", f"seed {seed}"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        finally:
            model.close()


@pytest.mark.parametrize(
    ("head", "drop", "message"),
    [
        (b"", b"H", "no whole answer within 0.3 s"),
        (b"HTTP/1.1 200 OK\r\n", b"X", "no whole answer within 0.3 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", b" ", "no whole answer within 0.3 s"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" " * (1 << 17), r"the endpoint's answer is larger than 0\.0625 MiB"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"0" * (1 << 22)),
            b"",
            r"the endpoint's answer is larger than 0\.0625 MiB",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"[" * 50_000, b"", "nested too deep"),
    ],
)
def test_answers_without_end_come_to_one(head: bytes, drop: bytes, message: str) -> None:
    """A byte now and then, also in the headers, has held a run for ever; a bomb has filled the memory."""
    listening = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        with suppress(OSError), listening.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(head)
            while drop and not stop.wait(0.02):
                connection.sendall(drop)
            stop.wait(5)

    thread = threading.Thread(target=drip)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    model = OpenAIModel(ModelSpec(name="Far", ref="far", backend="openai", base_url=url), Exchange(url, None, LIMITS))
    with pytest.raises(RunError, match=message):
        model.complete("hello", Decoding(), seed=1)
    model.close()
    stop.set()
    thread.join()
    listening.close()
