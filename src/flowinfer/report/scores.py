"""Accuracies with intervals, and their means over paths and over question sets, as table entries."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowinfer.paper.paths import Strategy
from flowinfer.report import paper
from flowinfer.report.evidence import Cell, Evidence, QuestionSet, Wiring, best
from flowinfer.report.inference import mean_interval, wilson_share
from flowinfer.report.table import Reached
from flowinfer.runs.stats import Interval, wilson

NOWHERE = Reached(None)
"""Where nothing was measured."""

BEST_NOTE = (
    "best path: the most accurate on these same questions (of equals the faster), so its accuracy is an optimistic "
    "estimate; the mean over paths is not"
)
MEAN_NOTE = (
    "mean over question sets: unweighted; its interval combines theirs (Zou and Donner 2008). Mean over paths: "
    "Wilson's interval for the number of questions, which is conservative"
)


@dataclass(frozen=True)
class Against:
    """What stands beside one's own numbers."""

    is_paper: bool = False


def of_cell(cell: Cell | None) -> Reached:
    """Return a cell's accuracy and seconds."""
    if cell is None or cell.accuracy is None:
        return NOWHERE
    interval = wilson(cell.correct, cell.n)
    missing = "" if cell.is_whole else f"{cell.n} of {cell.num_asked} questions"
    return Reached(cell.accuracy, interval.low, interval.high, cell.n, cell.seconds, remark=missing or None)


def over_paths(evidence: Evidence, wirings: Sequence[Wiring], dataset: QuestionSet) -> Reached:
    """Return the mean over paths on the same questions, of those paths that answered all of them."""
    cells = [cell for wiring in wirings if (cell := evidence.whole(wiring, dataset))]
    accuracies = [cell.accuracy for cell in cells if cell.accuracy is not None]
    if not accuracies:
        return NOWHERE
    share, n = statistics.fmean(accuracies), min(cell.n for cell in cells)
    interval = wilson_share(share, n)
    seconds = [cell.seconds for cell in cells if cell.seconds is not None]
    mean_seconds = statistics.fmean(seconds) if len(seconds) == len(cells) else None
    partial = f"{len(cells)} of {len(wirings)} paths" if len(cells) < len(wirings) else None
    return Reached(share, interval.low, interval.high, n, mean_seconds, remark=partial)


def over_sets(entries: Sequence[Reached]) -> Reached:
    """Return the mean over question sets, or nothing where one of them has no accuracy or is over fewer paths."""
    shares = [entry.accuracy for entry in entries if entry.accuracy is not None]
    if not shares or len(shares) < len(entries) or any(entry.remark for entry in entries):
        return NOWHERE
    interval = mean_interval(shares, [Interval(entry.low, entry.high) for entry in entries])
    seconds = [entry.seconds for entry in entries if entry.seconds is not None]
    mean_seconds = statistics.fmean(seconds) if len(seconds) == len(entries) else None
    n = sum(entry.n for entry in entries)
    return Reached(statistics.fmean(shares), interval.low, interval.high, n, mean_seconds)


def of_path(evidence: Evidence, wiring: Wiring, against: Against) -> list[Reached]:
    """Return a path's entry on every question set, and their mean where it has all."""
    entries = [of_cell(evidence.cell(wiring, dataset)) for dataset in evidence.datasets]
    whole = [of_cell(evidence.whole(wiring, dataset)) for dataset in evidence.datasets]
    if wiring.strategy and against.is_paper:
        tasks = [dataset.task for dataset in evidence.datasets]
        entries = [
            with_paper(entry, paper.path(wiring.strategy, wiring.models, task))
            for entry, task in zip(entries, tasks, strict=True)
        ]
    return [*entries, *([over_sets(whole)] if len(whole) > 1 else [])]


def of_best(evidence: Evidence, strategy: Strategy, dataset: QuestionSet, against: Against) -> Reached:
    """Return a strategy's best path on a question set."""
    wiring = best(evidence, evidence.of(strategy), dataset)
    if wiring is None:
        return NOWHERE
    entry = replace(of_cell(evidence.whole(wiring, dataset)), path=wiring.name)
    has_paper = against.is_paper and has_papers_models(evidence)
    return with_paper(entry, paper.best(strategy, dataset.task)) if has_paper else entry


def has_papers_models(evidence: Evidence) -> bool:
    """Return whether means and bests over the paths are over models of the paper's names, all three and no other."""
    return {name for wiring in evidence.wirings if wiring.strategy for name in wiring.models} == paper.MODELS


def with_paper(entry: Reached, cell: paper.PaperCell | None) -> Reached:
    """Put the paper's numbers beside one's own."""
    return replace(entry, paper=(cell.accuracy, cell.seconds)) if cell else entry
