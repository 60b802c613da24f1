"""Steps of text-only models: one request per row, several at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass

from flowinfer.backends.base import TextCompletion, TextModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.faults import reason
from flowinfer.engine.loops.sampling import row_key
from flowinfer.engine.loops.thinking import strip_thinking
from flowinfer.language.texts import whole_pairs
from flowinfer.planning.plan import Step, members
from flowinfer.results import StepResult
from flowinfer.spec import Decoding

_CONCURRENT = 8


@dataclass(frozen=True)
class _Answer:
    """What came of a row's request."""

    row: Row
    came: TextCompletion | BaseException
    seconds: float


@dataclass(frozen=True)
class TextDecoder:
    """Complete rows at an endpoint; a `Decoder`."""

    keeps_host_busy = False

    step: Step
    model: TextModel
    observer: Observer
    keeps_thinking: bool

    @property
    def node(self) -> str:
        """Return the node whose prompt is sent."""
        return next(members(self.step.source)).node

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
        self._asked: dict[int, Row] = {}
        """Rows that wait for their answers, by identity."""
        self._num_requests = 0
        """Requests on their way; those of rows that were ended from outside cannot be taken back."""
        self._answers = queue.SimpleQueue[_Answer]()
        self.is_waiting = False

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._waiting) + len(self._asked)

    def add(self, row: Row) -> None:
        """Take a row, at any time."""
        self._waiting.append(row)

    def turn(self) -> list[Completion]:
        """Send the requests that there is room for; return the rows whose answers have come."""
        ended: list[Completion | None] = []
        while not self._answers.empty():
            ended.append(self._take(self._answers.get()))
        while self._waiting and self._num_requests < _CONCURRENT:
            ended.append(self._ask(self._waiting.popleft()))
        found = [completion for completion in ended if completion]
        self.is_waiting = not found and bool(self._asked)
        return found

    def wait(self) -> None:
        """Wait for an answer."""
        self._answers.put(self._answers.get())

    def end(self, row: Row) -> None:
        """Forget a row; what its request brings comes to nothing."""
        self._waiting = deque(other for other in self._waiting if other is not row)
        self._asked.pop(id(row), None)

    def close(self) -> None:
        """Forget all rows."""
        self._waiting.clear()
        self._asked.clear()

    def _ask(self, row: Row) -> Completion | None:
        """Send a row's request; return how the row ended where that fails."""
        decoder = self._decoder
        try:
            prompt = row.prompts[decoder.node]
            decoder.observer.admitted(row.question_id, row.step)
        except BaseException as error:  # what is not the row's is raised
            return Completion(row, None, reason(error))
        self._asked[id(row)] = row
        self._num_requests += 1
        threading.Thread(target=self._complete, args=(row, prompt), daemon=True).start()
        return None

    def _complete(self, row: Row, prompt: str) -> None:
        decoding = row.decoding or self._decoder.step.decoding
        seed = row_key(decoding, row.noise_id or row.question_id, row.step) & 0xFFFFFFFF
        start = time.perf_counter()
        try:
            came: TextCompletion | BaseException = self._completed(row, prompt, decoding, seed)
        except BaseException as error:
            came = error
        self._answers.put(_Answer(row, came, time.perf_counter() - start))

    def _completed(self, row: Row, prompt: str, decoding: Decoding, seed: int) -> TextCompletion:
        model = self._decoder.model
        if row.turns:  # a backend need not know of turns where there were none
            return model.complete(prompt, decoding, seed=seed, turns=row.turns)
        return model.complete(prompt, decoding, seed=seed)

    def _take(self, answer: _Answer) -> Completion | None:
        """Return how a row ended; None where it was ended from outside."""
        self._num_requests -= 1
        row, decoder = answer.row, self._decoder
        if self._asked.pop(id(row), None) is None:
            return None
        try:
            if isinstance(answer.came, BaseException):
                raise answer.came
            text = whole_pairs(answer.came.text)
            result = StepResult(
                step=row.step,
                text=text,
                passed_on=text if decoder.keeps_thinking else strip_thinking(text),
                prompts={decoder.node: row.prompts[decoder.node]},
                tokens=answer.came.tokens,
                finish_reason=answer.came.finish_reason,
                seconds=answer.seconds,
            )
            decoder.observer.finished(row.question_id, result)
            return Completion(row, result)
        except BaseException as error:  # what is not the row's is raised
            return Completion(row, None, reason(error))
