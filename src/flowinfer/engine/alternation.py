"""Which decoding loops of a run are brought on next.

Loops that leave the host free (a device's, an endpoint's) are brought on as often as can be, but for a later stage that
has few rows yet where earlier ones on the same GPU have some: a step reads all weights for however few rows. Until then
it reads prompts. Of loops that keep the host busy one is brought on, until it is empty, or its rows no longer fill a
batch and another's do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flowinfer.engine.decoding import DecodingLoop
from flowinfer.planning.merge import SharedStep

_PAUSE_SECONDS = 1e-4
"""First pause where devices and endpoints are all at work; doubled while they are, up to the long one."""
_LONG_PAUSE_SECONDS = 1e-3
_TURNS_ON_END = 8
"""Turns of one loop that keeps the host busy before a server gives another its turn."""
_GATHERED = 1 / 8
"""Rows in earlier stages, of those in a later one, from which on it decodes beside them."""


class Alternation:
    """Say whose turn it is.

    Args:
        loops: by name.
        steps: that they decode, each after those that it reads.
        may_begin: whether a loop finds room on its devices.
        serves: whether questions come without end: loops that keep the host busy then take turns.
    """

    def __init__(
        self,
        loops: Mapping[str, DecodingLoop],
        steps: Sequence[SharedStep],
        may_begin: Callable[[DecodingLoop], bool],
        *,
        serves: bool = False,
    ) -> None:
        self._loops, self._may_begin, self._serves = loops, may_begin, serves
        self._fed_by = _fed_by(steps)
        self._turns: list[str] = []
        """Loops that decode in this round."""
        self._current = ""
        """Name of the loop that keeps the host busy."""
        self._num_turns = 0
        """Turns that it has had on end."""
        self._pause = _PAUSE_SECONDS

    def next(self) -> list[str]:
        """Return the loops to be given a turn, by name: those that decode, then those that only read prompts."""
        going = [name for name, loop in self._loops.items() if loop.num_rows and self._may_begin(loop)]
        busy = [name for name in going if self._loops[name].is_busy]
        chosen = self._chosen(busy) if busy else ""
        for name in going:
            self._loops[name].gathers = name not in busy and self._gathers(name, going)
        self._turns = [name for name in going if name == chosen or not (name in busy or self._loops[name].gathers)]
        ahead = [name for name in going if self._loops[name].gathers and self._loops[name].reads_ahead]
        return [*self._turns, *ahead]

    def rest(self) -> None:
        """Pause where all loops that decode wait for a device or an endpoint."""
        if all(self._loops[name].is_waiting for name in self._turns):
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONG_PAUSE_SECONDS)
        else:
            self._pause = _PAUSE_SECONDS

    def _gathers(self, name: str, going: Sequence[str]) -> bool:
        """Return whether a loop waits for more rows: earlier ones on one of its GPUs will bring some.

        Not once its rows fill a batch. Loops that feed each other wait only for full ones, and so does a server's,
        where earlier ones may never be empty: one of those that could wait for one another always goes on.
        """
        loop = self._loops[name]
        if loop.is_full or loop.batch is None:  # before it is made, nobody knows how many rows fill it
            return False
        earlier = [other for other in going if other in self._fed_by[name] and self._loops[other].gpus & loop.gpus]
        coming = (
            0 if self._serves else sum(self._loops[one].num_rows for one in earlier if name not in self._fed_by[one])
        )
        return coming > loop.num_rows * _GATHERED or any(self._loops[other].is_full for other in earlier)

    def _chosen(self, busy: Sequence[str]) -> str:
        """Return the loop to go on with: the one before, unless its rows fill no batch and another's do.

        A server gives each some turns: where questions never end, the first would never be empty.
        """
        full = [name for name in busy if self._loops[name].is_full]
        choice = busy if self._serves else full or busy
        self._num_turns += 1
        if self._current not in choice:
            self._current, self._num_turns = choice[0], 0
        elif self._serves and self._num_turns >= _TURNS_ON_END:
            following = choice.index(self._current) + 1
            self._current, self._num_turns = choice[following % len(choice)], 0
        return self._current


def _fed_by(steps: Sequence[SharedStep]) -> dict[str, set[str]]:
    """Return for each loop the other loops whose rows come before its own."""
    loop_of = {shared.id: shared.loop for shared in steps}
    fed_by: dict[str, set[str]] = {shared.loop: set() for shared in steps}
    for shared in steps:  # each after those that it reads
        for read in shared.before:
            fed_by[shared.loop] |= {loop_of[read]} | fed_by[loop_of[read]]
    return {name: others - {name} for name, others in fed_by.items()}
