"""Questions put to a running server: the same traces as here, several at a time."""

from __future__ import annotations

import json
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from flowinfer.backends.exchange import speaks_otherwise, wanted_pause
from flowinfer.errors import FlowInferError, RunError, UsageError
from flowinfer.planning.plain import fingerprint, placed_as
from flowinfer.planning.plan import Plan
from flowinfer.results import Question, Trace

_MOST_AT_ONCE = 32
_RETRIES = 8
_CONNECT_SECONDS = 20.0
_PAUSE_SECONDS = 1.0
"""Where a server that is busy does not say how long."""
_ALIVE: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
        if hasattr(socket, name)
    ),
]
"""Options of a connection that may be quiet for long: the system asks after two minutes whether the other side is still
there. After a sleep of either machine it may not be, and nothing would ever come."""
_PASSING = (429, 503)
_TAG = re.compile(r"<[^>]*>")
DIFFERENT = "its steps, options or models differ"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    """Such as http://host:8000."""
    key: str | None = None
    model: str | None = None
    """Name of the flow there; its own if not given."""

    def __repr__(self) -> str:
        return f"Server({self.url!r})"


def traces(
    server: Server,
    plan: Plan,
    questions: Sequence[Question],
    question_text: Callable[[Question], str],
    *,
    at_once: int | None = None,
) -> Iterator[Trace]:
    """Yield one trace per question as the server answers them.

    Args:
        server: that answers.
        plan: what it must answer by.
        questions: what to ask.
        question_text: what fills {question}.
        at_once: questions on their way at once.
    Raises:
        UsageError: the server has no such flow, or another of its name; or it wants another key.
        RunError: it cannot be reached.
    """
    asking: dict[str, Any] = {"model": server.model or plan.flow, "fingerprint": fingerprint(plan)}
    is_over, heard = threading.Event(), queue.SimpleQueue[Trace | BaseException | None]()
    left = queue.SimpleQueue[Question]()
    for question in questions:
        left.put(question)

    def ask_on(client: httpx.Client) -> None:
        """Ask one question after the other, as one of several threads that an interrupt need not wait for."""
        try:
            while not is_over.is_set():
                question = left.get_nowait()
                item = question.model_dump(mode="json")
                heard.put(_ask(client, question.id, asking | {"question": item, "text": question_text(question)}))
        except queue.Empty:
            pass
        except BaseException as error:  # handed to who waits for traces
            heard.put(error)
        heard.put(None)

    num_asking = min(at_once or _MOST_AT_ONCE, len(questions))
    failure: BaseException | None = None
    with open_client(server) as client:
        for _ in range(num_asking):
            threading.Thread(target=ask_on, args=(client,), daemon=True).start()
        try:
            while num_asking:
                match heard.get():
                    case None:
                        num_asking -= 1
                    case Trace() as trace:
                        yield trace
                    case error:
                        is_over.set()  # what was answered meanwhile still counts
                        failure = failure or error
        finally:
            is_over.set()
    if failure is not None:
        raise failure


def placed(server: Server, plan: Plan) -> Plan:
    """Return a plan as a server has placed it, if it would answer by it.

    Raises:
        UsageError: it has no such flow, or another of its name; or it wants another key.
        RunError: it cannot be reached, or does not say.
    """
    with open_client(server) as client:
        name = server.model or plan.flow
        said = asked(client, "GET", f"/v1/models/{quote(name, safe='')}")
        try:
            there = said["flowinfer"]["plan"]
            if there["fingerprint"] != fingerprint(plan):
                raise refusal(client, 409, f"the flow that is served as '{name}' is another: {DIFFERENT}")
            return placed_as(plan, there)
        except (KeyError, TypeError, AttributeError, ValidationError):
            raise RunError(f"the server at {client.base_url} is no flowinfer of this version") from None


def open_client(server: Server) -> httpx.Client:
    """Return a client that shows the server's key and waits for answers as long as they take."""
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    connections = httpx.HTTPTransport(socket_options=_ALIVE)
    mounts = {"all://": connections}  # proxies of the environment are more specific, and go before
    return httpx.Client(base_url=server.url.rstrip("/"), headers=headers, timeout=timeout, mounts=mounts)


@contextmanager
def reaching(client: httpx.Client, cure: str | None = "is it running?") -> Iterator[None]:
    """Tell of a server that cannot be reached, or breaks off, in the user's words.

    Raises:
        RunError: it is so.
    """
    try:
        yield
    except httpx.HTTPError as error:
        cause = str(error) or type(error).__name__
        if speaks_otherwise(error):
            told = f"what listens at {client.base_url} does not speak HTTP"
            raise RunError(told, help='a head\'s port is the device="HOST:PORT" of a model') from None
        raise RunError(f"the server at {client.base_url} cannot be reached: {cause}", help=cure) from None


def asked(client: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # JSON
    """Return what a server answers.

    Raises:
        UsageError: it refuses what was asked, or who asks.
        RunError: it cannot be reached, or fails.
    """
    with reaching(client):
        reply = client.request(method, path, json=body)
    if reply.status_code != 200:
        raise refusal(client, reply.status_code, message_of(reply))
    try:
        return reply.json()
    except ValueError:
        raise RunError(f"the server at {client.base_url} answers no JSON", help="is it flowinfer's?") from None


def refusal(client: httpx.Client, status: int, message: str) -> FlowInferError:
    """Return the error that tells of a server's refusal."""
    cures = {
        401: "--api-key-env",
        404: "--model NAME names a flow there",
        409: "serve the same flow with the same zoo and settings",
    }
    if status < 500:
        return UsageError(f"the server at {client.base_url} refuses: {message}", help=cures.get(status))
    return RunError(f"the server at {client.base_url} fails: {message}")


def _ask(client: httpx.Client, question_id: str, body: Mapping[str, Any]) -> Trace:
    """Put one question; try again where the server says that it is busy."""
    for attempt in range(_RETRIES + 1):
        with reaching(client, cure=None):  # the run says how to go on
            reply = client.post("/flowinfer/traces", json=body)
        if reply.status_code not in _PASSING or attempt == _RETRIES:
            break
        pause = wanted_pause(reply.headers.get("retry-after", ""), time.time())
        time.sleep(_PAUSE_SECONDS if pause is None else pause)
    if reply.status_code == 200:
        try:
            trace = Trace.model_validate_json(reply.content)
        except ValidationError as error:
            cure = "are both of one version of flowinfer?"
            raise RunError(f"the server's answer is no trace: {error.errors()[0]['msg']}", help=cure) from None
        return trace.model_copy(update={"question_id": question_id})
    message = message_of(reply)
    if reply.status_code in (401, 404, 409):
        raise refusal(client, reply.status_code, message)
    return Trace(question_id=question_id, answer="", finish_reason="error", seconds=0.0, steps=(), error=message)


def message_of(reply: httpx.Response) -> str:
    """Return why a server has refused or failed."""
    try:
        return str(reply.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return f"HTTP {reply.status_code}: {' '.join(_TAG.sub(' ', reply.text).split())[:200]}"
