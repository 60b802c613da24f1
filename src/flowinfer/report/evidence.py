"""What runs left on disk, ordered for comparison: paths, question sets, and a cell for each pair of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from flowinfer.paper.paths import STRATEGIES, Strategy
from flowinfer.report.wirings import Whole
from flowinfer.results import Record
from flowinfer.runs.stats import Interval, wilson
from flowinfer.runs.summary import SelectionSummary, Tally, mean_calls, selections_of, tally


@dataclass(frozen=True)
class Wiring:
    """One path with one group of settings."""

    key: str
    """Unique in a report."""
    strategy: Strategy | None
    """None: none of the paper's."""
    models: tuple[str, ...]
    """In the order in which the flow names them."""
    flow: str
    """Its wiring, on one line; what all flows of a text have in common, whatever their options."""
    name: str
    """For tables; unique in a group."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What decides its texts besides the flow: decoding, prompts, zoo."""
    whole: Whole = field(default_factory=lambda: Whole("", ""))
    """With all options, for somebody who wants to use it."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions that paths were asked."""

    key: str
    name: str
    """As asked for, e.g. gsm8k."""
    label: str
    """For tables; unique in a report."""
    kind: str
    """Judge: gsm8k, ceval, mathematics, exact."""
    num_asked: int
    fingerprint: str

    @property
    def task(self) -> str:
        """Return which of the paper's tasks this is, "" for questions of one's own, whatever judge they have."""
        return self.kind if self.name == self.kind else ""


@dataclass(frozen=True)
class Cell:
    """One path on one question set."""

    wiring: str
    dataset: str
    run: Path
    """Run folder."""
    records: tuple[Record, ...]
    num_asked: int
    timed: tuple[Record, ...] = ()
    """Measured at batch 1 and never from the cache."""

    @cached_property
    def verdicts(self) -> Mapping[str, bool]:
        """Return question id -> right, of the questions that have a verdict: failed ones have none."""
        return {record.question.id: record.score.correct for record in self.records if record.score is not None}

    @cached_property
    def tally(self) -> Tally:
        """Return how its outputs ended."""
        return tally(self.records)

    @property
    def n(self) -> int:
        """Return how many questions have a verdict."""
        return len(self.verdicts)

    @cached_property
    def correct(self) -> int:
        """Return how many were answered right."""
        return sum(self.verdicts.values())

    @property
    def accuracy(self) -> float | None:
        """Return the share answered right, None without a verdict."""
        return self.correct / self.n if self.n else None

    @property
    def interval(self) -> Interval:
        """Return the accuracy's interval, Wilson's, 95 %."""
        return wilson(self.correct, self.n)

    @cached_property
    def calls(self) -> float | None:
        """Return the mean model calls of a question that was answered, None where none was."""
        return mean_calls(self.records)

    @cached_property
    def tokens(self) -> float | None:
        """Return the mean tokens that all steps of an answered question wrote, None where none was."""
        found = [sum(step.tokens for step in one.trace.steps) for one in self.records if one.trace.error is None]
        return statistics.fmean(found) if found else None

    @cached_property
    def selections(self) -> tuple[SelectionSummary, ...]:
        """Return which of several texts were taken, where steps may be skipped."""
        return selections_of(self.records)

    @property
    def is_whole(self) -> bool:
        """Whether every question that was asked has a verdict: only such cells enter means and bests."""
        return 0 < self.num_asked <= self.n

    @cached_property
    def seconds(self) -> float | None:
        """Return mean seconds per question, None where nothing was timed."""
        return statistics.fmean(record.trace.seconds for record in self.timed) if self.timed else None


@dataclass(frozen=True)
class Evidence:
    """Everything a report is made from."""

    wirings: tuple[Wiring, ...]
    datasets: tuple[QuestionSet, ...]
    cells: Mapping[tuple[str, str], Cell]
    """(wiring key, data set key) -> cell."""
    notes: tuple[str, ...] = ()
    """What a reader must know: what is missing, and why."""
    sources: tuple[str, ...] = ()
    """The folders, as named."""
    setup: str = ""
    """The settings that set this group apart from others of the report; "" where there is one group."""

    def cell(self, wiring: Wiring, dataset: QuestionSet) -> Cell | None:
        """Return the cell of a path on a question set, or None where it was not run."""
        return self.cells.get((wiring.key, dataset.key))

    def whole(self, wiring: Wiring, dataset: QuestionSet) -> Cell | None:
        """Return the cell if every question has a verdict."""
        found = self.cell(wiring, dataset)
        return found if found and found.is_whole else None

    def of(self, *strategies: Strategy | None) -> tuple[Wiring, ...]:
        """Return the paths of some strategies."""
        return tuple(wiring for wiring in self.wirings if wiring.strategy in strategies)

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """Return which of the paper's strategies are there, singles first."""
        return tuple(strategy for strategy in STRATEGIES if self.of(strategy))

    @property
    def collaborations(self) -> tuple[Strategy, ...]:
        """Return which of SI, PI, S2P, P2S are there."""
        return tuple(strategy for strategy in self.strategies if strategy != "single")

    @property
    def fused_models(self) -> list[str]:
        """Return the models that are heads of fused steps."""
        steps = (step for cell in self.cells.values() for record in cell.records for step in record.trace.steps)
        return sorted({head.model for step in steps if len(step.heads) > 1 for head in step.heads})

    def groups(self) -> list[Evidence]:
        """Split by the settings in which paths of the same flow differ; paths are compared inside a group only."""
        varying = _varying(self.wirings)
        by_setup: dict[str, list[Wiring]] = {}
        for wiring in self.wirings:
            setup = ", ".join(f"{key}={wiring.settings.get(key, '-')}" for key in varying)
            by_setup.setdefault(setup, []).append(wiring)
        return [self.only(wirings, setup) for setup, wirings in by_setup.items()]

    def only(self, wirings: Sequence[Wiring], setup: str = "") -> Evidence:
        """Return the part about some paths."""
        keys = {wiring.key for wiring in wirings}
        cells = {pair: cell for pair, cell in self.cells.items() if pair[0] in keys}
        used = {pair[1] for pair in cells}
        datasets = tuple(dataset for dataset in self.datasets if dataset.key in used)
        return replace(self, wirings=tuple(wirings), datasets=datasets, cells=cells, setup=setup)


def has_control(evidence: Evidence) -> bool:
    """Return whether some path may skip steps, so that questions cost unlike much."""
    return any(cell.selections for cell in evidence.cells.values())


def best(evidence: Evidence, wirings: Iterable[Wiring], dataset: QuestionSet) -> Wiring | None:
    """Return the most accurate of some paths on a question set; of equals the faster, then the first."""
    found = [(wiring, cell) for wiring in wirings if (cell := evidence.whole(wiring, dataset))]
    if not found:
        return None
    slowest = float("inf")
    return max(found, key=lambda pair: (pair[1].accuracy or 0.0, -(pair[1].seconds or slowest)))[0]


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, None below two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _varying(wirings: Sequence[Wiring]) -> list[str]:
    """Return the settings that differ between paths of the same flow."""
    seen: dict[str, dict[str, set[str]]] = {}
    for wiring in wirings:
        for key, value in wiring.settings.items():
            seen.setdefault(wiring.flow, {}).setdefault(key, set()).add(value)
    return list(dict.fromkeys(key for keys in seen.values() for key, values in keys.items() if len(values) > 1))
