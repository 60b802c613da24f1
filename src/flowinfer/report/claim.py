"""A claim of the paper and what numbers say about it, in words that always carry their numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flowinfer.report.evidence import Evidence, QuestionSet, Wiring
from flowinfer.report.inference import Difference, paired_difference

Verdict = Literal["holds", "does not hold", "cannot be told"]
PREFACE = (
    "The paper's claims, judged by these runs alone, at the 5 % level: what holds here holds for these models and "
    "questions, which need not be the paper's."
)
LEVEL = 0.05
"""Significance; corrected by Holm where a claim needs several tests."""


@dataclass(frozen=True)
class Finding:
    """One claim and what the numbers say about it."""

    key: str
    claim: str
    verdict: Verdict
    sentences: tuple[str, ...]
    """Each with its numbers and the test behind it."""


def mean_right(evidence: Evidence, wirings: Sequence[Wiring], datasets: Sequence[QuestionSet]) -> dict[str, float]:
    """Return question -> mean of the verdicts of some paths, over the sets that all of them answered whole."""
    found: dict[str, float] = {}
    for dataset in datasets:
        cells = [evidence.whole(wiring, dataset) for wiring in wirings]
        verdicts = [cell.verdicts for cell in cells if cell]
        if not verdicts or len(verdicts) < len(wirings):
            continue
        for question in verdicts[0]:
            if all(question in one for one in verdicts):
                found[f"{dataset.key}/{question}"] = statistics.fmean(one[question] for one in verdicts)
    return found


def difference(first: dict[str, float], second: dict[str, float]) -> Difference | None:
    """Return the mean of first less second over the questions of both."""
    return paired_difference([first[question] - second[question] for question in first if question in second])


def points(value: float) -> str:
    """Return a difference in points."""
    return f"{100 * value:+.1f}"


def percent(value: float) -> str:
    """Return a share."""
    return f"{100 * value:.1f} %"


def p_text(value: float) -> str:
    """Return a p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def difference_text(found: Difference) -> str:
    """Return a difference with interval, n and test."""
    interval = f"{points(found.low)} to {points(found.high)}"
    test = f"paired t over {found.n} questions, {p_text(found.p_value)}"
    return f"{points(found.mean)} points, 95 % interval {interval} ({test})"


def by_sign(found: Difference, p_value: float | None = None) -> Verdict:
    """Judge a claim that says "more"."""
    if (found.p_value if p_value is None else p_value) >= LEVEL:
        return "cannot be told"
    return "holds" if found.mean > 0 else "does not hold"
