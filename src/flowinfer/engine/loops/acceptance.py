"""How much to draft: a length per row that follows what was accepted, and whether drafts pay at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MOST = 16
"""Most keys of one draft."""
_FIRST = 8
_LEAST_ACCEPTED = 0.2
"""Acceptance below which a row stops to draft for a while."""
_KEEPS = (0.8, 0.98)
"""What each draft leaves of what a row, and what its step, counted before."""
_PRIOR = 0.8
"""Acceptance of which a step is believed capable before its first draft."""
_NAPS = (8, 128)
"""Rounds of the first and of the longest pause."""


@dataclass
class Acceptance:
    """How likely a drafted key is to be accepted if all before it were: accepted keys among all that were decided.

    Keys behind a rejected one were not decided. Older drafts count less and less.
    """

    keep: float
    hits: float = 4 * _PRIOR
    decided: float = 4.0

    def learn(self, drafted: int, accepted: int) -> None:
        """Take what became of a draft."""
        self.hits = self.keep * self.hits + accepted
        self.decided = self.keep * self.decided + accepted + (accepted < drafted)

    @property
    def share(self) -> float:
        """Return it, between 0 and 1."""
        return self.hits / self.decided


@dataclass
class DraftLength:
    """Draft length of one row: double on full acceptance, halve on rejection, pause where little is accepted."""

    length: int = _FIRST
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(_KEEPS[0]))
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
        self.acceptance.learn(drafted, accepted)
        self.length = min(2 * self.length, MOST) if accepted == drafted else max(1, self.length // 2)
        if accepted == drafted:
            self._nap = _NAPS[0]
        if self.acceptance.share < _LEAST_ACCEPTED:
            self._rest, self._nap = self._nap, min(2 * self._nap, _NAPS[1])
            self.length, self.acceptance = 2, Acceptance(_KEEPS[0], 0.25, 1.0)  # a further failure, and it rests again


_PLAIN_ROUNDS = 4
"""Rounds without drafts that say what a round costs, per number of rows."""
_TRIAL = 4
"""Keys of the first drafts, whose cost is not known."""
_NEXT_TRIAL = 64
"""Rounds after which drafts that did not seem to pay are tried again."""
_KEPT = 9
"""Latest measurements whose median counts: another program's load must not decide."""


@dataclass(frozen=True)
class DraftOdds:
    """How long a draft is, and how likely its keys are to be accepted."""

    length: int
    acceptance: float
    """Of its row's keys."""

    def expected(self, width: int) -> float:
        """Return how many keys of it are likely to be accepted if it is cut to a width."""
        return sum(self.acceptance**index for index in range(1, min(self.length, width) + 1))


@dataclass
class Payoff:
    """How far drafting pays, by the clock: rounds of each number of rows and width of drafts are timed.

    An accepted key saves its share of a plain round; the longest draft decides what the round costs, because rows are
    padded to it. Where no width earns more than it costs, the round goes without drafts.
    """

    is_on: bool = True
    """False: drafts are never cut, and nothing is measured."""
    _seconds: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """(rows, width), both as classes of size -> latest rounds; width 0 = without drafts."""
    _skipped: int = 0
    _acceptance: Acceptance = field(default_factory=lambda: Acceptance(_KEEPS[1]))

    def new_length(self) -> DraftLength:
        """Return the draft length of a new row, which expects what the step's rows have come to."""
        return DraftLength(acceptance=Acceptance(_KEEPS[0], 4 * self._acceptance.share))

    def is_open(self, num_rows: int) -> bool:
        """Return whether drafts are worth asking for: how long a plain round of so many rows takes is known."""
        return not self.is_on or len(self._seconds.get((num_rows.bit_length(), 0), ())) >= _PLAIN_ROUNDS

    def width(self, drafts: Sequence[DraftOdds]) -> int:
        """Return to how many keys all drafts of a round should be cut."""
        longest = max((draft.length for draft in drafts), default=0)
        if not self.is_on or not longest:
            return longest
        num_rows = len(drafts)
        plain = self._known(num_rows, 0) or 0.0
        earned = {0: 0.0}
        for width in {1, 2, 4, 8, longest}:
            cost = self._cost(num_rows, width)
            if cost is None:
                return min(longest, _TRIAL)
            earned[width] = sum(draft.expected(width) for draft in drafts) * plain / num_rows - (cost - plain)
        best = max(earned, key=lambda width: (earned[width], -width))
        self._skipped = 0 if best else self._skipped + 1
        if self._skipped >= _NEXT_TRIAL:
            self._skipped = 0
            return min(longest, _TRIAL)
        return min(best, longest)

    def note(self, drafted: int, accepted: int) -> None:
        """Take what became of one row's draft."""
        if drafted:
            self._acceptance.learn(drafted, accepted)

    def learn(self, num_rows: int, width: int, seconds: float) -> None:
        """Take what a round of so many rows with drafts of at most that width cost."""
        if self.is_on:
            known = self._seconds.setdefault((num_rows.bit_length(), width.bit_length()), [])
            known.append(seconds)
            del known[:-_KEPT]

    def _known(self, num_rows: int, width: int) -> float | None:
        found = self._seconds.get((num_rows.bit_length(), width.bit_length()))
        return sorted(found)[len(found) // 2] if found else None

    def _cost(self, num_rows: int, width: int) -> float | None:
        """Return the seconds of a round, at most: those of a wider one, or a narrower one's in proportion."""
        plain = self._known(num_rows, 0) or 0.0
        for other in (width, *(w for w in (1, 2, 4, 8, 16) if w > width)):
            if (known := self._known(num_rows, other)) is not None:
                return known
        for other in (w for w in (8, 4, 2, 1) if w < width):
            if (known := self._known(num_rows, other)) is not None:
                return plain + max(known - plain, 0.0) * width / other
        return None
