"""Who sits where in a packed loop, and who sat there when the device was given steps."""

from __future__ import annotations

from dataclasses import dataclass

from flowinfer.engine.loops.outcome import Outcome
from flowinfer.engine.loops.rows import LiveRow


@dataclass(eq=False)
class Seat:
    """A row at a place, from its admission until it ends or gives up its pages."""

    row: LiveRow
    place: int | None
    """Where it sits now."""
    known: list[int]
    """Ids of each head that the host knows of."""

    @property
    def here(self) -> int:
        """Return the place of a row that has one."""
        assert self.place is not None, "it sits"
        return self.place


@dataclass(frozen=True)
class Pending:
    """Steps that the device has been given and the host has not read, and who was at each place."""

    seats: tuple[Seat | None, ...]
    outcome: Outcome
