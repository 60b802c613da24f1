"""Whose models are in memory, where those of all flows do not fit together: sets of flows that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

_LEAST_SECONDS = 1.0
"""That a set of flows stays while it has questions and others wait."""
_TIMES_ITS_COST = 4.0
"""A set stays at least so many times as long as the last change took: changing takes a fifth of the time at most."""


class Waiting(Protocol):
    """A question that waits."""

    @property
    def since(self) -> float:
        """Return when it came."""


class Shifts:
    """Decide which set of flows is served now.

    No set waits for ever: one without questions gives way at once, one with questions after a while, and what comes
    next is the set of the question that has waited longest.

    Args:
        shift_of: the set of each flow, by the flow's name.
        clock: gives seconds.
    """

    def __init__(self, shift_of: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._shift_of, self._clock = dict(shift_of), clock
        self.current = 0
        self._begun = clock()
        self._cost = 0.0

    def is_on(self, flow: str) -> bool:
        """Return whether a flow's models are in memory now, or may be."""
        return self._shift_of[flow] == self.current

    def gives_way(self, waiting: Mapping[str, Sequence[Waiting]]) -> bool:
        """Return whether the flows that are served now take no more questions, since others wait.

        Args:
            waiting: questions of each flow.
        """
        if not any(tickets for name, tickets in waiting.items() if not self.is_on(name)):
            return False
        has_own = any(tickets for name, tickets in waiting.items() if self.is_on(name))
        stay = max(_LEAST_SECONDS, _TIMES_ITS_COST * self._cost)
        return not has_own or self._clock() - self._begun >= stay

    def following(self, waiting: Mapping[str, Sequence[Waiting]]) -> int | None:
        """Return the set whose turn is next; None where nobody of another one waits."""
        others = [(tickets[0].since, name) for name, tickets in waiting.items() if tickets and not self.is_on(name)]
        return self._shift_of[min(others)[1]] if others else None

    def begin(self, shift: int) -> None:
        """Let a set's turn begin: its models are to be loaded."""
        self.current = shift
        self._begun = self._clock()

    def has_begun(self, seconds: float) -> None:
        """Note what the change has cost; its turn counts from now on."""
        self._cost, self._begun = seconds, self._clock()
