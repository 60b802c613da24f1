"""Intervals and tests for many paths on the same questions, beside those of `flowinfer.runs.stats`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.runs.stats import CONFIDENCE, Interval


@dataclass(frozen=True)
class Cochran:
    """Cochran's Q: do K paths differ on the same questions?"""

    q: float
    degrees: int
    p_value: float
    num_telling: int
    """Questions on which the paths do not all agree; the others say nothing."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, one per question."""

    mean: float
    low: float
    high: float
    p_value: float
    n: int


def mean_interval(shares: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Return the interval of the unweighted mean of independent shares (question sets) from their own intervals.

    Source: Zou and Donner 2008, Statistics in Medicine 27:1693-1702 (method of variance estimates recovery).
    """
    mean = statistics.fmean(shares)
    below = math.sqrt(sum((share - one.low) ** 2 for share, one in zip(shares, intervals, strict=True)))
    above = math.sqrt(sum((one.high - share) ** 2 for share, one in zip(shares, intervals, strict=True)))
    return Interval(max(0.0, mean - below / len(shares)), min(1.0, mean + above / len(shares)))


def cochran_q(rows: Sequence[Sequence[bool]]) -> Cochran:
    """Test whether K paths are equally often right, from one row of K verdicts per question.

    Source: Cochran 1950, Biometrika 37:256-266.
    """
    k = len(rows[0]) if rows else 0
    telling = [row for row in rows if 0 < sum(row) < k]
    if k < 2 or not telling:
        return Cochran(0.0, max(0, k - 1), 1.0, 0)
    from scipy.special import chdtrc

    columns = [sum(row[index] for row in telling) for index in range(k)]
    totals = [sum(row) for row in telling]
    spread = k * sum(column * column for column in columns) - sum(columns) ** 2
    q = (k - 1) * spread / (k * sum(totals) - sum(total * total for total in totals))
    return Cochran(q, k - 1, float(chdtrc(k - 1, q)), len(telling))


def paired_difference(differences: Sequence[float], confidence: float = CONFIDENCE) -> Difference | None:
    """Return the mean of paired differences with its t interval and two-sided p-value; None below two questions.

    Where all differences are equal there is nothing to estimate a spread from: the interval is the point, p is 1 for 0
    and 0 otherwise. Callers that show such a p say so.
    """
    n = len(differences)
    if n < 2:
        return None
    from scipy.special import stdtr, stdtrit

    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(n)
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, n)
    reach = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, mean - reach, mean + reach, min(1.0, p_value), n)
