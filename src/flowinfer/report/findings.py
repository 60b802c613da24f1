"""The paper's claims, judged by one's own numbers: they hold, do not hold, or cannot be told at this n."""

from __future__ import annotations

from flowinfer.report import claims_cost, claims_order, claims_strategy
from flowinfer.report.claim import Finding
from flowinfer.report.evidence import Evidence


def findings(evidence: Evidence) -> list[Finding]:
    """Return a finding for every claim that the strategies which were run have something to say about."""
    found: list[Finding | None] = [
        claims_order.serial_depends_on_order(evidence),
        claims_order.parallel_ignores_order(evidence),
        claims_cost.parallel_costs_its_slowest_branch(evidence),
        claims_strategy.composites_win(evidence),
        claims_strategy.serial_first_for_knowledge(evidence),
        claims_strategy.parallel_first_for_arithmetic(evidence),
    ]
    return [finding for finding in found if finding is not None]
