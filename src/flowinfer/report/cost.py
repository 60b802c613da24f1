"""The paper's table 5: what one token of a fused step is made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowinfer.report.evidence import Evidence
from flowinfer.report.table import Column, Entry, Number, Table, Text
from flowinfer.results import Record, StepResult

_NOTE = (
    "per emitted token, from questions timed at batch 1; a head's time to read its prompt is spread over the tokens; "
    "deviation and variance over questions, not over single tokens. Share: of slowest branch + transfer + aggregation, "
    "which is one step's time where heads run at the same time; one after another is their sum, measured is wall clock"
)


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
    for question, step in _fused_steps(evidence):
        heads = sorted(step.heads, key=lambda head: head.model)
        tokens = max(1, step.tokens + (step.finish_reason == "eos"))
        scale = 1000 / tokens
        cost = TokenCost(
            tuple(head.forward_seconds * scale for head in heads),
            sum(head.transfer_seconds for head in heads) * scale,
            step.fuse_seconds * scale,
            step.seconds * scale,
            question,
        )
        found.setdefault(tuple(head.model for head in heads), []).append(cost)
    return dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def decomposition(evidence: Evidence) -> Table | None:
    """Return table 5, or None where no fused step was timed."""
    costs = token_costs(evidence)
    if not costs:
        return None
    rows = [row for models, found in costs.items() for row in _rows(models, found)]
    columns = [
        Column("group", "group"),
        Column("part", "part"),
        Column("mean_ms", "mean ms"),
        Column("sd_ms", "deviation ms"),
        Column("variance", "variance ms²"),
        Column("share", "share %"),
        Column("n", "steps timed"),
    ]
    return Table(
        "table-5-step",
        "One token of a fused step",
        "Milliseconds per emitted token (the paper's table 5).",
        tuple(columns),
        tuple(rows),
        (_NOTE,),
    )


def _rows(models: tuple[str, ...], costs: Sequence[TokenCost]) -> list[tuple[Entry, ...]]:
    total = statistics.fmean(cost.slowest + cost.transfer + cost.aggregation for cost in costs)
    parts = {f"head {model}": [cost.heads[index] for cost in costs] for index, model in enumerate(models)}
    shared = {
        "slowest branch": [cost.slowest for cost in costs],
        "data transfer": [cost.transfer for cost in costs],
        "token aggregation": [cost.aggregation for cost in costs],
    }
    whole = {
        "heads one after another": [sum(cost.heads) for cost in costs],
        "measured": [cost.measured for cost in costs],
    }
    group = f"({' | '.join(models)})"
    rows = [_row(group, name, values, None) for name, values in parts.items()]
    rows += [_row(group, name, values, total) for name, values in shared.items()]
    return rows + [_row(group, name, values, None) for name, values in whole.items()]


def _row(group: str, part: str, values: Sequence[float], total: float | None) -> tuple[Entry, ...]:
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else None
    return (
        Text(group, is_flow=True),
        Text(part),
        Number(mean, "ms"),
        Number(spread, "ms"),
        Number(None if spread is None else spread**2, "ms"),
        Number(mean / total if total else None, "percent"),
        Number(len(values), "count"),
    )


def _fused_steps(evidence: Evidence) -> Iterator[tuple[str, StepResult]]:
    for cell in evidence.cells.values():
        records: Sequence[Record] = cell.timing.records if cell.timing else ()
        for record in records:
            name = f"{cell.dataset}/{record.question.id}"
            yield from ((name, step) for step in record.trace.steps if len(step.heads) > 1)
