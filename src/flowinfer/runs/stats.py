"""How sure an accuracy is: Wilson's interval, McNemar's exact test for pairs, Holm's correction for many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

CONFIDENCE: Final = 0.95
"""Confidence of every interval that flowinfer prints."""


@dataclass(frozen=True)
class Interval:
    """A range of proportions (ends between 0 and 1), or of their differences (-1 and 1)."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two flows on the same questions."""

    both: int
    """Questions that both got right."""
    first_only: int
    second_only: int
    neither: int
    p_value: float
    """McNemar's exact test, two-sided: how likely so uneven a split is if neither flow is better."""

    @property
    def n(self) -> int:
        """Return how many questions both answered."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def difference(self) -> float:
        """Return the first's accuracy less the second's."""
        return (self.first_only - self.second_only) / self.n if self.n else 0.0


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's score interval of a proportion, without continuity correction.

    Nothing is known about no questions: n = 0 gives (0, 1). Raises ValueError unless 0 <= successes <= n.
    Source: Newcombe 1998, Statistics in Medicine 17:857-872, method 3.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, found {successes} of {n}")
    return wilson_share(successes / n if n else 0.0, n, confidence)


def wilson_share(share: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's interval of a share that need not be a count over n.

    For the mean of several verdicts per question it is conservative: such a mean varies at most as much as one verdict.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    from scipy.special import ndtri

    z = float(ndtri((1.0 + confidence) / 2.0))
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and 1 the formula is exactly 0 and 1; floats miss it by an ulp.
    low = 0.0 if share == 0 else (centre - reach) / scale
    high = 1.0 if share == 1 else (centre + reach) / scale
    return Interval(low, high)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Return the two-sided exact (binomial) p-value of McNemar's test from the two discordant counts.

    No discordant pair gives 1. Source: Fagerland, Lydersen, Laake 2013, BMC Med Res Methodol 13:91.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError(f"expected counts, found {first_only} and {second_only}")
    n = first_only + second_only
    if n == 0:
        return 1.0
    from scipy.special import bdtr  # the binomial's distribution function; scipy.stats takes seconds to import

    return min(1.0, 2.0 * float(bdtr(min(first_only, second_only), n, 0.5)))


def paired(first: Mapping[str, bool], second: Mapping[str, bool]) -> Paired:
    """Compare two flows on the questions (id -> correct) that both answered; others are left out."""
    common = [question_id for question_id in first if question_id in second]
    both = sum(first[i] and second[i] for i in common)
    first_only = sum(first[i] and not second[i] for i in common)
    second_only = sum(second[i] and not first[i] for i in common)
    neither = len(common) - both - first_only - second_only
    return Paired(both, first_only, second_only, neither, mcnemar_exact(first_only, second_only))


def paired_interval(counts: Paired, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the first's accuracy less the second's, on the same questions.

    Unlike a t interval it stays between -1 and 1, and has a width where no question tells the two apart.
    Source: Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10.
    """
    both, first, second, neither = counts.both, counts.first_only, counts.second_only, counts.neither
    n = counts.n
    if n == 0:
        return Interval(-1.0, 1.0)
    one, two = wilson(both + first, n, confidence), wilson(both + second, n, confidence)
    p_one, p_two = (both + first) / n, (both + second) / n
    lean = float(both * neither - first * second)
    lean = max(lean - n / 2, 0.0) if lean > 0 else lean
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = lean / math.sqrt(margins) if margins else 0.0
    below = _joined(p_one - one.low, two.high - p_two, phi)
    above = _joined(one.high - p_one, p_two - two.low, phi)
    return Interval(max(-1.0, p_one - p_two - below), min(1.0, p_one - p_two + above))


def _joined(one: float, two: float, phi: float) -> float:
    """Return the reach of a difference from its parts' and their correlation."""
    return math.sqrt(max(0.0, one * one - 2 * phi * one * two + two * two))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's step-down adjusted p-values, in the order given.

    Example: (0.01, 0.04, 0.03, 0.005) -> (0.03, 0.06, 0.06, 0.02).
    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    for p_value in p_values:
        if not 0.0 <= p_value <= 1.0:
            raise ValueError(f"expected p-values between 0 and 1, found {p_value}")
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)
