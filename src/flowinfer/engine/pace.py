"""How much to draft: a length per row that follows what was accepted, and whether drafts pay at all."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 16
"""Most keys of one draft."""
_FIRST = 8
_LEAST_ACCEPTED = 0.2
"""Share of accepted keys below which a row stops to draft for a while."""
_NAPS = (8, 128)
"""Rounds of the first and of the longest pause."""


@dataclass
class Pace:
    """Draft length of one row: double on full acceptance, halve on rejection, pause where little is accepted."""

    length: int = _FIRST
    accepted_share: float = 0.5
    """Moving average."""
    _rest: int = 0
    _nap: int = _NAPS[0]

    def limit(self) -> int:
        """Return how many keys to draft now."""
        if self._rest:
            self._rest -= 1
            return 0
        return self.length

    def learn(self, drafted: int, accepted: int) -> None:
        """Take what became of a draft; an empty one teaches nothing."""
        if not drafted:
            return
        self.accepted_share = 0.7 * self.accepted_share + 0.3 * accepted / drafted
        self.length = min(2 * self.length, MOST) if accepted == drafted else max(1, self.length // 2)
        if accepted == drafted:
            self._nap = _NAPS[0]
        if self.accepted_share < _LEAST_ACCEPTED:
            self._rest, self._nap = self._nap, min(2 * self._nap, _NAPS[1])
            self.length, self.accepted_share = 2, _LEAST_ACCEPTED  # one more failure, and it rests again


_MOST_COLUMNS = 128
"""Most keys that all rows draft together where drafts must pay: a forward over more is no longer cheap on a CPU."""
_PLAIN_ROUNDS = 4
"""Rounds without drafts that say what a round costs, per number of rows."""
_TRIAL_ROUNDS = 3.0
"""How many plain rounds a trial may lose before it is broken off."""
_LONGEST_PAUSE = 4096


@dataclass
class Payoff:
    """Whether rounds with drafts are quicker than rounds without, by the clock.

    The first rounds of every number of rows go without drafts, to know what a plain round costs. From then on every
    round with drafts earns the plain rounds that its tokens would have taken and pays its own seconds. Where that
    falls below zero by a few plain rounds, drafts pause; every further failure doubles the pause.
    """

    is_on: bool = True
    """False: always draft, and measure nothing."""
    saved_seconds: float = 0.0
    """Of this trial."""
    _plain: dict[int, list[float]] = field(default_factory=dict)
    """Rows -> seconds of the latest plain rounds."""
    _rest: int = 0
    _pause: int = 32

    def most(self, num_rows: int) -> int:
        """Return how many keys each of so many rows may draft in this round."""
        if not self.is_on:
            return MOST
        if self._rest:
            self._rest -= 1
            return 0
        if len(self._plain.get(_bucket(num_rows), ())) < _PLAIN_ROUNDS:
            return 0
        return max(1, min(MOST, _MOST_COLUMNS // num_rows))

    def learn(self, num_rows: int, emitted: int, seconds: float, *, drafted: bool) -> None:
        """Take what a round of so many rows cost and emitted."""
        if not self.is_on:
            return
        known = self._plain.setdefault(_bucket(num_rows), [])
        if not drafted:
            known.append(seconds)
            del known[: -2 * _PLAIN_ROUNDS]
            return
        plain = sorted(known)[len(known) // 2]
        self.saved_seconds = min(self.saved_seconds + plain * emitted / num_rows - seconds, 8 * plain)
        if self.saved_seconds < -_TRIAL_ROUNDS * plain:
            self._rest, self._pause = self._pause, min(4 * self._pause, _LONGEST_PAUSE)
            self.saved_seconds = 0.0


def _bucket(num_rows: int) -> int:
    return num_rows.bit_length()
