"""The paper's claims, judged by one's own numbers: they hold, do not hold, or cannot be told at this n."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flowinfer.paper.claims import CLAIMS, Claim, Test
from flowinfer.report import judge_order, judge_strategy
from flowinfer.report.cost import judge_cost
from flowinfer.report.evidence import Evidence
from flowinfer.report.judged import Judged, Verdict


@dataclass(frozen=True)
class Finding:
    """One claim and what the numbers say about it."""

    key: str
    claim: str
    verdict: Verdict
    sentences: tuple[str, ...]
    """Each with its numbers and the test behind it."""


_TESTS: Mapping[Test, Callable[[Evidence, Claim], Judged | None]] = {
    "orders differ": judge_order.differ,
    "orders agree": judge_order.agree,
    "costs its slowest": judge_cost,
    "above singles": judge_strategy.above_singles,
    "above the others": judge_strategy.above_the_others,
}


def findings(evidence: Evidence) -> list[Finding]:
    """Return a finding for every claim that the strategies which were run have something to say about."""
    judged = [(claim, _TESTS[claim.test](evidence, claim)) for claim in CLAIMS]
    return [Finding(claim.key, claim.text, one.verdict, one.sentences) for claim, one in judged if one]
