"""An endpoint on this machine that answers as it is told to."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flowinfer.backends.exchange import Exchange
from flowinfer.backends.openai import OpenAIModel
from flowinfer.spec import ModelSpec
from tests.command import running

Reply = tuple[int, str | list[str]]
"""Status and body; a list is what a stream of events brings, piece by piece, before its connection is closed."""


class Stub(ThreadingHTTPServer):
    """Answer requests with prepared replies, the last one again and again, and keep what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.pauses: list[float] = []
        self.listed: dict[str, Reply] = {}
        """What GET answers, by path; anything else is not there."""
        self.extra: dict[str, str] = {}
        """Further headers of replies."""
        self.may_end = threading.Event()
        """Streams end only when it is set; it is, unless a test clears it."""
        self.may_end.set()
        self.broken_off = threading.Event()
        """Set once somebody has hung up on a stream."""

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
        self.answer(*(replies.pop(0) if len(replies) > 1 else replies[0]))

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.answer(*self.server.listed.get(self.path, (404, "not found")))

    def answer(self, status: int, text: str | list[str]) -> None:
        if isinstance(text, list):
            self.stream(status, text)
            return
        data = text.encode()
        self.send_response(status)
        for name, value in self.server.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, status: int, pieces: list[str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece.encode())
            self.wfile.flush()
        while not self.server.may_end.wait(0.01):
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                self.server.broken_off.set()
                return
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def said(text: str | None, *, reason: str = "stop", tokens: int | None = 7) -> Reply:
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}], **usage})


def event(text: str | None = None, **more: Any) -> str:
    """Return an event of a stream: a piece of the text, and whatever else."""
    choice = {"delta": {} if text is None else {"content": text}} | more
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


DONE = "data: [DONE]\n\n"


def connected(stub: Stub, *, clock: Callable[[], float] = lambda: 0.0, **options: Any) -> OpenAIModel:
    """Return a model at the endpoint that notes pauses and makes none."""
    spec = ModelSpec(name="Far", ref="org/far-7b", backend="openai", base_url=stub.url, **options)
    return OpenAIModel(spec, Exchange(stub.url), pause_seconds=0.0, sleep=stub.pauses.append, clock=clock)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running(Stub()) as server:
        yield server
