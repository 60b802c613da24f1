"""What the parts of a loop's rounds cost: a clock that the loop hands its work through."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

Part = Literal["prefill", "forward", "transfer", "fuse", "append"]


class Clock:
    """Sum up the host's seconds by part and head; a clock that waits for devices may be handed in instead."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[Part, int | None], float] = {}

    def phase(self, part: Part, *, head: int | None = None, name: str = "") -> AbstractContextManager[None]:
        """Measure a block.

        Args:
            part: what it belongs to.
            head: whose work it is; None = that of all.
            name: which piece of its part it is.
        """
        return self._measure(part, head)

    def add(self, part: Part, head: int | None, seconds: float) -> None:
        """Count some seconds."""
        self._seconds[part, head] = self._seconds.get((part, head), 0.0) + seconds

    def take(self, part: Part, head: int | None = None) -> float:
        """Return the seconds of a part since they were last taken."""
        return self._seconds.pop((part, head), 0.0)

    @contextmanager
    def _measure(self, part: Part, head: int | None) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(part, head, time.perf_counter() - start)


class Untimed(Clock):
    """Measures nothing: for what a graph records, and what nobody asks about."""

    def phase(self, part: Part, *, head: int | None = None, name: str = "") -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


UNTIMED = Untimed()
