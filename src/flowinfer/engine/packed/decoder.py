"""The host's side of a packed decoding loop: who is admitted, what the device has emitted, who has ended.

The device runs a few steps ahead; the host reads their outcome while the next ones run, so it waits at most once per
`_STEPS` steps. A row that the host ends (a stop text) is ignored from there on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.base import Completion, Row
from flowinfer.engine.heads import Heads
from flowinfer.engine.packed.fusing import FusedChoice, TorchChoice
from flowinfer.engine.packed.lockstep import RING, LockStep
from flowinfer.engine.packed.pages import PAGE, PagedCache, Pages, PagesShort
from flowinfer.engine.packed.runner import HeadRunner
from flowinfer.engine.rows import LiveRow

_STEPS = RING // 2
_ADMISSIONS = 16
"""Prompts are read together when a sixteenth of the places is empty: a forward over few tokens costs as much."""
_MOST_PREFILL = 4096
"""Tokens of prompts that are read in one forward."""
TILES = (4, 8, 16, 32, 64, 128, 256)
"""Numbers of flat tokens that matrix units take as they are."""


def tile_for(rows: int) -> int:
    """Return T for so many rows: the next tile, so that some tokens are left for rows that feed several ids."""
    return next((tile for tile in TILES if tile >= rows), -(-rows // 128) * 128)


@dataclass(eq=False)
class _Seat:
    """A row at a place, from its admission until it ends or gives up its pages."""

    row: LiveRow
    place: int
    known: list[int]
    """Ids of each head that the host knows of."""
    is_taken: bool = True
    """Whether it still has the place."""


@dataclass(frozen=True)
class _Pending:
    """Steps that the device has been given and the host has not read."""

    seats: tuple[_Seat | None, ...]
    """Who was at each place."""
    slots: Tensor
    """(_STEPS, R), on the host once the event has happened."""
    leads: Tensor
    favourites: Tensor
    done: torch.cuda.Event | None


class PackedDecoder:
    """Decode one step's rows on one device; a `Decoder`.

    Args:
        heads: the step's models and how they mix.
        runners: their networks.
        choose: how a step's logits become slots.
        batch: most rows at once.
        num_pages: pages of keys and values of each head.
    """

    def __init__(
        self,
        heads: Heads,
        runners: Sequence[HeadRunner],
        choose: FusedChoice | TorchChoice,
        *,
        batch: int,
        num_pages: Sequence[int],
    ) -> None:
        self._heads, self._runners = heads, tuple(runners)
        self._caches = []
        for runner, model, count in zip(runners, heads.models, num_pages, strict=True):
            pages = Pages(count, batch, min(model.max_positions, count * PAGE))
            self._caches.append(PagedCache(runner.layers, pages, runner.model.dtype, runner.device))
        limits = [model.max_positions for model in heads.models]
        self._lock = LockStep(runners, self._caches, heads.vocabulary, limits, choose, batch)
        self.host_wait_seconds = 0.0
        """Time that the host has waited for the device."""
        self.num_waits = 0

    def decode(self, rows: Iterable[Row]) -> Iterator[Completion]:
        """Decode rows, longest prompts first; yield each as it ends."""
        ordered = sorted(rows, key=lambda row: -max((len(text) for text in row.prompts.values()), default=0))
        loop = _Loop(self._heads, self._runners, self._caches, self._lock, ordered)
        try:
            yield from loop.run()
        finally:
            loop.close()
            self.host_wait_seconds += loop.host_wait_seconds
            self.num_waits += loop.num_waits

    @property
    def num_steps(self) -> int:
        """Return how many steps the device has been given."""
        return self._lock.num_steps


class _Loop:
    """One run of a packed decoder."""

    def __init__(
        self,
        heads: Heads,
        runners: Sequence[HeadRunner],
        caches: Sequence[PagedCache],
        lock: LockStep,
        rows: Sequence[Row],
    ) -> None:
        self._heads, self._runners, self._caches, self._lock = heads, runners, caches, lock
        self._waiting: deque[Row] = deque(rows)
        self._again: deque[LiveRow] = deque()
        """Rows that lost their pages and go on when there are some."""
        self._places: list[_Seat | None] = [None] * lock.rows
        self._room_for = max(1, min(lock.rows, len(rows)))
        """Places that are ever needed."""
        self._pending: deque[_Pending] = deque()
        self._read_at = time.perf_counter()
        self.host_wait_seconds = 0.0
        self.num_waits = 0

    def close(self) -> None:
        """Empty all places, also where decoding was broken off."""
        for place, seat in enumerate(self._places):
            if seat is not None:
                self._drop(place)

    def run(self) -> Iterator[Completion]:
        """Yield completions until no row is left."""
        while True:
            yield from self._admit()
            if any(seat is not None for seat in self._places):
                self._queue_steps()
            elif not self._pending:
                return
            if len(self._pending) > 1 or not any(seat is not None for seat in self._places):
                yield from self._read()

    def _admit(self) -> Iterator[Completion]:
        """Fill empty places with rows that lost their pages, then with new ones; read their prompts together."""
        admitted: list[tuple[int, LiveRow]] = []
        if not self._admits_now():
            return
        while (place := self._empty_place()) is not None and (self._again or self._waiting):
            if self._again:
                row = self._again.popleft()
            else:
                num_live = sum(seat is not None for seat in self._places)
                outcome = self._heads.take(iter([self._waiting.popleft()]), 1, num_live)[0]
                if isinstance(outcome, Completion):
                    yield outcome
                    continue
                row = outcome
            if not self._reserve(place, row):
                self._again.appendleft(row)
                if not any(seat is not None for seat in self._places):
                    raise PagesShort("the prompt of one question does not fit into the pages for keys and values")
                break
            lengths = [len(self._ids(k, row)) for k in range(len(self._caches))]
            self._places[place] = _Seat(row, place, lengths)
            admitted.append((place, row))
        if admitted:
            self._prefill(admitted)

    def _admits_now(self) -> bool:
        """Return whether so many places are empty that reading prompts is worth a forward."""
        live = sum(seat is not None for seat in self._places)
        left = len(self._again) + len(self._waiting)
        return left > 0 and self._room_for - live >= min(left, max(1, self._room_for // _ADMISSIONS))

    def _empty_place(self) -> int | None:
        return next((place for place in range(self._room_for) if self._places[place] is None), None)

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

    def _prefill(self, admitted: Sequence[tuple[int, LiveRow]]) -> None:
        """Read the prompts of new rows, except for the last id of each, and make the rows live."""
        for k, (runner, cache) in enumerate(zip(self._runners, self._caches, strict=True)):
            start = time.perf_counter()
            cache.sync()
            chunk: list[tuple[int, int, list[int]]] = []
            size = 0
            for place, row in admitted:
                ids = self._ids(k, row)
                shared = cache.pages.num_shared(place)
                chunk.append((place, shared, ids[shared:-1]))
                size += len(ids) - 1 - shared
                if size >= _MOST_PREFILL:
                    _read_prompts(runner, cache, chunk)
                    chunk, size = [], 0
            _read_prompts(runner, cache, chunk)
            for place, row in admitted:
                cache.pages.name(place, self._ids(k, row))
                row.heads[k].forward_seconds += (time.perf_counter() - start) / len(admitted)
        for place, row in admitted:
            all_ids = [self._ids(k, row) for k in range(len(self._runners))]
            lengths, lasts = [len(ids) - 1 for ids in all_ids], [ids[-1] for ids in all_ids]
            self._lock.start(
                place, lengths, lasts, count=row.num_tokens, limit=row.max_tokens, key=row.key, state=row.utf8_state
            )

    def _queue_steps(self) -> None:
        """Give the device some steps, and the order to bring their outcome to the host."""
        self._make_room()
        used = max(place for place, seat in enumerate(self._places) if seat is not None) + 1
        for cache in self._caches:
            cache.sync()
        rows = self._bucket(used)
        for _ in range(_STEPS):
            self._lock.run(rows, tile_for(rows))
        self._pending.append(self._outcome())

    def _bucket(self, used: int) -> int:
        """Return how many places take part in a step: a power-of-two share of all, so that graphs stay few."""
        rows = len(self._places)
        while rows > 1 and used <= rows // 2:
            rows //= 2
        return rows

    def _outcome(self) -> _Pending:
        lock = self._lock
        end = (lock.num_steps - 1) % RING + 1
        half = slice(end - _STEPS, end)
        own = [lock.ring_slots[half], lock.ring_leads[half], lock.ring_favourites[half]]
        if lock.device.type != "cuda":
            return _Pending(tuple(self._places), own[0].clone(), own[1].clone(), own[2].clone(), None)
        moved = [torch.empty(states.shape, dtype=states.dtype, pin_memory=True) for states in own]
        for target, source in zip(moved, own, strict=True):
            target.copy_(source, non_blocking=True)
        done: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return _Pending(tuple(self._places), moved[0], moved[1], moved[2], done)

    def _make_room(self) -> None:
        """Take pages for the next steps; where there are none, the last row gives up its own and starts again later."""
        for place in range(len(self._places)):
            while (seat := self._places[place]) is not None:
                try:
                    for k, cache in enumerate(self._caches):
                        cache.pages.reserve(place, self._room(k, seat.known[k]))
                    break
                except PagesShort:
                    self._preempt()

    def _preempt(self) -> None:
        """Take the pages of the last row; it reads its text again when there are some."""
        live = [place for place, seat in enumerate(self._places) if seat is not None]
        if len(live) == 1:
            raise PagesShort("one question does not fit into the pages for keys and values")
        seat = self._places[live[-1]]
        assert seat is not None, "it is live"
        self._drop(live[-1])
        self._again.append(seat.row)

    def _drop(self, place: int) -> None:
        """Empty a place; what the device has in flight for it comes to nothing."""
        seat = self._places[place]
        assert seat is not None, "an empty place has nothing to drop"
        seat.is_taken = False
        self._lock.stop(place)
        for cache in self._caches:
            cache.pages.release(place)
        self._places[place] = None

    def _read(self) -> Iterator[Completion]:
        """Take the outcome of the oldest steps; yield the rows that ended in them."""
        pending = self._pending.popleft()
        if pending.done is not None:
            start = time.perf_counter()
            pending.done.synchronize()
            self.host_wait_seconds += time.perf_counter() - start
            self.num_waits += 1
        now = time.perf_counter()
        spent, self._read_at = now - self._read_at, now
        slots, leads, favourites = pending.slots.tolist(), pending.leads.tolist(), pending.favourites.tolist()
        here = [(place, seat) for place, seat in enumerate(pending.seats) if seat is not None]
        here = [(place, seat) for place, seat in here if seat.is_taken]
        for _, seat in here:
            for head in seat.row.heads:
                head.forward_seconds += spent / len(here)
        for index in range(len(slots)):
            emitted = 0
            for place, seat in here:
                if slots[index][place] >= 0 and not seat.row.finish_reason:
                    self._emit(
                        seat, slots[index][place], leads[index][place], [own[place] for own in favourites[index]]
                    )
                    emitted += 1
            if emitted:
                self._heads.observer.tokens_emitted(emitted)
        for _, seat in here:
            if seat.row.finish_reason:
                self._drop(seat.place)
                yield self._heads.complete(seat.row)
        self._move_together()

    def _emit(self, seat: _Seat, slot: int, lead: float, favourites: Sequence[int]) -> None:
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
        live = [place for place, seat in enumerate(self._places) if seat is not None]
        if self._waiting or self._again or not live:
            return
        if self._bucket(len(live)) == self._bucket(live[-1] + 1):
            return
        empty = [place for place in range(len(live)) if self._places[place] is None]
        for target, source in zip(empty, reversed(live), strict=False):
            self._exchange(target, source)

    def _exchange(self, one: int, other: int) -> None:
        self._lock.exchange(one, other)
        for cache in self._caches:
            cache.pages.swap(one, other)
        self._places[one], self._places[other] = self._places[other], self._places[one]
        for place in (one, other):
            seat = self._places[place]
            if seat is not None:
                seat.place = place


@torch.inference_mode()
def _read_prompts(runner: HeadRunner, cache: PagedCache, chunk: Sequence[tuple[int, int, Sequence[int]]]) -> None:
    """Fill pages with the keys and values of (place, first position, ids)."""
    chunk = [one for one in chunk if one[2]]
    if not chunk:
        return
    counts = torch.tensor([len(ids) for _, _, ids in chunk])
    rows = torch.tensor([place for place, _, _ in chunk], dtype=torch.int32).repeat_interleave(counts)
    starts = torch.tensor([start for _, start, _ in chunk]) - (counts.cumsum(0) - counts)
    positions = torch.arange(int(counts.sum())) + starts.repeat_interleave(counts)
    ids = torch.tensor([i for _, _, own in chunk for i in own])
    ids, rows, positions = (states.to(runner.device, non_blocking=True) for states in (ids, rows, positions))
    cache.place(rows, positions.int(), 1)
    runner.read(ids, positions, cache)
