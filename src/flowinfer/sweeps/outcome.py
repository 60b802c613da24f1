"""What a sweep came to: a table of paths and data sets, read from its folder."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowinfer.output.words import counted
from flowinfer.planning.plan import compile, members
from flowinfer.runs.store import read_records
from flowinfer.runs.summary import Results, summarize_run, taken_in
from flowinfer.runs.summing import calls_of
from flowinfer.sweeps.folder import Entry, read_index, read_latency
from flowinfer.sweeps.wirings import Wiring
from flowinfer.tasks.base import Dataset, language_note


@dataclass(frozen=True)
class Cell:
    """One path on one data set."""

    results: Results | None
    """None where the path failed."""
    error: str | None
    seconds: float | None
    """Mean per question, measured alone; None where nothing was."""
    calls: int
    """Model calls that its own run made; the others were taken from other runs."""
    needed: int
    """Model calls that its answers took, whichever run made them."""


@dataclass(frozen=True)
class SweepRow:
    """One path."""

    wiring: Wiring
    cells: tuple[Cell, ...]
    """One per data set."""
    calls: int
    """Model calls that it takes alone."""

    @property
    def mean(self) -> float | None:
        """Return its mean accuracy over the data sets; None unless every question of each has a verdict."""
        whole = [None if cell.results is None or cell.results.failed else cell.results.accuracy for cell in self.cells]
        return _whole_mean(whole)

    @property
    def seconds(self) -> float | None:
        """Return its mean seconds per question over the data sets; None unless measured on each."""
        return _whole_mean([cell.seconds for cell in self.cells])

    @property
    def shared(self) -> float:
        """Return the share of its calls that other runs made."""
        made = sum(cell.calls for cell in self.cells)
        return 1 - made / self.calls if self.calls else 0.0


def _whole_mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found and len(found) == len(values) else None


@dataclass(frozen=True)
class Sweep:
    """A sweep that is through."""

    folder: Path
    rows: tuple[SweepRow, ...]
    datasets: tuple[str, ...]
    """Names as asked for."""
    labels: tuple[str, ...]
    """Names for tables."""
    zoo: str
    zoo_note: str | None
    language_notes: tuple[str, ...]
    """Where questions are not in the language that they are asked in."""
    wall_seconds: float
    """At work, all sessions together."""

    @property
    def calls_needed(self) -> int:
        """Return the model calls (one model, one question) of a run that goes path by path."""
        return sum(row.calls for row in self.rows)

    @property
    def calls_made(self) -> int:
        """Return the calls that this sweep made."""
        return sum(cell.calls for row in self.rows for cell in row.cells)

    @property
    def failures(self) -> list[str]:
        """Return a line for every path that failed on a data set, or failed questions there."""
        found = []
        for row in self.rows:
            for label, cell in zip(self.labels, row.cells, strict=True):
                failed = cell.results.failed if cell.results else 0
                problem = cell.error or (f"{counted(failed, 'question')} failed" if failed else None)
                if problem is not None:
                    found.append(f"{row.wiring.key} {row.wiring.name} on {label}: {problem}")
        return found

    @property
    def table(self) -> list[dict[str, object]]:
        """Return one row per path and data set, ready for a data frame."""
        return [
            {"path": row.wiring.key, "flow": row.wiring.flow, "strategy": row.wiring.strategy, "dataset": name}
            | {key: value for key, value in _cell(cell).items() if key != "run"}
            for row in self.rows
            for name, cell in zip(self.datasets, row.cells, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return what results.json holds."""
        return {
            "version": 1,
            "calls_needed": self.calls_needed,
            "calls_made": self.calls_made,
            "seconds": self.wall_seconds,
            "paths": {
                row.wiring.key: {
                    "name": row.wiring.name,
                    "flow": row.wiring.flow,
                    "strategy": row.wiring.strategy,
                    "mean": row.mean,
                    "seconds_per_question": row.seconds,
                    "shared": row.shared,
                    "datasets": {name: _cell(cell) for name, cell in zip(self.datasets, row.cells, strict=True)},
                }
                for row in self.rows
            },
        }

    def __repr__(self) -> str:
        from flowinfer.sweeps.table import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from flowinfer.sweeps.table import as_html

        return as_html(self)


def read_sweep(folder: Path, wirings: Sequence[Wiring], datasets: Sequence[Dataset], seconds: float) -> Sweep:
    """Read what a sweep came to from its folder."""
    index, latency = read_index(folder), read_latency(folder)
    asked, rows = sum(len(dataset.questions) for dataset in datasets), []
    for wiring in wirings:
        plan = compile(wiring.checked)
        keys = [(wiring.key, dataset.name) for dataset in datasets]
        cells = tuple(_read_cell(folder, index.get(key), latency.get(key, {})) for key in keys)
        calls = asked * sum(len(list(members(step.source))) for step in plan.steps)
        calls = sum(cell.needed for cell in cells) if plan.selections else calls  # where steps may be skipped
        rows.append(SweepRow(wiring, cells, calls))
    flow = wirings[0].checked
    names, labels = tuple(one.name for one in datasets), tuple(one.label for one in datasets)
    told = language_notes(wirings, datasets)
    return Sweep(folder, tuple(rows), names, labels, flow.zoo, flow.zoo_note, told, seconds)


def language_notes(wirings: Sequence[Wiring], datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """Return what to know of questions that are not in the language of a path's prompt set, each once."""
    told = (
        (dataset.label, language_note(one.checked, dataset.questions, dataset.label))
        for dataset in datasets
        for one in wirings
    )
    return tuple(dict.fromkeys(f"{label}: {note}" for label, note in told if note))


def _read_cell(folder: Path, entry: Entry | None, latency: Mapping[str, float]) -> Cell:
    if entry is None:
        return Cell(None, "was not run", None, 0, 0)
    records = list(read_records(folder / entry.run))
    made = [step for record in records for step in record.trace.steps if step.cached_from is None]
    calls = sum(max(1, len(step.heads)) for step in made)
    needed = sum(calls_of(record.trace) for record in records)
    if entry.status != "done":
        return Cell(None, entry.error or "failed", None, calls, needed)
    results = summarize_run(folder / entry.run, records)
    alone = results.seconds_per_question if results.batch == "1" and not results.cached else None
    return Cell(results, None, statistics.fmean(latency.values()) if latency else alone, calls, needed)


def _cell(cell: Cell) -> dict[str, Any]:
    if cell.results is None:
        return {"status": "failed", "error": cell.error}
    kept = {"n", "correct", "accuracy", "no_answer", "truncated", "failed", "run"}
    plain = cell.results.model_dump(mode="json", include=kept)
    return {
        "status": "done",
        **plain,
        "interval": list(cell.results.interval),
        "seconds_per_question": cell.seconds,
        "calls_made": cell.calls,
        **({} if cell.results.calls is None else {"calls_per_question": cell.results.calls}),
        **({"taken": taken} if (taken := taken_in(cell.results.selections)) else {}),
    }
