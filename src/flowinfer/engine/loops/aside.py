"""Turns of heads elsewhere, in a thread of their own: while an answer or a lost head is waited for, others decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowinfer.backends.aside import Aside
from flowinfer.engine.base import Completion, Row, RowStream


class AsideStream:
    """A stream whose turns wait for another process, as one whose turns wait for nothing; a `RowStream`.

    Args:
        make: makes the stream; it may wait too.
    """

    def __init__(self, make: Callable[[], RowStream]) -> None:
        self._make = make
        self._stream: RowStream | None = None
        self._aside = Aside[Sequence[Completion]]()
        self._rows: dict[int, Row] = {}
        """Those that have not ended."""
        self._added: list[Row] = []
        self._gone: list[Row] = []
        """What has come and gone since the last turn began: the stream is left alone while it waits."""
        self.is_waiting = False

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Take a row, at any time."""
        self._rows[id(row)] = row
        self._added.append(row)

    def end(self, row: Row) -> None:
        """Let go of a row that is wanted no more."""
        if self._rows.pop(id(row), None) is not None:
            self._gone.append(row)

    def turn(self) -> list[Completion]:
        """Go on with the turn that is under way, or with a new one, until it waits for something."""
        if self._aside.is_idle:
            self._aside.begin(self._turn)
        self.is_waiting = not self._aside.go_on()
        if self.is_waiting:
            return []
        ended = self._aside.found()
        return [completion for completion in ended if self._rows.pop(id(completion.row), None) is not None]

    def wait(self) -> None:
        """Wait until another turn can do something."""
        self._aside.wait()

    def close(self) -> None:
        """Let go of all rows; a turn that waits for something ends by itself once that has come."""
        self._rows, self._added, self._gone = {}, [], []
        stream, self._stream = self._stream, None
        if stream is not None and self._aside.is_idle:
            stream.close()
        self._aside.end()

    def _turn(self) -> Sequence[Completion]:
        stream = self._stream
        if stream is None:
            self._stream = stream = self._make()
        added, self._added = self._added, []
        for row in added:
            stream.add(row)
        gone, self._gone = self._gone, []
        for row in gone:
            stream.end(row)
        return stream.turn() if stream.num_rows else ()
