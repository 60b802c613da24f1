"""The server as an ASGI application: addresses, keys, bodies, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flowinfer.drawing.svg import render
from flowinfer.serving import bodies, forms
from flowinfer.serving.answers import Answering, EventStream
from flowinfer.serving.desk import Desk
from flowinfer.serving.events import Listener
from flowinfer.serving.openapi import document
from flowinfer.serving.page.render import page
from flowinfer.serving.problems import Problem
from flowinfer.serving.samples import Samples

_OPEN = ("/", "/health", "/ready")
"""What is shown without a key."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")
_HEARTBEAT_SECONDS = 10.0

Read = Callable[[bytes, bodies.Find], bodies.Wish]


def application(desk: Desk, cors_origins: Sequence[str] = (), samples: Samples | None = None) -> ASGIApp:
    """Return the server's application.

    Args:
        desk: its state.
        cors_origins: pages of other servers that may use it in a browser.
        samples: a run that the page shows.
    """
    views = _Views(desk, samples)
    routes = [
        Route("/", views.page),
        Route("/health", views.health),
        Route("/ready", views.ready),
        Route("/metrics", views.metrics),
        Route("/openapi.json", views.openapi),
        Route("/v1/models", views.models),
        Route("/v1/models/{name:path}", views.model),
        Route("/v1/chat/completions", views.chat, methods=["POST"]),
        Route("/v1/completions", views.completions, methods=["POST"]),
        Route("/flowinfer/chat", views.told, methods=["POST"]),
        Route("/flowinfer/events", views.events),
        Route("/flowinfer/traces", views.traces, methods=["POST"]),
        Route("/flowinfer/run", views.run),
        Route("/flowinfer/run/samples", views.sample),
        Route("/flowinfer/flows/{name:path}.svg", views.drawing),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    made = Starlette(
        routes=routes,
        middleware=[*([cors] if cors_origins else []), Middleware(_Keys, desk=desk)],
        exception_handlers={Problem: _problem, HTTPException: _http_problem, ClientDisconnect: _gone, Exception: _bug},
    )
    made.router.redirect_slashes = False
    return made


class _Keys:
    """Let nobody in without a key, where there are keys."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the key, then go on."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            headers = [value for name, value in scope["headers"] if name == b"authorization"]
            try:
                self._desk.check_key(headers[0].decode("latin-1") if headers else "")
            except Problem as problem:
                self._desk.metrics.refused(problem.status)
                await _response(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Views:
    """What is behind each address."""

    def __init__(self, desk: Desk, samples: Samples | None) -> None:
        self._desk, self._service, self._samples = desk, desk.service, samples

    async def page(self, request: Request) -> Response:
        """Show the page."""
        headers = {
            "Content-Security-Policy": page().policy,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
        }
        return HTMLResponse(page().html, headers=headers)

    async def run(self, request: Request) -> Response:
        """List the samples of the run that is shown; null where none is."""
        return JSONResponse(None if self._samples is None else self._samples.listed())

    async def sample(self, request: Request) -> Response:
        """Show one of them whole."""
        named = request.query_params.get("id", "")
        record = None if self._samples is None else self._samples.record(named)
        if record is None:
            raise Problem(404, f"there is no sample '{named[:200]}'")
        return JSONResponse(record.model_dump(mode="json"))

    async def health(self, request: Request) -> Response:
        """Say whether the engine is alive."""
        problem = self._service.loading.problem
        if problem is not None:
            return JSONResponse({"status": "failed", "reason": problem.message}, 503)
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Say whether questions are answered now, and how far the models are."""
        said = self._desk.state()
        return JSONResponse(said, 200 if said["status"] == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """Show what was counted."""
        return Response(self._desk.metrics.text(), media_type=self._desk.metrics.content_type)

    async def openapi(self, request: Request) -> Response:
        """Describe the addresses."""
        return JSONResponse(document(list(self._service.flows)))

    async def models(self, request: Request) -> Response:
        """List the flows."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._service.flows]})

    async def model(self, request: Request) -> Response:
        """Describe one flow."""
        return JSONResponse(self._model(request.path_params["name"]))

    async def drawing(self, request: Request) -> Response:
        """Draw one flow."""
        served = self._desk.flow_named(request.path_params["name"])
        assert served.flow is not None, "a server knows its flows as they were checked"
        is_tall = request.query_params.get("direction") == "down"
        return Response(render(served.flow, is_tall=is_tall), media_type="image/svg+xml")

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a chat's next turn."""
        return await self._answering(bodies.read_chat, request)

    async def completions(self, request: Request) -> ASGIApp:
        """Answer prompts."""
        return await self._answering(bodies.read_completion, request)

    async def traces(self, request: Request) -> ASGIApp:
        """Answer an item of a data set; tell of all that was done for it."""
        return await self._answering(bodies.read_trace, request)

    async def told(self, request: Request) -> ASGIApp:
        """Answer a chat's next turn; tell of all that happens meanwhile."""
        return await self._answering(bodies.read_told, request)

    async def events(self, request: Request) -> ASGIApp:
        """Tell what flows do, as they do it."""
        return _Listening(self._desk)

    def _model(self, name: str) -> dict[str, Any]:
        flow = self._desk.flow_named(name)
        return forms.model(flow, self._desk.created, self._service.context_length(flow))

    async def _answering(self, read: Read, request: Request) -> Answering:
        try:
            wish = read(await self._body(request), self._desk.flow_named)
        except Problem as problem:
            self._desk.metrics.refused(problem.status)
            raise
        given = request.headers.get("x-request-id", "")
        return Answering(self._desk, wish, given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)

    async def _body(self, request: Request) -> bytes:
        """Return a request's body.

        Raises:
            Problem: nothing can be answered now, or the body is too large or does not come.
        """
        self._desk.check_ready()
        packing = request.headers.get("content-encoding", "identity")
        if packing != "identity":
            raise Problem(415, f"a body with Content-Encoding '{packing[:50]}' is not read; send it as it is")
        limits, body = self._desk.limits, bytearray()
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limits.body_bytes:
                        raise Problem(413, f"the body is larger than {limits.body_bytes} bytes", code="body_too_large")
        except TimeoutError:
            raise Problem(408, f"the body did not come within {limits.body_seconds:g} s", code="timeout") from None
        return bytes(body)


class _Listening:
    """Send events to one listener; an ASGI application."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._events, self._listener = desk, desk.events, Listener()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the listener is gone or there are no more."""
        self._events.add(self._listener)
        watch = asyncio.create_task(self._watch(receive))
        stream = EventStream(send, {})
        try:
            await stream.begin()
            await stream.comment("listening")
            if self._desk.service.loading.state == "loading":
                await stream.data({"event": "models", **self._desk.state()})
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT_SECONDS):
                        event = await self._listener.get()
                except TimeoutError:
                    await stream.comment("listening")
                    continue
                if event is None:
                    break
                await stream.data(event)
            await stream.end()
        except TimeoutError:  # it does not read
            return
        finally:
            watch.cancel()
            self._events.remove(self._listener)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._listener.put(None)


def _response(problem: Problem) -> JSONResponse:
    return JSONResponse(problem.to_json(), problem.status, headers=problem.headers)


async def _problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem), "registered for it"
    return _response(problem)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it"
    what = {404: f"there is nothing at {request.url.path[:200]}", 405: f"{request.method} is not allowed here"}
    headers: Mapping[str, str] = error.headers or {}
    return _response(Problem(error.status_code, what.get(error.status_code, error.detail), headers=headers))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> Response:
    return _response(Problem(500, "an error of the server's own; its log says more"))
