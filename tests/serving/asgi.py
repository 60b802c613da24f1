"""A client of the server inside the suite's own process: no sockets, every message of both sides in a test's hands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Return the error of OpenAI's form."""
        found: dict[str, Any] = self.data["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found

    @property
    def events(self) -> list[Any]:
        """Return the data of a stream's events; the last one is "[DONE]" where it ended well."""
        return events_of(self.body.decode())


def events_of(text: str) -> list[Any]:
    """Return the data of server-sent events, comments left out."""
    found: list[Any] = []
    for block in text.split("\n\n"):
        if block.startswith("data: "):
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
        else:
            assert not block or block.startswith(":")
    return found


@dataclass
class Call:
    """One request on its way."""

    app: ASGIApp
    scope: dict[str, Any]
    body: bytes
    is_whole: bool = True
    """Whether all of its body is sent."""
    sent: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    """What the server sends; None at its end."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a client that breaks off."""
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared by a client that does not read."""

    def start(self) -> asyncio.Task[None]:
        """Begin."""
        self.reads.set()
        messages = [{"type": "http.request", "body": self.body, "more_body": not self.is_whole}]

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await self.reads.wait()
            self.sent.put_nowait(message)

        async def run() -> None:
            try:
                await self.app(self.scope, receive, send)  # type: ignore[arg-type]  # plain dicts
            finally:
                self.sent.put_nowait(None)

        return asyncio.create_task(run())

    async def messages(self) -> AsyncIterator[Any]:
        """Yield what the server sends."""
        while (message := await self.sent.get()) is not None:
            yield message


def call(
    app: ASGIApp,
    method: str,
    path: str,
    body: Any = b"",
    *,
    headers: Mapping[str, str] | None = None,
    is_whole: bool = True,
) -> Call:
    """Return a request; a body that is not bytes is sent as JSON."""
    path, _, query = path.partition("?")
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    return Call(app, scope, raw, is_whole)


async def ask(app: ASGIApp, method: str, path: str, body: Any = b"", **options: Any) -> Reply:
    """Send a request and read the whole reply."""
    made = call(app, method, path, body, **options)
    task = made.start()
    status, headers, parts = 0, {}, []
    async for message in made.messages():
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            parts.append(message["body"])
    await task
    return Reply(status, headers, b"".join(parts))
