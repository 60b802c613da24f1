"""Questions put to a running server: the same traces as here, several at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError

from flowinfer.errors import RunError, UsageError
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import Plan
from flowinfer.results import Question, Trace

_MOST_AT_ONCE = 32
_RETRIES = 8
_CONNECT_SECONDS = 20.0
_MOST_PAUSE_SECONDS = 60.0
_PASSING = (429, 503)


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
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    asking: dict[str, Any] = {"model": server.model or plan.flow, "fingerprint": fingerprint(plan)}
    with httpx.Client(base_url=server.url.rstrip("/"), headers=headers, timeout=timeout) as client:

        def ask(question: Question) -> Trace:
            item = question.model_dump(mode="json")
            return _ask(client, question.id, asking | {"question": item, "text": question_text(question)})

        pool = ThreadPoolExecutor(at_once or _MOST_AT_ONCE)
        try:
            for done in as_completed([pool.submit(ask, question) for question in questions]):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ask(client: httpx.Client, question_id: str, body: Mapping[str, Any]) -> Trace:
    """Put one question; try again where the server says that it is busy."""
    for attempt in range(_RETRIES + 1):
        try:
            reply = client.post("/flowinfer/traces", json=body)
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
            raise RunError(
                f"the server at {client.base_url} cannot be reached: {cause}", help="is it running?"
            ) from None
        if reply.status_code not in _PASSING or attempt == _RETRIES:
            break
        time.sleep(_pause(reply.headers.get("retry-after", "")))
    if reply.status_code == 200:
        try:
            trace = Trace.model_validate_json(reply.content)
        except ValidationError as error:
            cure = "are both of one version of flowinfer?"
            raise RunError(f"the server's answer is no trace: {error.errors()[0]['msg']}", help=cure) from None
        return trace.model_copy(update={"question_id": question_id})
    message = _message(reply)
    if reply.status_code in (401, 404, 409):
        cures = {401: "--api-key-env", 404: "--model NAME names a flow there"}
        raise UsageError(
            f"the server at {client.base_url} refuses: {message}",
            help=cures.get(reply.status_code, "serve the same flow with the same zoo and settings"),
        )
    return Trace(question_id=question_id, answer="", finish_reason="error", seconds=0.0, error=message)


def _pause(asked: str) -> float:
    """Return the seconds that a server asks to wait."""
    return min(float(asked), _MOST_PAUSE_SECONDS) if asked.isascii() and asked.isdigit() else 1.0


def _message(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return f"HTTP {reply.status_code}: {reply.text[:200]}"
