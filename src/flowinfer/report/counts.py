"""How outputs ended, and how often the heads of a fused step got their way."""

from __future__ import annotations

from collections.abc import Iterator

from flowinfer.report.evidence import Cell, Evidence
from flowinfer.report.table import Column, Entry, Number, Table, Text
from flowinfer.results import StepResult
from flowinfer.runs.stats import wilson
from flowinfer.runs.summary import is_tied


def endings(evidence: Evidence) -> Table:
    """Return no-answer, truncated and failed rates beside the accuracy of every path and question set."""
    rows: list[tuple[Entry, ...]] = []
    is_voted = any(record.trace.ballot for cell in evidence.cells.values() for record in cell.records)
    for wiring in evidence.wirings:
        for dataset in evidence.datasets:
            if cell := evidence.cell(wiring, dataset):
                name = Text(wiring.name, is_flow=True)
                endings = _ending(cell, is_voted=is_voted)
                rows.append((Text(wiring.strategy or "other"), name, Text(dataset.label), *endings))
    columns = [
        Column("strategy", "strategy"),
        Column("path", "path"),
        Column("task", "task"),
        Column("accuracy", "accuracy %"),
        Column("no_answer", "no answer %"),
        Column("ambiguous", "of them ambiguous"),
        Column("truncated", "truncated %"),
        Column("failed", "failed"),
        *([Column("ties", "tied votes")] if is_voted else []),
        Column("answered", "answered"),
        Column("asked", "asked"),
    ]
    caption = "How outputs ended; rates are of the outputs that are there."
    return Table("endings", "How answers ended", caption, tuple(columns), tuple(rows), is_long=True)


def agreement(evidence: Evidence) -> Table | None:
    """Return for every fused step the share of emitted tokens that were each head's own favourite."""
    rows: list[tuple[Entry, ...]] = []
    models: list[str] = sorted({head.model for step in _steps(evidence) for head in step.heads})
    for wiring in evidence.wirings:
        for dataset in evidence.datasets:
            cell = evidence.cell(wiring, dataset)
            for step, shares in _shares(cell).items() if cell else ():
                cells = [Number(shares.get(model), "percent") for model in models]
                name = Text(wiring.name, is_flow=True)
                rows.append((Text(wiring.strategy or "other"), name, Text(dataset.label), Text(step), *cells))
    if not rows:
        return None
    columns = [Column("strategy", "strategy"), Column("path", "path"), Column("task", "task"), Column("step", "step")]
    columns += [Column(f"agreement {model}", f"{model} %") for model in models]
    caption = "Share of emitted tokens (end of text included) that were the head's own argmax."
    return Table("agreement", "Agreement of the heads", caption, tuple(columns), tuple(rows), is_long=True)


def _ending(cell: Cell, *, is_voted: bool) -> tuple[Entry, ...]:
    num = len(cell.records) - cell.failed
    interval = wilson(cell.correct, cell.n)
    ambiguous = cell.count(lambda record: bool(record.score and record.score.status == "ambiguous"))
    known = cell.accuracy is not None
    return (
        Number(cell.accuracy, "percent", interval.low if known else None, interval.high if known else None, cell.n),
        Number(cell.no_answer / num if num else None, "percent"),
        Number(ambiguous, "count"),
        Number(cell.truncated / num if num else None, "percent"),
        Number(cell.failed, "count"),
        *([Number(cell.count(is_tied), "count")] if is_voted else []),
        Number(num, "count"),
        Number(cell.num_asked, "count"),
    )


def _shares(cell: Cell) -> dict[str, dict[str, float]]:
    """Return step -> model -> share, every token counting once; a model that heads twice counts as one."""
    agreed: dict[str, dict[str, float]] = {}
    tokens: dict[str, dict[str, int]] = {}
    for record in cell.records:
        for step in record.trace.steps:
            emitted = step.tokens + (step.finish_reason == "eos")
            for head in step.heads if len(step.heads) > 1 else ():
                if head.agreement is not None:
                    own, num = agreed.setdefault(step.step, {}), tokens.setdefault(step.step, {})
                    own[head.model] = own.get(head.model, 0.0) + head.agreement * emitted
                    num[head.model] = num.get(head.model, 0) + emitted
    return {
        step: {model: total / tokens[step][model] for model, total in own.items() if tokens[step][model]}
        for step, own in agreed.items()
    }


def _steps(evidence: Evidence) -> Iterator[StepResult]:
    for cell in evidence.cells.values():
        for record in cell.records:
            yield from (step for step in record.trace.steps if len(step.heads) > 1)
