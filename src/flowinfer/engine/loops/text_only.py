"""Steps of text-only models: one request per row, several at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from flowinfer.backends.base import TextModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.faults import reason
from flowinfer.engine.loops.sampling import row_key
from flowinfer.engine.loops.thinking import strip_thinking
from flowinfer.language.texts import whole_pairs
from flowinfer.planning.plan import Step, members
from flowinfer.results import StepResult

_CONCURRENT = 8


class TextDecoder:
    """Complete rows at an endpoint; a `Decoder`."""

    def __init__(self, step: Step, model: TextModel, *, observer: Observer, keeps_thinking: bool) -> None:
        self._step = step
        self._model = model
        self._observer = observer
        self._keeps_thinking = keeps_thinking
        self._node = next(members(step.source)).node

    def decode(self, rows: Iterable[Row]) -> Iterator[Completion]:
        """Complete rows, yielding each as it ends: a slow one holds nothing up.

        Requests run in daemon threads, so that an interrupt need not wait for an endpoint that is slow to answer.
        """
        waiting, ended = iter(rows), queue.SimpleQueue[Completion | BaseException]()
        running = 0
        while True:
            for row in islice(waiting, _CONCURRENT - running):
                running += 1
                threading.Thread(target=self._answer, args=(row, ended), daemon=True).start()
            if not running:
                return
            done = ended.get()
            running -= 1
            if isinstance(done, BaseException):
                raise done
            yield done

    def _answer(self, row: Row, ended: queue.SimpleQueue[Completion | BaseException]) -> None:
        """Put how a row ended: a fault is its own, unless it is the run's, which the reader sees raised."""
        try:
            ended.put(self._complete(row))
        except BaseException as error:
            try:
                ended.put(Completion(row, None, reason(error)))
            except BaseException as of_run:
                ended.put(of_run)

    def _complete(self, row: Row) -> Completion:
        prompt = row.prompts[self._node]
        self._observer.admitted(row.question_id, row.step)
        decoding = row.decoding or self._step.decoding
        seed = row_key(decoding, row.question_id, row.step) & 0xFFFFFFFF
        start = time.perf_counter()
        done = self._model.complete(prompt, decoding, seed=seed)
        text = whole_pairs(done.text)
        result = StepResult(
            step=self._step.id,
            text=text,
            passed_on=text if self._keeps_thinking else strip_thinking(text),
            prompts={self._node: prompt},
            tokens=done.tokens,
            finish_reason=done.finish_reason,
            seconds=time.perf_counter() - start,
        )
        self._observer.finished(row.question_id, result)
        return Completion(row, result)
