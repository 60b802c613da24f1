"""What PI costs: hypothesis 2."""

from __future__ import annotations

import math

from flowinfer.report.claim import Finding, Verdict
from flowinfer.report.cost import TokenCost, token_costs
from flowinfer.report.evidence import Evidence
from flowinfer.report.inference import paired_difference

_CLAIM = "Hypothesis 2: a fused step costs what its slowest branch costs"
_MARGIN = 1.1
"""A step that takes at most this much of its slowest branch costs "what it costs"."""


def parallel_costs_its_slowest_branch(evidence: Evidence) -> Finding | None:
    """Compare a fused step's wall clock with its slowest branch, step by step, at batch 1."""
    if not any(len(step.heads) > 1 for cell in evidence.cells.values() for r in cell.records for step in r.trace.steps):
        return None
    costs = token_costs(evidence)
    if not costs:
        sentence = "0 fused steps were timed at batch 1 without cached steps."
        return Finding("pi-cost", _CLAIM, "cannot be told", (sentence,))
    verdicts: list[Verdict] = []
    sentences = []
    for models, found in costs.items():
        verdict, sentence = _group(" | ".join(models), found)
        verdicts.append(verdict)
        sentences.append(sentence)
    return Finding("pi-cost", _CLAIM, _all(verdicts), tuple(sentences))


def _group(name: str, costs: list[TokenCost]) -> tuple[Verdict, str]:
    slowest = _mean([cost.slowest for cost in costs])
    summed = _mean([sum(cost.heads) for cost in costs])
    measured = _mean([cost.measured for cost in costs])
    extra = _mean([cost.transfer + cost.aggregation for cost in costs])
    start = (
        f"({name}): {measured:.2f} ms per token measured, slowest branch {slowest:.2f}, all branches one after another "
        f"{summed:.2f}, transfer and aggregation {extra:.3g}"
    )
    ratios: dict[str, list[float]] = {}
    for cost in costs:
        if cost.slowest > 0 and cost.measured > 0:
            ratios.setdefault(cost.question, []).append(math.log(cost.measured / cost.slowest))
    found = paired_difference([_mean(own) for own in ratios.values()])
    if found is None:
        return "cannot be told", f"{start}; {len(ratios)} question timed, too few for an interval."
    middle, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    verdict: Verdict = "holds" if high <= _MARGIN else "does not hold" if low > _MARGIN else "cannot be told"
    said = f"{middle:.2f} times the slowest branch, 95 % interval {low:.2f} to {high:.2f}"
    test = f"t interval of each question's mean log ratio, {found.n} questions; at most {_MARGIN} would hold"
    return (
        verdict,
        f"{start}; {said} ({test}).",
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _all(verdicts: list[Verdict]) -> Verdict:
    """Return what all groups say, or that it cannot be told where they disagree."""
    return verdicts[0] if len(set(verdicts)) == 1 else "cannot be told"
