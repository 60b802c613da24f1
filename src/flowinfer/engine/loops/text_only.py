"""Steps of text-only models: one request per row, several at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass

from flowinfer.backends.base import Hearing, StreamingModel, TextCompletion, TextModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.faults import reason
from flowinfer.engine.loops.sampling import row_key
from flowinfer.engine.loops.thinking import strip_thinking
from flowinfer.language.texts import whole_pairs
from flowinfer.planning.plan import Member, Step, members
from flowinfer.results import StepResult, Usage
from flowinfer.spec import Decoding, ModelSpec

_MILLION = 1_000_000


class Lanes:
    """Room for requests to one endpoint, from all steps together.

    Args:
        most: requests on their way at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.free = threading.Semaphore(most)
        """A request that nobody waits for any more takes room until it has ended."""
        self.told: set[str] = set()
        """Notes of the model that the user has heard."""


@dataclass(frozen=True)
class _Piece:
    """A part of a row's text."""

    row: Row
    text: str


@dataclass(frozen=True)
class _Answer:
    """What came of a row's request."""

    row: Row
    came: TextCompletion | BaseException
    seconds: float


@dataclass(frozen=True)
class _Request:
    """A row whose answer is awaited."""

    row: Row
    hearing: Hearing


@dataclass(frozen=True)
class TextDecoder:
    """Complete rows at an endpoint; a `Decoder`."""

    keeps_host_busy = False

    step: Step
    model: TextModel
    spec: ModelSpec
    lanes: Lanes
    observer: Observer
    keeps_thinking: bool

    @property
    def member(self) -> Member:
        """Return the one whose prompt is sent."""
        return next(members(self.step.source))

    def stream(self) -> TextStream:
        """Return a new run."""
        return TextStream(self)


class TextStream:
    """One run of requests; a `RowStream` whose turns wait for no answer, so that a slow one holds nothing up.

    Requests run in daemon threads, so that an interrupt need not wait for an endpoint that is slow to answer.
    """

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = decoder
        self._waiting: deque[Row] = deque()
        self._asked: dict[int, _Request] = {}
        """Rows that wait for their answers, by identity."""
        self._came = queue.SimpleQueue[_Piece | _Answer]()
        self.is_waiting = False

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._waiting) + len(self._asked)

    def add(self, row: Row) -> None:
        """Take a row, at any time."""
        self._waiting.append(row)

    def turn(self) -> list[Completion]:
        """Send the requests that there is room for; tell what has come; return the rows whose answers are whole."""
        ended: list[Completion | None] = []
        while not self._came.empty():
            came = self._came.get()
            if isinstance(came, _Piece):
                self._tell(came)
            else:
                ended.append(self._take(came))
        lanes = self._decoder.lanes
        while self._waiting and len(self._asked) < lanes.most and lanes.free.acquire(blocking=False):
            ended.append(self._ask(self._waiting.popleft()))
        found = [completion for completion in ended if completion]
        self.is_waiting = not found and bool(self._asked or self._waiting)
        return found

    def wait(self) -> None:
        """Wait for an answer, or for a part of one."""
        if self._asked:
            self._came.put(self._came.get())

    def end(self, row: Row) -> None:
        """Forget a row, and break its request off."""
        self._waiting = deque(other for other in self._waiting if other is not row)
        if (request := self._asked.pop(id(row), None)) is not None:
            request.hearing.end()

    def close(self) -> None:
        """Forget all rows."""
        self._waiting.clear()
        for request in self._asked.values():
            request.hearing.end()
        self._asked.clear()

    def _ask(self, row: Row) -> Completion | None:
        """Send a row's request, for which there is room; return how the row ended where that fails."""
        decoder, observer = self._decoder, self._decoder.observer
        try:
            prompt = row.prompts[decoder.member.node]
            observer.admitted(row.question_id, row.step)
            is_heard = observer.wants_text(row.question_id, row.step)
        except BaseException as error:  # what is not the row's is raised
            decoder.lanes.free.release()
            return Completion(row, None, reason(error))
        hearing = Hearing((lambda text: self._came.put(_Piece(row, text))) if is_heard else None)
        self._asked[id(row)] = _Request(row, hearing)
        threading.Thread(target=self._complete, args=(row, prompt, hearing), daemon=True).start()
        return None

    def _complete(self, row: Row, prompt: str, hearing: Hearing) -> None:
        decoding = row.decoding or self._decoder.step.decoding
        seed = row_key(decoding, row.noise_id or row.question_id, row.stream or row.step) & 0xFFFFFFFF
        start = time.perf_counter()
        try:
            came: TextCompletion | BaseException = self._completed(row, prompt, decoding, seed, hearing)
        except BaseException as error:
            came = error
        self._decoder.lanes.free.release()
        self._came.put(_Answer(row, came, time.perf_counter() - start))

    def _completed(self, row: Row, prompt: str, decoding: Decoding, seed: int, hearing: Hearing) -> TextCompletion:
        """Ask the model; it need not know of turns where there were none, nor of who hears it."""
        model = self._decoder.model
        if isinstance(model, StreamingModel):
            return model.complete(prompt, decoding, seed=seed, turns=row.turns, hearing=hearing)
        if row.turns:
            return model.complete(prompt, decoding, seed=seed, turns=row.turns)
        return model.complete(prompt, decoding, seed=seed)

    def _tell(self, piece: _Piece) -> None:
        if id(piece.row) in self._asked:
            self._decoder.observer.wrote(piece.row.question_id, piece.row.step, piece.text)

    def _take(self, answer: _Answer) -> Completion | None:
        """Return how a row ended; None where it was ended from outside."""
        row, decoder = answer.row, self._decoder
        if self._asked.pop(id(row), None) is None:
            return None
        try:
            if isinstance(answer.came, BaseException):
                raise answer.came
            self._tell_notes(answer.came)
            text = whole_pairs(answer.came.text)
            result = StepResult(
                step=row.step,
                text=text,
                passed_on=text if decoder.keeps_thinking else strip_thinking(text),
                prompts={row.member(decoder.member).node: row.prompts[decoder.member.node]},
                tokens=answer.came.tokens,
                finish_reason=answer.came.finish_reason,
                seconds=answer.seconds,
                usage=_usage(answer.came, decoder.spec),
            )
            decoder.observer.finished(row.question_id, result)
            return Completion(row, result)
        except BaseException as error:  # what is not the row's is raised
            return Completion(row, None, reason(error))

    def _tell_notes(self, came: TextCompletion) -> None:
        for note in came.notes:
            if note not in self._decoder.lanes.told:
                self._decoder.lanes.told.add(note)
                self._decoder.observer.notice(note)


def _usage(came: TextCompletion, spec: ModelSpec) -> Usage:
    """Return what a text has read and cost, by its model's prices of a million tokens."""
    prices = (spec.input_cost, spec.output_cost)
    cost = None
    if any(price is not None for price in prices) and (came.tokens or came.input_tokens):
        read, write = (price or 0.0 for price in prices)
        cached = read if spec.cached_cost is None else spec.cached_cost
        fresh = came.input_tokens - came.cached_tokens
        cost = (fresh * read + came.cached_tokens * cached + came.tokens * write) / _MILLION
    return Usage(input_tokens=came.input_tokens, cached_tokens=came.cached_tokens, cost=cost)
