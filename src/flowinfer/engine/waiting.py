"""Rows that are on their way, and which steps of which questions wait for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flowinfer.engine.base import Row
from flowinfer.engine.work import Asked
from flowinfer.planning.merge import SharedStep


@dataclass(frozen=True, eq=False)
class Turn:
    """A question's turn in a shared step."""

    shared: SharedStep
    asked: Asked
    prompts: Mapping[str, str]
    """By node of the shared step."""


@dataclass(eq=False)
class Waiting:
    """A row on its way."""

    row: Row
    made_for: Turn
    """Whose prompts it has; under its name the result is kept."""
    key: str
    turns: list[Turn]
    """All that still wait for it: the one that it was made for, and others that came to the same prompts."""

    @property
    def loop(self) -> str:
        """Return the name of the loop that decodes it."""
        return self.made_for.shared.loop


class OnTheWay:
    """All rows on their way; one for each key, unless it is empty."""

    def __init__(self) -> None:
        self._by_row: dict[int, Waiting] = {}
        self._by_key: dict[str, Waiting] = {}
        self._by_turn: dict[tuple[int, str], Waiting] = {}

    def __len__(self) -> int:
        return len(self._by_row)

    def has(self, asked: Asked, shared: str) -> bool:
        """Return whether a step of a question waits for a row."""
        return (id(asked), shared) in self._by_turn

    def joined(self, turn: Turn, key: str) -> bool:
        """Let a turn wait for the row of that key; return whether there is one that tells all that the turn asks."""
        waiting = self._by_key.get(key) if key else None
        if waiting is not None and waiting.made_for.shared.step.is_measured < turn.shared.step.is_measured:
            return False
        if waiting is not None:
            waiting.turns.append(turn)
            self._by_turn[id(turn.asked), turn.shared.id] = waiting
        return waiting is not None

    def add(self, row: Row, turn: Turn, key: str) -> None:
        """Let a turn wait for a row of its own."""
        waiting = Waiting(row, turn, key, [turn])
        self._by_row[id(row)] = self._by_turn[id(turn.asked), turn.shared.id] = waiting
        if key:
            self._by_key[key] = waiting

    def of_loop(self, loop: str) -> Iterator[Waiting]:
        """Yield what a loop decodes."""
        yield from [waiting for waiting in self._by_row.values() if waiting.loop == loop]

    def take(self, row: Row) -> Waiting | None:
        """Take a row out with all that wait for it; None where nobody does any more."""
        waiting = self._by_row.pop(id(row), None)
        if waiting is not None:
            if self._by_key.get(waiting.key) is waiting:
                del self._by_key[waiting.key]
            for turn in waiting.turns:
                del self._by_turn[id(turn.asked), turn.shared.id]
        return waiting

    def leave(self, asked: Asked, shared: str) -> Waiting | None:
        """Let a step of a question wait no more; return its row where nobody else does."""
        waiting = self._by_turn.get((id(asked), shared))
        if waiting is None:
            return None
        if len(waiting.turns) == 1:
            return self.take(waiting.row)
        del self._by_turn[id(asked), shared]
        waiting.turns = [turn for turn in waiting.turns if (turn.asked, turn.shared.id) != (asked, shared)]
        return None
