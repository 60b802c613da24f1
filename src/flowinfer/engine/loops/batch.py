"""Which rows are in the batch of a device's loop, at which index, and the pages that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.engine.caches.pages import ChainedCache, PagedCache, PagesShort
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.lockstep import LockStep
from flowinfer.engine.loops.outcome import Outcome
from flowinfer.engine.loops.rows import LiveRow

_FEW = 64
"""Rows up to which a step takes about as long as with a quarter of them: it waits for the weights."""
_WIDTHS = (60, 120, 180, 240)
"""Rows that take part in steps of larger batches: these fill a tile but for some room."""


@dataclass(eq=False)
class BatchRow:
    """A row in the batch, from its admission until it ends or gives up its pages."""

    live: LiveRow
    index: int
    """Where its states stand now: the index in every tensor of the loop."""
    known: list[int]
    """Ids of each head that the host knows of."""
    is_here: bool = True
    """Whether it is in the batch still."""


@dataclass(frozen=True)
class Pending:
    """Steps that the device has been given and the host has not read."""

    rows: Sequence[BatchRow | None]
    """Who had which index then."""
    outcome: Outcome


class Batch:
    """The rows of one run of a loop.

    Args:
        heads: the step's models.
        caches: keys and values of each.
        lock: the device's side.
    """

    def __init__(self, heads: Heads, caches: Sequence[PagedCache | ChainedCache], lock: LockStep) -> None:
        self._models, self._caches, self._lock = heads.models, caches, lock
        self.rows: list[BatchRow | None] = [None] * lock.rows
        """Who has which index."""

    @property
    def live(self) -> list[BatchRow]:
        """Return the rows in the order of their indices."""
        return [row for row in self.rows if row is not None]

    @property
    def width(self) -> int:
        """Return how many indices take part in a step: all or one of few numbers, so that graphs are few."""
        return self._width(self.live[-1].index + 1)

    def ids(self, k: int, live: LiveRow) -> list[int]:
        """Return all that a head has read of a row or is to read."""
        return [*live.prompts[k].ids, *live.contexts[k].ids]

    def put(self, live: LiveRow, steps: int) -> BatchRow | None:
        """Put a row at a free index, with pages for its ids and so many steps on every head; None without pages."""
        index = self.rows.index(None)
        known = [len(self.ids(k, live)) for k in range(len(self._caches))]
        for k, cache in enumerate(self._caches):
            try:
                cache.pages.share(index, self.ids(k, live))
                cache.pages.reserve(index, self._room(k, known[k], steps))
            except PagesShort:
                for other in self._caches[: k + 1]:
                    other.pages.release(index)
                return None
        for k, cache in enumerate(self._caches):  # who comes in with it need not read the same again
            cache.pages.promise(index, self.ids(k, live))
        row = self.rows[index] = BatchRow(live, index, known)
        return row

    def drop(self, row: BatchRow) -> None:
        """Free a row's index and pages; what the device has in flight for it comes to nothing."""
        self._lock.stop(row.index)
        for cache in self._caches:
            cache.pages.release(row.index)
        self.rows[row.index], row.is_here = None, False

    def make_room(self, steps: int) -> list[LiveRow]:
        """Take pages for so many more steps; return the rows that gave up theirs for others, the last one first.

        Raises:
            PagesShort: there are too few for one row.
        """
        preempted = []
        for row in self.live:
            while row.is_here and not self._grow(row, steps):
                preempted.append(self._preempt())
        return preempted

    def move_together(self) -> None:
        """Bring the last rows to free indices, where fewer indices would then take part in a step."""
        live = self.live
        if not live or self._width(len(live)) == self.width:
            return
        free = [index for index in range(len(live)) if self.rows[index] is None]
        for index, row in zip(free, reversed(live), strict=False):
            self._lock.exchange(index, row.index)
            for cache in self._caches:
                cache.pages.swap(index, row.index)
            self.rows[index], self.rows[row.index], row.index = row, None, index

    def _grow(self, row: BatchRow, steps: int) -> bool:
        try:
            for k, cache in enumerate(self._caches):
                cache.pages.reserve(row.index, self._room(k, row.known[k], steps))
        except PagesShort:
            return False
        return True

    def _preempt(self) -> LiveRow:
        """Take the pages of the last row; it reads its text again when there are some."""
        live = self.live
        if len(live) == 1:
            raise PagesShort("one question does not fit into the pages for keys and values")
        self.drop(live[-1])
        return live[-1].live

    def _room(self, k: int, length: int, steps: int) -> int:
        """Return the ids of a head that pages must hold for a row of so many to run on for some steps."""
        return min(length + steps * self._lock.tables.most[k], self._models[k].max_positions)

    def _width(self, used: int) -> int:
        rows = len(self.rows)
        if rows > _FEW:
            rows = min(rows, next((width for width in _WIDTHS if used <= width), rows))
        while rows > 1 and used <= rows // 4:
            rows //= 4
        return rows
