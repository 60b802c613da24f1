"""Backend `openai`: any endpoint that speaks OpenAI's chat completions.

Text only: it cannot be a head of a `|` group.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz import process

from flowinfer.backends.base import Hearing, TextCompletion, Turn
from flowinfer.backends.completions import Answer, Answering, BrokenOff, Unusable
from flowinfer.backends.exchange import Exchange, Reply, Unreached
from flowinfer.backends.keys import Key
from flowinfer.backends.reaching import KNOCK_SECONDS, answers, connect, listed, place
from flowinfer.backends.wording import Wording
from flowinfer.errors import LoadError, RunError
from flowinfer.spec import Decoding, ModelSpec

_RETRIES = 4
_PASSING = {408, 409, 429, 500, 502, 503, 504}
_SHOWN_MODELS = 5
_CURE = "check base_url, model id and key"


@dataclass(frozen=True)
class _Trouble:
    """Why there is no answer."""

    message: str
    help: str | None = None
    may_pass: bool = False
    pause: float = 0.0
    """Seconds that the endpoint asks to wait."""


class OpenAIModel:
    """A model behind an endpoint; a `StreamingModel`.

    Args:
        spec: what the zoo or flow says of it.
        exchange: its connections.
        key: what is said where it refuses the key.
        notes: what the user should know about how it is reached.
        pause_seconds: before the second try; doubled before each further one.
        sleep: waits so long; if not given, no longer than somebody waits for the answer.
        clock: seconds since 1970.
    """

    streams = True

    def __init__(
        self,
        spec: ModelSpec,
        exchange: Exchange,
        *,
        key: Key | None = None,
        notes: tuple[str, ...] = (),
        pause_seconds: float = 0.5,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = spec.name
        self.notes = notes
        """What the user should know about how it is reached."""
        self._spec = spec
        self._exchange = exchange
        self._key = key or Key(_CURE)
        self._pause_seconds = pause_seconds
        self._sleep, self._clock = sleep, clock
        self._wording = Wording(spec)
        self._listed: tuple[str, ...] | None = None

    def complete(
        self,
        prompt: str,
        decoding: Decoding,
        *,
        seed: int,
        turns: Sequence[Turn] = (),
        hearing: Hearing | None = None,
    ) -> TextCompletion:
        """Complete one prompt, trying again where the endpoint says that it may pass.

        Half surrogates, which JSON can write and no text holds, become U+FFFD. A stop text that the endpoint has not
        heeded ends the text all the same.

        Raises:
            RunError: it failed for good, or is wanted no more.
        """
        start = time.perf_counter()
        answer = self._answer([*turns, Turn("user", prompt)], decoding, seed, hearing or Hearing())
        found = [answer.text.find(stop, _end_of_thought(answer.text)) for stop in decoding.stop if stop]
        cut = min((at for at in found if at >= 0), default=None)
        return TextCompletion(
            answer.text[:cut],
            answer.tokens,
            answer.why if cut is None else "stop",
            time.perf_counter() - start,
            answer.input_tokens,
            answer.cached_tokens,
            self._wording.notes,
        )

    def close(self) -> None:
        """Close the connections."""
        self._exchange.close()

    def _answer(self, turns: Sequence[Turn], decoding: Decoding, seed: int, hearing: Hearing) -> Answer:
        """Ask until there is an answer, or no hope of one."""
        trouble = _Trouble("")
        for attempt in range(_RETRIES + 1):
            if attempt:
                self._pause(max(self._pause_seconds * 2 ** (attempt - 1), trouble.pause), hearing)
            if hearing.is_over:
                raise self._error("wanted no more")
            answering = Answering(hearing.wrote)
            came = self._ask(turns, decoding, seed, hearing, answering)
            if isinstance(came, Answer):
                return came
            trouble = came
            if not trouble.may_pass or answering.num_told:  # who has heard a part can hear no other answer
                break
        raise self._error(trouble.message, trouble.help)

    def _ask(
        self, turns: Sequence[Turn], decoding: Decoding, seed: int, hearing: Hearing, answering: Answering
    ) -> Answer | _Trouble:
        """Ask once, without what the endpoint turns out not to take."""
        is_there = f"is the server at {place(self._exchange)} still running?"
        while True:
            body = self._wording.body(turns, decoding, seed, streams=hearing.wrote is not None)
            try:
                reply = self._exchange.ask("chat/completions", body, hearing=hearing, feed=answering.feed)
                if reply.status == 200:
                    return answering.streamed() if reply.is_stream else answering.whole(reply.text)
            except BrokenOff as error:
                return _Trouble(str(error), is_there, may_pass=True)
            except Unusable as error:
                return _Trouble(str(error), may_pass=error.status in _PASSING)
            except Unreached as error:
                told = f"the endpoint's stream broke off after {answering.num_come} characters: "
                return _Trouble((told if answering.num_told else "") + str(error), is_there, may_pass=True)
            except RunError as error:
                return _Trouble(error.message, error.help)
            named = _field(reply, "param")
            if reply.status not in (400, 422) or not self._wording.learn(body, reply.text, named):
                return _Trouble(
                    _problem(reply),
                    self._cure(reply),
                    may_pass=reply.status in _PASSING,
                    pause=reply.pause(self._clock()),
                )

    def _pause(self, seconds: float, hearing: Hearing) -> None:
        if self._sleep is not None:
            self._sleep(seconds)
        else:
            hearing.pause(seconds)

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
                self._listed = listed(self._exchange, KNOCK_SECONDS).ids
            except Unreached:
                self._listed = ()
        return self._listed


def load(spec: ModelSpec, device: str, dtype: str = "auto") -> OpenAIModel:
    """Return a client for a model's endpoint; device and dtype are the endpoint's own affair.

    An endpoint that is not there stops a run at once, so that it does not fail its questions one after another.

    Raises:
        LoadError: no base_url or nothing there, or the key's environment variable is not set or holds no key.
    """
    del device, dtype
    exchange, key = connect(spec)
    notes = (key.note,) if key.note else ()
    try:
        status = listed(exchange, KNOCK_SECONDS).status
    except Unreached as error:
        exchange.close()
        raise LoadError(
            f"model '{spec.name}': the endpoint {spec.base_url} cannot be reached: {error}",
            help=f"is the server running at {place(exchange)}? check base_url",
        ) from error
    if status == 404 and not exchange.url.path.endswith("/v1"):
        below = connect(spec, "/v1")[0]
        if answers(below):
            exchange.close()
            note = f"'{spec.name}': base_url lacks /v1, going on with {below.url}"
            return OpenAIModel(spec, below, key=key, notes=(*notes, note))
        below.close()
    return OpenAIModel(spec, exchange, key=key, notes=notes)


def _problem(reply: Reply) -> str:
    """Return a refusal's status with the endpoint's own words, if it says any, in one line."""
    text = " ".join((_field(reply, "message") or reply.text[:1000]).split())
    return f"HTTP {reply.status}: {text[:200]}".rstrip(": ")


def _field(reply: Reply, name: Literal["message", "param"]) -> str | None:
    """Return what an error says in a field of OpenAI's form; an error that is a text is its message."""
    try:
        said = json.loads(reply.text)["error"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    found = said.get(name) if isinstance(said, dict) else said if name == "message" else None
    return None if found is None else str(found)


def _end_of_thought(text: str) -> int:
    """Return where an answer begins that may have a thought before it: a stop text in that ends nothing."""
    return max(0, text.find("</think>")) if text.startswith("<think>") else 0
