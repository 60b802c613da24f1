"""The long table behind every table and figure: accuracy, interval and seconds of paths, their means and their bests.

A line is a path (by its key), the mean over a strategy's paths (`SI mean`) or its best path (`SI best`); it has a cell
for each question set, and one for their mean where there are several.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from flowinfer.paper import numbers
from flowinfer.paper.paths import Strategy
from flowinfer.report.compare import Comparison, comparisons
from flowinfer.report.evidence import Cell, Evidence, QuestionSet, Wiring, best
from flowinfer.report.inference import mean_interval
from flowinfer.report.table import NOWHERE, Reached
from flowinfer.runs.stats import Interval, wilson_share


@dataclass(frozen=True)
class Cells:
    """Everything that tables are filled from."""

    evidence: Evidence
    against: str | None = None
    """What stands beside one's own numbers: paper, or nothing."""

    @cached_property
    def lines(self) -> dict[str, list[Reached]]:
        """Return line -> its cells."""
        evidence, sets = self.evidence, self.evidence.datasets
        found = {one.key: [_of_cell(evidence.cell(one, dataset)) for dataset in sets] for one in evidence.wirings}
        for kind in evidence.strategies:
            found[f"{kind} mean"] = [_over_paths(evidence, evidence.of(kind), dataset) for dataset in sets]
            found[f"{kind} best"] = [_of_best(evidence, kind, dataset) for dataset in sets]
        return {line: [*cells, over_sets(cells)] if len(sets) > 1 else cells for line, cells in found.items()}

    @cached_property
    def places(self) -> list[str]:
        """Return what a line's cells are of: the question sets, and their mean."""
        labels = [dataset.label for dataset in self.evidence.datasets]
        return [*labels, "mean"] if len(labels) > 1 else labels

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Return the paired tests."""
        return comparisons(self.evidence)

    def whole(self, wiring: Wiring) -> list[Reached]:
        """Return a path's cells, nothing where it did not answer all questions."""
        return [NOWHERE if cell.remark else cell for cell in self.lines[wiring.key]]

    def beside(self, cells: Iterable[Reached], row: str) -> list[Reached]:
        """Return cells with a row of the paper's beside them, where that is wanted and tasks and models are its own."""
        tasks = [dataset.task for dataset in self.evidence.datasets]
        has_mean = self.has_papers_models and set(tasks) == set(numbers.TASKS)
        tasks.append("mean" if has_mean else "")
        row = row if self.against == "paper" else ""
        return [replace(cell, paper=numbers.published(row, task)) for cell, task in zip(cells, tasks, strict=False)]

    @property
    def has_papers_models(self) -> bool:
        """Whether means and bests over the paths are over models of the paper's names, all three and no other."""
        found = {name for wiring in self.evidence.wirings if wiring.strategy for name in wiring.models}
        return found == numbers.MODELS


def over_sets(cells: Sequence[Reached]) -> Reached:
    """Return the mean over question sets, or nothing where one of them has no accuracy or is over fewer paths."""
    shares = [cell.accuracy for cell in cells if cell.accuracy is not None]
    if not shares or len(shares) < len(cells) or any(cell.remark for cell in cells):
        return NOWHERE
    interval = mean_interval(shares, [Interval(cell.low, cell.high) for cell in cells])
    seconds = _mean_of_all(cell.seconds for cell in cells)
    return Reached(statistics.fmean(shares), interval.low, interval.high, sum(cell.n for cell in cells), seconds)


def _of_cell(cell: Cell | None) -> Reached:
    if cell is None or cell.accuracy is None:
        return NOWHERE
    interval, missing = cell.interval, None if cell.is_whole else f"{cell.n} of {cell.num_asked} questions"
    return Reached(cell.accuracy, interval.low, interval.high, cell.n, cell.seconds, remark=missing)


def _of_best(evidence: Evidence, kind: Strategy, dataset: QuestionSet) -> Reached:
    found = best(evidence, evidence.of(kind), dataset)
    return replace(_of_cell(evidence.cell(found, dataset)), path=found.name) if found else NOWHERE


def _over_paths(evidence: Evidence, wirings: Sequence[Wiring], dataset: QuestionSet) -> Reached:
    """Return the mean over paths on the same questions, of those paths that answered all of them."""
    cells = [cell for wiring in wirings if (cell := evidence.whole(wiring, dataset))]
    if not cells:
        return NOWHERE
    share, n = statistics.fmean(cell.correct / cell.n for cell in cells), min(cell.n for cell in cells)
    interval, seconds = wilson_share(share, n), _mean_of_all(cell.seconds for cell in cells)
    partial = f"{len(cells)} of {len(wirings)} paths" if len(cells) < len(wirings) else None
    return Reached(share, interval.low, interval.high, n, seconds, remark=partial)


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    """Return the mean, None where one of them is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if len(known) == len(found) else None
