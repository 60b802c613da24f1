"""The host's side of a loop on devices: who is admitted, what the device has emitted, who has ended.

The devices run a few steps ahead; the host reads their outcome while the next ones run, so that it has to wait at most
once per `_STEPS` steps (or once per step, where few rows are listened to), and not at all where it has other loops to
look after. A row that the host ends (a stop text, nobody who wants it any more) is ignored from there on.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from flowinfer.engine.base import Completion, Row
from flowinfer.engine.caches.pages import ChainedCache, PagedCache, PagesShort
from flowinfer.engine.caches.tiles import tile_for
from flowinfer.engine.loops.batch import Batch, BatchRow, Pending
from flowinfer.engine.loops.choosing import Decision
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.lockstep import LockStep, StepForm
from flowinfer.engine.loops.outcome import RING
from flowinfer.engine.loops.prompts import PromptLogits, PromptReader, Reading
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.side import Side

_STEPS = RING // 2
"""Steps that the device is given at once."""
_FEW = 8
"""Rows up to which somebody who listens hears every token as soon as it is there: the host has time for it."""
_PATIENCE = 16
"""Most steps that a row waits for others to come in with it; before that, one in so many of the batch must come."""
_MOST_PENDING = 2
"""Times that it is given steps before the host reads the first ones."""
STARTED_AT_ONCE = 16
"""Rows whose first tokens are chosen together beside the pages, which have most of the memory."""


@dataclass(frozen=True)
class Admitted:
    """Rows in the batch whose prompts are being read; devices are given no step meanwhile."""

    rows: list[BatchRow]
    reading: Reading
    given_up: list[BatchRow] = field(default_factory=list)
    """Rows that nobody wants any more: what is left of their prompts would be written into pages of others."""

    def give_up(self, row: BatchRow) -> bool:
        """Let a row be dropped once all is queued; return whether it is one of these."""
        if row in self.rows:
            self.rows.remove(row)
            self.given_up.append(row)
        return row in self.given_up


class PackedStream:
    """One run of a packed decoder, brought on a turn at a time; a `RowStream`."""

    def __init__(
        self,
        heads: Heads,
        readers: Sequence[PromptReader],
        caches: Sequence[PagedCache | ChainedCache],
        lock: LockStep,
        side: Side,
    ) -> None:
        self._heads, self._readers, self._caches, self._lock, self._side = heads, readers, caches, lock, side
        self._waiting: list[tuple[int, int, Row]] = []
        """A heap of (minus the length of the longest prompt, number, row)."""
        self._num_added = 0
        self._again: deque[LiveRow] = deque()
        """Rows that lost their pages and go on when there are some."""
        self._batch = Batch(heads, caches, lock)
        self._admitted: Admitted | None = None
        self._pending: deque[Pending] = deque()
        self._read_at = time.perf_counter()
        self._admitted_at = lock.num_steps
        self.is_waiting = False

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        num_given_up = len(self._admitted.given_up) if self._admitted is not None else 0
        return len(self._waiting) + len(self._again) + len(self._batch.live) - num_given_up

    def add(self, row: Row) -> None:
        """Take a row; of those that wait, the one with the longest prompt is admitted first."""
        longest = max((len(text) for text in row.prompts.values()), default=0)
        heapq.heappush(self._waiting, (-longest, self._num_added, row))
        self._num_added += 1

    def end(self, row: Row) -> None:
        """Let go of a row at once, wherever it is; a row that is not here has ended already."""
        self._waiting = [entry for entry in self._waiting if entry[-1] is not row]
        heapq.heapify(self._waiting)
        self._again = deque(live for live in self._again if live.row is not row)
        with self._side.on():
            for own in self._batch.live:
                if own.live.row is row and (self._admitted is None or not self._admitted.give_up(own)):
                    self._batch.drop(own)
            if self._admitted is not None and not self._admitted.rows:
                self._break_off(self._admitted)

    def turn(self) -> list[Completion]:
        """Admit rows, keep the device busy, read what it has done."""
        with self._side.on():
            if not (self._waiting or self._again or self._admitted):
                self._batch.move_together()
            ended, is_queued = self._read_prompts()
            most = 2 * _MOST_PENDING if self._is_told_at_once else _MOST_PENDING
            if self._batch.live and self._admitted is None and len(self._pending) < most:
                self._queue_steps()
                is_queued = True
            has_enough = len(self._pending) >= most or self._admitted is not None or not self._batch.live
            is_read = has_enough and bool(self._pending) and self._pending[0].outcome.is_there
            if is_read:
                ended += self._read()
            self.is_waiting = not (ended or is_queued or is_read)
            return ended

    def read_ahead(self) -> list[Completion]:
        """Read the prompts of some rows, where others will come and steps would be fuller with them."""
        with self._side.on():
            return self._read_prompts()[0] if self._admitted is not None or self._num_coming >= self._num_enough else []

    def wait(self) -> None:
        """Wait for the device."""
        start = time.perf_counter()
        if self._admitted is not None:
            self._admitted.reading.wait()
        elif self._pending:
            self._pending[0].outcome.wait()
        else:
            return
        self._lock.host_wait_seconds += time.perf_counter() - start
        self._lock.num_waits += 1

    def close(self) -> None:
        """Empty the batch, also where decoding was broken off; the device then has nothing left to do."""
        with self._side.on():
            if self._admitted is not None:
                self._break_off(self._admitted)
            for own in self._batch.live:
                self._batch.drop(own)
        self._pending.clear()
        self._side.synchronize()  # memory that goes back now may go to another stream at once

    def _read_prompts(self) -> tuple[list[Completion], bool]:
        """Admit rows, or go on with their prompts; return those that ended, and whether a device was given anything."""
        ended = self._admit() if self._admitted is None else []
        admitted = self._admitted
        if admitted is None:
            return ended, False
        was_given = admitted.reading.go_on()
        if admitted.reading.is_queued:
            ended += self._let_go_on(admitted)
        return ended, was_given

    def _admit(self) -> list[Completion]:
        """Fill the batch with rows that lost their pages, then with new ones, and begin to read their prompts."""
        ended: list[Completion] = []
        admitted: list[BatchRow] = []
        if not self._admits_now():
            return ended
        while (self._again or self._waiting) and None in self._batch.rows:
            row = self._again.popleft() if self._again else self._take()
            if isinstance(row, Completion):
                ended.append(row)
                continue
            own = self._batch.put(row, self._steps_ahead)
            if own is None:
                self._again.appendleft(row)
                if not self._batch.live:
                    raise PagesShort("the prompt of one question does not fit into the pages for keys and values")
                break
            admitted.append(own)
        if admitted:
            self._admitted = Admitted(admitted, self._reading_of(admitted))
            self._admitted_at = self._lock.num_steps
        return ended

    def _admits_now(self) -> bool:
        """Return whether enough rows can come in: a forward over few tokens costs as much as one over many."""
        coming, has_waited = self._num_coming, self._lock.num_steps - self._admitted_at >= _PATIENCE
        return coming > 0 and (not self._batch.live or has_waited or coming >= self._num_enough)

    @property
    def _num_coming(self) -> int:
        """Return how many rows can come into the batch."""
        return min(self._batch.rows.count(None), len(self._again) + len(self._waiting))

    @property
    def _num_enough(self) -> int:
        """Return how many rows are worth a forward whenever they come."""
        return max(1, len(self._batch.rows) // _PATIENCE)

    def _take(self) -> LiveRow | Completion:
        """Take the first of the rows that wait."""
        row = heapq.heappop(self._waiting)[-1]
        return self._heads.begin(row, len(self._batch.live) + 1)

    def _let_go_on(self, admitted: Admitted) -> list[Completion]:
        """Make the rows live whose prompts have been queued, all but the last id of each.

        Rows whose heads begin them jointly emit their first tokens here; return those that ended with it.
        """
        self._admitted = None
        self._note_seconds(admitted.rows, admitted.reading)
        for own in admitted.given_up:
            self._batch.drop(own)
        joint = [own for own in admitted.rows if own.live.begins_jointly]
        for begin in range(0, len(joint), STARTED_AT_ONCE):
            self._start(joint[begin : begin + STARTED_AT_ONCE])
        ended = [own for own in joint if own.live.finish_reason]
        for own in ended:
            self._batch.drop(own)
        for own in admitted.rows:
            if own.is_here:
                self._go_on(own)
        return [self._heads.complete(own.live) for own in ended]

    def _break_off(self, admitted: Admitted) -> None:
        """Read no more of prompts that nobody wants: nothing then writes into the pages of these rows."""
        self._admitted = None
        admitted.reading.close()
        for own in admitted.given_up:
            self._batch.drop(own)

    def _reading_of(self, rows: Sequence[BatchRow]) -> Reading:
        """Return how all heads read what pages lack of rows' ids, except for the last id of each."""
        texts = [[(own.index, self._batch.ids(k, own.live)) for own in rows] for k in range(len(self._readers))]
        return Reading(self._readers, [model.name for model in self._heads.models], texts)

    @staticmethod
    def _note_seconds(rows: Sequence[BatchRow], reading: Reading) -> None:
        for own in rows:
            for head, seconds in zip(own.live.heads, reading.seconds, strict=True):
                head.forward_seconds += seconds / len(rows)

    def _start(self, rows: Sequence[BatchRow]) -> None:
        """Let rows whose prompts were read emit their first tokens, and read what these are for each head."""
        behind = [
            PromptLogits(reader, {own.index: self._batch.ids(k, own.live) for own in rows})
            for k, reader in enumerate(self._readers)
        ]
        self._heads.start([own.live for own in rows], behind, [[own.index for own in rows]] * len(behind))
        going = [own for own in rows if not own.live.finish_reason]
        for own in going:
            own.known = [len(self._batch.ids(k, own.live)) for k in range(len(behind))]
        if going:
            reading = self._reading_of(going)
            reading.go_on(at_once=True)
            self._note_seconds(going, reading)

    def _go_on(self, own: BatchRow) -> None:
        """Let the device write from where a row's ids were read."""
        row, ids = own.live, [self._batch.ids(k, own.live) for k in range(len(self._readers))]
        self._lock.start(
            own.index,
            [len(of_head) - 1 for of_head in ids],
            [of_head[-1] for of_head in ids],
            row.decoding,
            key=row.key,
            count=row.num_tokens,
            utf8=row.utf8_state,
        )

    @property
    def _steps_ahead(self) -> int:
        """Return how many steps the device may run until the host has read again."""
        return sum(len(pending.outcome.slots) for pending in self._pending) + 2 * _STEPS

    @property
    def _is_told_at_once(self) -> bool:
        """Return whether the device is given single steps."""
        return self._heads.observer.wants_tokens and len(self._batch.live) <= _FEW

    def _queue_steps(self) -> None:
        """Give the device some steps, and the order to bring their outcome to the host."""
        self._again += self._batch.make_room(self._steps_ahead)
        if not self._pending:
            self._read_at = time.perf_counter()
        form = self._form()
        for cache in self._caches:
            cache.sync()
        count = 1 if self._is_told_at_once else _STEPS - self._lock.num_steps % _STEPS
        for _ in range(count):
            self._lock.run(form)
        outcome = self._lock.last_outcome(count, form)
        self._pending.append(Pending(tuple(self._batch.rows), outcome))

    def _form(self) -> StepForm:
        """Return what the next steps have to do for the rows that are there and for those who listen."""
        width = self._batch.width
        drawing = [own.live.decoding for own in self._batch.live if own.live.decoding.temperature > 0]
        draws: Literal["none", "plain", "nucleus"] = "plain" if drawing else "none"
        if any(decoding.top_p < 1 for decoding in drawing):
            draws = "nucleus"
        observer = self._heads.observer
        return StepForm(width, tile_for(width), draws, self._heads.is_measured, observer.num_tops > 0)

    def _read(self) -> list[Completion]:
        """Take the outcome of the oldest steps; return the rows that ended in them."""
        pending = self._pending.popleft()
        now = time.perf_counter()
        spent, self._read_at = now - self._read_at, now
        if self._admitted is not None:
            self._admitted.reading.count_from(now)
        here = [(index, own) for index, own in enumerate(pending.rows) if own is not None and own.is_here]
        for _, own in here:
            for head in own.live.heads:
                head.forward_seconds += spent / len(here)
        for decisions in pending.outcome.steps():
            emitted = 0
            for index, own in here:
                decision = decisions[index]
                if decision is None or own.live.finish_reason:
                    continue
                emitted += 1
                try:
                    self._emit(own, decision)
                except BaseException as error:  # what is not the row's is raised
                    own.live.fail(error)
            if emitted:
                self._heads.observer.tokens_emitted(emitted)
        ended = [own for _, own in here if own.live.finish_reason]
        for own in ended:
            self._batch.drop(own)
        return [self._heads.complete(own.live) for own in ended]

    def _emit(self, own: BatchRow, decision: Decision) -> None:
        """Let a row emit what the device has decided for it; its heads have read what the device knows by itself."""
        row = own.live
        self._heads.emit(row, decision)
        if row.finish_reason:
            return
        for k, advance in enumerate(self._heads.advance(row.contexts, decision.slot)):
            if not row.finish_reason:
                row.feed(k, len(advance.ids), self._heads.models[k].max_positions)
                own.known[k] += len(advance.ids)
