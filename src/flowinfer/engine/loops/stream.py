"""The host's side of a packed decoding loop: who is admitted, what the device has emitted, who has ended.

The device runs a few steps ahead; the host reads their outcome while the next ones run, so that it has to wait at most
once per `_STEPS` steps, and not at all where it has other loops to look after. A row that the host ends (a stop text)
is ignored from there on.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from flowinfer.engine.base import Completion, Row
from flowinfer.engine.caches.pages import PagedCache, PagesShort
from flowinfer.engine.caches.tiles import tile_for
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.lockstep import RING, LockStep
from flowinfer.engine.loops.outcome import last_outcome
from flowinfer.engine.loops.prompts import read_prompts
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.seats import Pending, Seat
from flowinfer.engine.network.runner import HeadRunner

_STEPS = RING // 2
"""Steps that the device is given at once."""
_PATIENCE = 16
"""Most steps that a row waits for others to come in with it; one in so many places must come at once before that."""
_MOST_PENDING = 2
"""Times so many that it is ahead of the host."""


def on_side(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Let what is done inside be queued on a stream; None = where it would be anyway."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


class PackedStream:
    """One run of a packed decoder, brought on a turn at a time; a `RowStream`."""

    def __init__(
        self,
        heads: Heads,
        runners: Sequence[HeadRunner],
        caches: Sequence[PagedCache],
        lock: LockStep,
        side: torch.cuda.Stream | None,
    ) -> None:
        self._heads, self._runners, self._caches, self._lock, self._side = heads, runners, caches, lock, side
        self._waiting: list[tuple[int, int, Row]] = []
        """A heap of (minus the length of the longest prompt, number, row)."""
        self._num_added = 0
        self._again: deque[LiveRow] = deque()
        """Rows that lost their pages and go on when there are some."""
        self._places: list[Seat | None] = [None] * lock.rows
        self._pending: deque[Pending] = deque()
        self._read_at = time.perf_counter()
        self._admitted_at = lock.num_steps
        self.is_waiting = False

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._waiting) + len(self._again) + len(self._live())

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
        with on_side(self._side):
            for seat in self._live():
                if seat.row.row is row:
                    self._drop(seat)

    def turn(self) -> list[Completion]:
        """Admit rows, keep the device busy, read what it has done."""
        with on_side(self._side):
            self._move_together()
            ended = self._admit()
            is_queued = bool(self._live()) and len(self._pending) < _MOST_PENDING
            if is_queued:
                self._queue_steps()
            is_due = bool(self._pending) and (len(self._pending) == _MOST_PENDING or not self._live())
            is_read = is_due and self._pending[0].outcome.is_there
            if is_read:
                ended += self._read()
            self.is_waiting = not (ended or is_queued or is_read)
            return ended

    def wait(self) -> None:
        """Wait for the device."""
        if self._pending:
            start = time.perf_counter()
            self._pending[0].outcome.wait()
            self._lock.host_wait_seconds += time.perf_counter() - start
            self._lock.num_waits += 1

    def close(self) -> None:
        """Empty all places, also where decoding was broken off; the device then has nothing left to do."""
        with on_side(self._side):
            for seat in self._live():
                self._drop(seat)
        self._pending.clear()
        if self._side is not None:
            self._side.synchronize()  # memory that goes back now may go to another stream at once

    def _live(self) -> list[Seat]:
        return [seat for seat in self._places if seat is not None]

    def _admit(self) -> list[Completion]:
        """Fill empty places with rows that lost their pages, then with new ones; read their prompts together."""
        misfits: list[Completion] = []
        admitted: list[Seat] = []
        if not self._admits_now():
            return misfits
        while (self._again or self._waiting) and None in self._places:
            if self._again:
                row = self._again.popleft()
            else:
                outcome = self._heads.take(iter([heapq.heappop(self._waiting)[-1]]), 1, len(self._live()))[0]
                if isinstance(outcome, Completion):
                    misfits.append(outcome)
                    continue
                row = outcome
            place = self._places.index(None)
            if not self._reserve(place, row):
                self._again.appendleft(row)
                if not self._live():
                    raise PagesShort("the prompt of one question does not fit into the pages for keys and values")
                break
            seat = Seat(row, place, [len(self._ids(k, row)) for k in range(len(self._caches))])
            self._places[place] = seat
            admitted.append(seat)
        if admitted:
            self._prefill(admitted)
            self._admitted_at = self._lock.num_steps
        return misfits

    def _admits_now(self) -> bool:
        """Return whether enough rows can come in: a forward over few tokens costs as much as one over many."""
        live = len(self._live())
        coming = min(len(self._places) - live, len(self._again) + len(self._waiting))
        has_waited = self._lock.num_steps - self._admitted_at >= _PATIENCE
        return coming > 0 and (live == 0 or has_waited or coming >= len(self._places) // _PATIENCE)

    def _ids(self, k: int, row: LiveRow) -> list[int]:
        return [*row.prompts[k].ids, *row.contexts[k].ids]

    def _reserve(self, place: int, row: LiveRow) -> bool:
        """Take pages for a row's ids and its next steps on every head, or none."""
        for k, cache in enumerate(self._caches):
            ids = self._ids(k, row)
            try:
                cache.pages.share(place, ids)
                cache.pages.reserve(place, self._room(k, len(ids)))
            except PagesShort:
                for other in self._caches[: k + 1]:
                    other.pages.release(place)
                return False
        return True

    def _room(self, k: int, length: int) -> int:
        """Return the ids that pages must hold for a row of so many to run until the host has read again."""
        ahead = (len(self._pending) + 2) * _STEPS * self._lock.tables[k].most
        return min(length + ahead, self._heads.models[k].max_positions)

    def _prefill(self, admitted: Sequence[Seat]) -> None:
        """Read the prompts of new rows, except for the last id of each, and make the rows live."""
        for k, (runner, cache) in enumerate(zip(self._runners, self._caches, strict=True)):
            start = time.perf_counter()
            read_prompts(runner, cache, [(seat.here, self._ids(k, seat.row)) for seat in admitted])
            for seat in admitted:
                seat.row.heads[k].forward_seconds += (time.perf_counter() - start) / len(admitted)
        for seat in admitted:
            row, all_ids = seat.row, [self._ids(k, seat.row) for k in range(len(self._runners))]
            lengths, lasts = [len(ids) - 1 for ids in all_ids], [ids[-1] for ids in all_ids]
            self._lock.start(
                seat.here,
                lengths,
                lasts,
                count=row.num_tokens,
                limit=row.decoding.max_tokens,
                key=row.key,
                state=row.utf8_state,
            )

    def _queue_steps(self) -> None:
        """Give the device some steps, and the order to bring their outcome to the host."""
        self._make_room()
        if not self._pending:
            self._read_at = time.perf_counter()
        rows = self._bucket(max(seat.here for seat in self._live()) + 1)
        for cache in self._caches:
            cache.sync()
        for _ in range(_STEPS):
            self._lock.run(rows, tile_for(rows))
        self._pending.append(Pending(tuple(self._places), last_outcome(self._lock, _STEPS)))

    def _bucket(self, used: int) -> int:
        """Return how many places take part in a step: all, a quarter, a sixteenth, ..., so that graphs stay few."""
        rows = len(self._places)
        while rows > 1 and used <= rows // 4:
            rows //= 4
        return rows

    def _make_room(self) -> None:
        """Take pages for the next steps; where there are none, the last row gives up its own and starts again later."""
        for seat in self._live():
            while seat.place is not None:
                try:
                    for k, cache in enumerate(self._caches):
                        cache.pages.reserve(seat.place, self._room(k, seat.known[k]))
                    break
                except PagesShort:
                    self._preempt()

    def _preempt(self) -> None:
        """Take the pages of the last row; it reads its text again when there are some."""
        live = self._live()
        if len(live) == 1:
            raise PagesShort("one question does not fit into the pages for keys and values")
        self._drop(live[-1])
        self._again.append(live[-1].row)

    def _drop(self, seat: Seat) -> None:
        """Empty a row's place; what the device has in flight for it comes to nothing."""
        place = seat.here
        self._lock.stop(place)
        for cache in self._caches:
            cache.pages.release(place)
        self._places[place] = seat.place = None

    def _read(self) -> list[Completion]:
        """Take the outcome of the oldest steps; return the rows that ended in them."""
        pending = self._pending.popleft()
        now = time.perf_counter()
        spent, self._read_at = now - self._read_at, now
        outcome = pending.outcome
        slots, leads, favourites = outcome.slots.tolist(), outcome.leads.tolist(), outcome.favourites.tolist()
        here = [(then, seat) for then, seat in enumerate(pending.seats) if seat is not None and seat.place is not None]
        for _, seat in here:
            for head in seat.row.heads:
                head.forward_seconds += spent / len(here)
        for index in range(len(slots)):
            emitted = 0
            for then, seat in here:
                if slots[index][then] < 0 or seat.row.finish_reason:
                    continue
                emitted += 1
                try:
                    self._emit(seat, slots[index][then], leads[index][then], [own[then] for own in favourites[index]])
                except BaseException as error:  # what is not the row's is raised
                    seat.row.fail(error)
            if emitted:
                self._heads.observer.tokens_emitted(emitted)
        ended = [seat for _, seat in here if seat.row.finish_reason]
        for seat in ended:
            self._drop(seat)
        return [self._heads.complete(seat.row) for seat in ended]

    def _emit(self, seat: Seat, slot: int, lead: float, favourites: Sequence[int]) -> None:
        row, vocabulary = seat.row, self._heads.vocabulary
        row.near_ties += self._heads.is_near_tie(lead)
        for head, favourite in zip(row.heads, favourites, strict=True):
            head.agreed += favourite == slot
        row.emit(slot, vocabulary)
        for k, model in enumerate(self._heads.models):
            if row.finish_reason:
                return
            ids = row.contexts[k].append(vocabulary.keys[slot], vocabulary.ids(k, slot)).ids
            if row.context_full(k, model.max_positions, len(ids)):
                return
            row.heads[k].fed += len(ids)
            seat.known[k] += len(ids)

    def _move_together(self) -> None:
        """Bring the last rows to empty places, where fewer places would then take part in a step."""
        live = self._live()
        if self._waiting or self._again or not live:
            return
        if self._bucket(len(live)) == self._bucket(live[-1].here + 1):
            return
        empty = [place for place in range(len(live)) if self._places[place] is None]
        for place, seat in zip(empty, reversed(live), strict=False):
            before = seat.here
            self._lock.exchange(place, before)
            for cache in self._caches:
                cache.pages.swap(place, before)
            self._places[place], self._places[before], seat.place = seat, None, place
