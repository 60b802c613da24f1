"""What one token of a fused step is made of, and whether it costs what its slowest branch costs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from flowinfer.paper.claims import Claim
from flowinfer.report.evidence import Evidence
from flowinfer.report.inference import paired_difference
from flowinfer.report.judged import Judged, Verdict

_MARGIN = 1.1
"""A step that takes at most this much of its slowest branch costs "what it costs"."""


@dataclass(frozen=True)
class TokenCost:
    """One fused step of one question, in ms per emitted token."""

    heads: tuple[float, ...]
    """In the order of the group's models, as sorted."""
    transfer: float
    aggregation: float
    measured: float
    """Wall clock of the step."""
    question: str
    """Question set and id: steps of several paths may be of the same question."""

    @property
    def slowest(self) -> float:
        """Return the slowest branch."""
        return max(self.heads)


def token_costs(evidence: Evidence) -> dict[tuple[str, ...], list[TokenCost]]:
    """Return the timed fused steps by their models, largest groups first."""
    found: dict[tuple[str, ...], list[TokenCost]] = {}
    timed = ((cell, record) for cell in evidence.cells.values() for record in cell.timed)
    for cell, record in timed:
        for step in (step for step in record.trace.steps if len(step.heads) > 1):
            heads = sorted(step.heads, key=lambda head: head.model)
            scale = 1000 / max(1, step.tokens + (step.finish_reason == "eos"))
            cost = TokenCost(
                tuple(head.forward_seconds * scale for head in heads),
                sum(head.transfer_seconds for head in heads) * scale,
                step.fuse_seconds * scale,
                step.seconds * scale,
                f"{cell.dataset}/{record.question.id}",
            )
            found.setdefault(tuple(head.model for head in heads), []).append(cost)
    return dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def judge_cost(evidence: Evidence, claim: Claim) -> Judged | None:
    """Compare a fused step's wall clock with its slowest branch, step by step, at batch 1."""
    if not evidence.fused_models:
        return None
    groups = [_judged(" | ".join(models), costs) for models, costs in token_costs(evidence).items()]
    if not groups:
        return Judged("cannot be told", ("0 fused steps were timed at batch 1 without cached steps.",))
    verdicts = {verdict for verdict, _ in groups}
    verdict = groups[0][0] if len(verdicts) == 1 else "cannot be told"
    return Judged(verdict, tuple(sentence for _, sentence in groups))


def _judged(name: str, costs: list[TokenCost]) -> tuple[Verdict, str]:
    slowest = statistics.fmean(cost.slowest for cost in costs)
    summed = statistics.fmean(sum(cost.heads) for cost in costs)
    measured = statistics.fmean(cost.measured for cost in costs)
    extra = statistics.fmean(cost.transfer + cost.aggregation for cost in costs)
    start = (
        f"({name}): {measured:.2f} ms per token measured, slowest branch {slowest:.2f}, all branches one after another "
        f"{summed:.2f}, transfer and aggregation {extra:.3g}"
    )
    ratios: dict[str, list[float]] = {}
    for cost in costs:
        if cost.slowest > 0 and cost.measured > 0:
            ratios.setdefault(cost.question, []).append(math.log(cost.measured / cost.slowest))
    found = paired_difference([statistics.fmean(own) for own in ratios.values()])
    if found is None:
        return "cannot be told", f"{start}; {len(ratios)} question timed, too few for an interval."
    middle, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    verdict: Verdict = "holds" if high <= _MARGIN else "does not hold" if low > _MARGIN else "cannot be told"
    return verdict, (
        f"{start}; {middle:.2f} times the slowest branch, 95 % interval {low:.2f} to {high:.2f} (t interval of each "
        f"question's mean log ratio, {found.n} questions; at most {_MARGIN} would hold)."
    )
