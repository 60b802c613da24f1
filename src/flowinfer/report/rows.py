"""The rows of every table, by name: each a mapping from a column's key to its value."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from flowinfer.output import shell
from flowinfer.output.layout import Layout
from flowinfer.paper.numbers import AVERAGE, row_of
from flowinfer.paper.paths import row_name
from flowinfer.report.cells import Cells
from flowinfer.report.compare import ALL, Comparison
from flowinfer.report.cost import token_costs
from flowinfer.report.evidence import Cell, Wiring, best, deviation, has_control
from flowinfer.report.table import Entry, Reached, Text, Value
from flowinfer.runs.summary import cost_of, taken_in

Row = Mapping[str, Entry | Value]
SHOWN = 3
"""Changed questions named in a row; the JSON names all."""


def _tasks(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield a row for each question set: singles, their mean, and each strategy's best path and mean."""
    singles = cells.evidence.of("single")
    lines = {f"single {one.name}": cells.beside(cells.whole(one), one.models[0]) for one in singles}
    for kind in cells.evidence.collaborations:
        lines[kind] = cells.beside(cells.lines[f"{kind} best"], kind if cells.has_papers_models else "")
        lines[f"{kind}_best"], lines[f"{kind}_mean"] = cells.lines[f"{kind} best"], cells.lines[f"{kind} mean"]
    if singles:
        row = AVERAGE if cells.has_papers_models else ""
        lines["baseline"] = cells.beside(cells.lines["single mean"], row)
    places = cells.places if layout.rows == "tasks and mean" else cells.places[: len(cells.evidence.datasets)]
    for index, place in enumerate(places):
        yield {"task": place, **{key: line[index] for key, line in lines.items()}}


def _gains(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield each strategy's best path less the singles' mean and the best single, with the test of all paths."""
    evidence = cells.evidence
    tests = {
        (one.wiring.key, one.dataset.key): one for one in cells.comparisons if one.kind == "single" and one.dataset
    }
    for index, dataset in enumerate(evidence.datasets):
        for kind in evidence.collaborations:
            chosen = best(evidence, evidence.of(kind), dataset)
            test = tests.get((chosen.key, dataset.key)) if chosen else None
            if chosen is None or test is None:
                continue
            mine, mean = cells.lines[chosen.key][index], cells.lines["single mean"][index]
            yield {
                "task": dataset.label,
                "strategy": kind,
                "path": chosen.name,
                "gain_over_mean": None if mean.remark else _less(mine.accuracy, mean.accuracy),
                "seconds_over_mean": _less(mine.seconds, mean.seconds),
                "best_single": test.other.name,
                "gain_over_best": test.counts.difference,
                "p": test.counts.p_value,
                "p_holm": test.p_holm,
            }


def _parts_of_a_step(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield what one token of each fused group is made of."""
    for models, costs in token_costs(cells.evidence).items():
        total = statistics.fmean(cost.slowest + cost.transfer + cost.aggregation for cost in costs)
        shared = {
            "slowest branch": [cost.slowest for cost in costs],
            "data transfer": [cost.transfer for cost in costs],
            "token aggregation": [cost.aggregation for cost in costs],
        }
        parts = {f"head {model}": [cost.heads[index] for cost in costs] for index, model in enumerate(models)} | shared
        parts["heads one after another"] = [sum(cost.heads) for cost in costs]
        parts["measured"] = [cost.measured for cost in costs]
        for part, values in parts.items():
            mean, spread = statistics.fmean(values), deviation(values)
            yield {
                "group": f"({' | '.join(models)})",
                "part": part,
                "mean_ms": mean,
                "sd_ms": spread,
                "variance": None if spread is None else spread**2,
                "share": mean / total if total and part in shared else None,
                "n": len(values),
            }


def _orders(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield a row for each order of the models, with the paths of two strategies."""
    rows: dict[str, dict[str, Entry | Value]] = {}
    for wiring in (one for one in cells.evidence.wirings if one.strategy in layout.kinds):
        name = row_name(wiring.strategy, wiring.models)
        row = rows.setdefault(name, {"path": name})
        row |= {f"{wiring.strategy} {place}": cell for place, cell in _along(cells, wiring).items()}
    yield from rows.values()


def _paths(cells: Cells, layout: Layout) -> Iterator[Row]:
    for wiring in cells.evidence.wirings:
        reached = {f"at {place}": cell for place, cell in _along(cells, wiring).items()}
        yield {"strategy": wiring.strategy or "other", "path": wiring.name, **reached}


def _along(cells: Cells, wiring: Wiring) -> dict[str, Reached]:
    """Return place -> a path's cell, with the paper's for each task (its means are in table 4 only)."""
    row = row_of(wiring.strategy, wiring.models) if wiring.strategy else ""
    line, num = cells.lines[wiring.key], len(cells.evidence.datasets)
    return dict(zip(cells.places, [*cells.beside(line[:num], row), *line[num:]], strict=True))


def _strategies(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield over the paths of each strategy the mean, deviation and reach of their means over the question sets."""
    for kind in cells.evidence.collaborations:
        found = [cells.whole(wiring)[-1] for wiring in cells.evidence.of(kind)]
        accuracies = [cell.accuracy for cell in found if cell.accuracy is not None]
        known = [cell.seconds for cell in found if cell.seconds is not None]
        seconds = known if len(known) == len(accuracies) else []
        yield {
            "strategy": kind,
            "num_paths": len(accuracies),
            "mean_accuracy": statistics.fmean(accuracies) if accuracies else None,
            "mean_seconds": statistics.fmean(seconds) if seconds else None,
            "sd_accuracy": deviation(accuracies),
            "sd_seconds": deviation(seconds),
            "lowest": min(accuracies, default=None),
            "highest": max(accuracies, default=None),
        }


def _tests(cells: Cells, layout: Layout) -> Iterator[Row]:
    for one in cells.comparisons:
        if one.kind in layout.kinds:
            yield {
                "task": one.dataset.label if one.dataset else ALL,
                "strategy": one.wiring.strategy or "other",
                "path": _linked(one),
                "against": one.other.name,
                "n": one.counts.n,
                "gained": one.counts.first_only,
                "lost": one.counts.second_only,
                "points": one.counts.difference,
                "p": one.counts.p_value,
                "p_holm": one.p_holm,
            }


def _changes(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield for each pair the questions that changed, and the commands that show the first of them."""
    for one in cells.comparisons:
        if one.dataset is None or not (one.gained or one.lost):
            continue
        first = (*one.gained, *one.lost)[0]
        runs = [cells.evidence.cells[wiring.key, one.dataset.key].run for wiring in (one.wiring, one.other)]
        show, show_other = (shell.command("show", run, first) for run in runs)
        yield {
            "task": one.dataset.label,
            "path": _linked(one),
            "against": one.other.name,
            "gained": _named(one.gained),
            "lost": _named(one.lost),
            "show": show,
            "show_other": show_other,
        }


def _endings(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield how the outputs of each path and question set ended, beside its accuracy."""
    is_filtered = any(cell.tally.filtered for cell in cells.evidence.cells.values())
    is_voted = any(record.trace.ballot for cell in cells.evidence.cells.values() for record in cell.records)
    for head, cell in _each_cell(cells):
        counts, num = cell.tally, len(cell.records) - cell.tally.failed
        yield head | {
            "accuracy": Reached(cell.accuracy, cell.interval.low, cell.interval.high, cell.n),
            "no_answer": counts.no_answer / num if num else None,
            "ambiguous": counts.ambiguous,
            "truncated": counts.truncated / num if num else None,
            "failed": counts.failed,
            **({"ties": counts.ties} if is_voted else {}),
            **({"filtered": counts.filtered} if is_filtered else {}),
            **({} if (cost := cost_of(cell.records)) is None else {"cost": cost}),
            "answered": num,
            "asked": cell.num_asked,
        }


def _control(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield what a question of each path takes, and how often each member was taken, where some may be skipped."""
    if not has_control(cells.evidence):
        return
    for head, cell in _each_cell(cells):
        yield head | {
            "accuracy": Reached(cell.accuracy, cell.interval.low, cell.interval.high, cell.n),
            "calls": cell.calls,
            "tokens": cell.tokens,
            "taken": taken_in(cell.selections) or "-",
        }


def _fused_steps(cells: Cells, layout: Layout) -> Iterator[Row]:
    """Yield for every fused step the share of emitted tokens that were each head's own favourite."""
    for head, cell in _each_cell(cells):
        for step, shares in _shares(cell).items():
            yield head | {"step": step, **{f"agreement {model}": share for model, share in shares.items()}}


def _each_cell(cells: Cells) -> Iterator[tuple[dict[str, Entry | Value], Cell]]:
    for wiring in cells.evidence.wirings:
        for dataset in cells.evidence.datasets:
            if cell := cells.evidence.cell(wiring, dataset):
                yield {"strategy": wiring.strategy or "other", "path": wiring.name, "task": dataset.label}, cell


def _shares(cell: Cell) -> dict[str, dict[str, float]]:
    """Return step -> model -> share, every token counting once; a model that heads twice counts as one."""
    sums: dict[str, dict[str, list[float]]] = {}
    for step in (step for record in cell.records for step in record.trace.steps if len(step.heads) > 1):
        emitted = step.tokens + (step.finish_reason == "eos")
        for head in step.heads:
            if head.agreement is not None:
                both = sums.setdefault(step.step, {}).setdefault(head.model, [0.0, 0])
                both[0] += head.agreement * emitted
                both[1] += emitted
    return {step: {model: own / num for model, (own, num) in models.items() if num} for step, models in sums.items()}


def _linked(one: Comparison) -> Text:
    place = f"#diff/{one.dataset.key}/{one.wiring.key}/{one.other.key}" if one.dataset else None
    return Text(one.wiring.name, is_flow=True, target=place)


def _named(questions: Sequence[str]) -> str:
    more = f" and {len(questions) - SHOWN} more" if len(questions) > SHOWN else ""
    return ", ".join(questions[:SHOWN]) + more if questions else "-"


def _less(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


ROWS: Mapping[str, Callable[[Cells, Layout], Iterator[Row]]] = {
    "tasks": _tasks,
    "tasks and mean": _tasks,
    "gains": _gains,
    "parts of a step": _parts_of_a_step,
    "orders": _orders,
    "strategies": _strategies,
    "paths": _paths,
    "tests": _tests,
    "changes": _changes,
    "cells": _endings,
    "control": _control,
    "fused steps": _fused_steps,
}
