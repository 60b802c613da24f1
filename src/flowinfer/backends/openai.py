"""Backend `openai`: any endpoint that speaks OpenAI's chat completions.

Text only: it cannot be a head of a `|` group.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rapidfuzz import process

from flowinfer.backends.base import TextCompletion, Turn
from flowinfer.backends.exchange import Broken, Exchange, Reply, Unreached
from flowinfer.backends.keys import Key, read_key
from flowinfer.errors import LoadError, RunError
from flowinfer.output.secrets import MASK, redacted
from flowinfer.results import FinishReason
from flowinfer.spec import Decoding, ModelSpec

_RETRIES = 4
_KNOCK_SECONDS = 10.0
_MOST_PAUSE_SECONDS = 60.0
"""Longest wait that an endpoint may ask for."""
_MOST_TOKENS = 10**9
_PASSING = {408, 409, 429, 500, 502, 503, 504}
_SHOWN_MODELS = 5
_CURE = "check base_url, model id and key"
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class OpenAIModel:
    """A model behind an endpoint; a `TextModel`."""

    def __init__(
        self,
        spec: ModelSpec,
        exchange: Exchange,
        *,
        key: Key | None = None,
        notes: tuple[str, ...] = (),
        pause_seconds: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = spec.name
        self.notes = notes
        """What the user should know about how it is reached."""
        self._spec = spec
        self._exchange = exchange
        self._key = key or Key(_CURE)
        self._pause_seconds = pause_seconds
        self._sleep = sleep
        self._listed: tuple[str, ...] | None = None

    def complete(self, prompt: str, decoding: Decoding, *, seed: int, turns: Sequence[Turn] = ()) -> TextCompletion:
        """Complete one prompt, trying again where the endpoint says that it may pass.

        Half surrogates, which JSON can write and no text holds, become U+FFFD.

        Raises:
            RunError: it failed for good.
        """
        start = time.perf_counter()
        body = self._post(self._body([*turns, Turn("user", prompt)], decoding, seed))
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            what = "nested too deep" if isinstance(error, RecursionError) else "not JSON"
            raise self._error(f"the endpoint's answer is {what}: {body[:200]}") from None
        try:
            choice = answer["choices"][0]
            text = _text(choice["message"]["content"])
            reason: FinishReason = "length" if choice.get("finish_reason") == "length" else "eos"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._error(f"the endpoint's answer has no choices: {body[:200]}") from error
        return TextCompletion(redacted(text), _tokens(answer), reason, time.perf_counter() - start)

    def close(self) -> None:
        """Close the connections."""
        self._exchange.close()

    def _body(self, turns: Sequence[Turn], decoding: Decoding, seed: int) -> dict[str, Any]:  # JSON
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        if self._spec.system is not None:
            messages.insert(0, {"role": "system", "content": self._spec.system})
        body: dict[str, Any] = {
            "model": self._spec.ref,
            "messages": messages,
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": seed,
        }
        return body | ({"stop": list(decoding.stop)} if decoding.stop else {})

    def _post(self, body: dict[str, Any]) -> str:  # JSON
        problem, help, asked_pause = "", _CURE, 0.0
        for attempt in range(_RETRIES + 1):
            if attempt:
                self._sleep(max(self._pause_seconds * 2 ** (attempt - 1), asked_pause))
            try:
                reply = self._exchange.ask("chat/completions", body)
            except Unreached as error:
                problem, help, asked_pause = (
                    str(error),
                    f"is the server at {_place(self._exchange)} still running?",
                    0.0,
                )
                continue
            except RunError as error:
                raise self._error(error.message, error.help) from error
            if reply.status == 200:
                return reply.text
            problem, help, asked_pause = _problem(reply), self._cure(reply), _pause(reply)
            if reply.status not in _PASSING:
                break
        raise self._error(problem, help)

    def _error(self, problem: str, help: str | None = None) -> RunError:
        return RunError(f"'{self.name}' at {self._exchange.url}: {problem}", help=help or _CURE)

    def _cure(self, reply: Reply) -> str:
        """Return what to look at after a refusal."""
        if 300 <= reply.status < 400:
            return f"base_url has moved: set it to where {reply.headers.get('location', 'it says')[:200]} is"
        if reply.status in (401, 403):
            return self._key.source
        if reply.status in (400, 404) and (ids := self._ids()) and self._spec.ref not in ids:
            near = process.extractOne(self._spec.ref, ids, score_cutoff=60)
            hint = f"did you mean '{near[0]}'? " if near else ""
            more = f" and {len(ids) - _SHOWN_MODELS} more" if len(ids) > _SHOWN_MODELS else ""
            listed = ", ".join(one[:80] for one in ids[:_SHOWN_MODELS]) + more
            return f"{hint}the endpoint does not list '{self._spec.ref}'; it lists {listed}"
        if reply.status == 404 and not self._exchange.url.path.endswith("/v1"):
            return "base_url probably lacks /v1 at its end"
        return _CURE

    def _ids(self) -> tuple[str, ...]:
        """Return the models that the endpoint lists, asked for once."""
        if self._listed is None:
            try:
                self._listed = _listed(self._exchange, _KNOCK_SECONDS).ids
            except Unreached:
                self._listed = ()
        return self._listed


@dataclass(frozen=True)
class _Listed:
    """What came of asking for the models of an endpoint."""

    status: int
    """0 where nothing came that could be read."""
    ids: tuple[str, ...] = ()


def knock(spec: ModelSpec, seconds: float) -> str:
    """Return whether an endpoint answers: 'yes', or why not. Nothing is asked of its model."""
    try:
        exchange, _ = _connect(spec)
    except LoadError as error:
        return error.message.removeprefix(f"model '{spec.name}': ")
    try:
        status = _listed(exchange, seconds).status
        return {0: f"answers strangely at {_place(exchange)}", 401: "refuses the key", 403: "refuses the key"}.get(
            status, "yes"
        )
    except Unreached as error:
        return f"nothing answers at {_place(exchange)}: {error}"
    finally:
        exchange.close()


def load(spec: ModelSpec, device: str, dtype: str = "auto") -> OpenAIModel:
    """Return a client for a model's endpoint; device and dtype are the endpoint's own affair.

    An endpoint that is not there stops a run at once, so that it does not fail its questions one after another.

    Raises:
        LoadError: no base_url or nothing there, or the key's environment variable is not set or holds no key.
    """
    del device, dtype
    exchange, key = _connect(spec)
    notes = (key.note,) if key.note else ()
    try:
        status = _listed(exchange, _KNOCK_SECONDS).status
    except Unreached as error:
        exchange.close()
        raise LoadError(
            f"model '{spec.name}': the endpoint {spec.base_url} cannot be reached: {error}",
            help=f"is the server running at {_place(exchange)}? check base_url",
        ) from error
    if status == 404 and not exchange.url.path.endswith("/v1"):
        below = _connect(spec, "/v1")[0]
        if _answers(below):
            exchange.close()
            note = f"'{spec.name}': base_url lacks /v1, going on with {below.url}"
            return OpenAIModel(spec, below, key=key, notes=(*notes, note))
        below.close()
    return OpenAIModel(spec, exchange, key=key, notes=notes)


def _connect(spec: ModelSpec, below: str = "") -> tuple[Exchange, Key]:
    if not spec.address:
        raise LoadError(f"model '{spec.name}': backend openai needs base_url", help='base_url="http://host:8000/v1"')
    if f"//{MASK}@" in spec.address or f"={MASK}" in spec.address:
        raise LoadError(
            f"model '{spec.name}': base_url '{spec.address}' has lost its secrets, as texts in run folders do",
            help="write them in again, or name a variable that holds the key: api_key_env",
        )
    key = read_key(spec, os.environ)
    try:
        exchange = Exchange(spec.address, key.value, below=below)
    except ValueError as error:
        raise LoadError(
            f"model '{spec.name}': base_url '{spec.base_url}' is no address: {error}",
            help='base_url="http://host:8000/v1"',
        ) from error
    return exchange, key


def _answers(exchange: Exchange) -> bool:
    try:
        return _listed(exchange, _KNOCK_SECONDS).status in (200, 401, 403)
    except Unreached:
        return False


def _listed(exchange: Exchange, seconds: float) -> _Listed:
    """Ask for an endpoint's models; not every endpoint lists them.

    Raises:
        Unreached: nothing is there.
    """
    try:
        reply = exchange.ask("models", seconds=seconds)
    except (Broken, RunError):
        return _Listed(0)  # it is there; whether it answers is seen at the first question
    try:
        data = json.loads(reply.text)["data"]
        return _Listed(reply.status, tuple(str(model["id"]) for model in data))
    except (ValueError, RecursionError, KeyError, TypeError):
        return _Listed(reply.status)


def _place(exchange: Exchange) -> str:
    url = exchange.url
    return f"{url.host}:{url.port or {'http': 80, 'https': 443}[url.scheme]}"


def _problem(reply: Reply) -> str:
    """Return a refusal's status with the endpoint's own words, if it says any."""
    try:
        said = json.loads(reply.text)["error"]
        text = str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, RecursionError, KeyError, TypeError):
        text = reply.text
    return f"HTTP {reply.status}: {text[:200]}".rstrip(": ")


def _pause(reply: Reply) -> float:
    """Return how many seconds an endpoint asks to wait, within reason; a date counts as none."""
    try:
        seconds = float(reply.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _MOST_PAUSE_SECONDS) if math.isfinite(seconds) else 0.0


def _text(content: Any) -> str:  # JSON
    """Return a message's text: a string, null, or a list of parts of which those with text count.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if "text" in part)
    if content is not None and not isinstance(content, str):
        raise TypeError("neither a text nor parts")
    return _HALF_CHARACTER.sub("\ufffd", content or "")


def _tokens(answer: Any) -> int:  # JSON
    """Return how many tokens an endpoint says it wrote; 0 where it says nothing usable."""
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= _MOST_TOKENS else 0
