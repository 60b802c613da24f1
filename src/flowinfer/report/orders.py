"""The paper's tables 6 and 7, every path beside its sister strategy, and one table of all paths."""

from __future__ import annotations

from dataclasses import replace

from flowinfer.paper.paths import Strategy
from flowinfer.report import paper, scores
from flowinfer.report.evidence import Evidence, Wiring
from flowinfer.report.scores import Against
from flowinfer.report.table import Column, Entry, Reached, Table, Text


def all_paths(evidence: Evidence, against: Against) -> Table:
    """Return every path's accuracy and seconds on every question set."""
    columns = [Column("strategy", "strategy"), Column("path", "path"), *_columns(evidence, "")]
    rows: list[tuple[Entry, ...]] = []
    for wiring in evidence.wirings:
        entries = scores.of_path(evidence, wiring, against)
        rows.append((Text(wiring.strategy or "other"), Text(wiring.name, is_flow=True), *entries))
    return Table(
        "paths",
        "All paths",
        "Accuracy in %, its 95 % interval and number of questions, seconds per question.",
        tuple(columns),
        tuple(_marked(rows, from_column=2)),
        (scores.MEAN_NOTE, *([paper.NOTE] if against.is_paper else [])),
        is_long=True,
    )


def series_and_parallel(evidence: Evidence, against: Against) -> Table | None:
    """Return table 6: SI and PI by order."""
    return _pair(evidence, ("SI", "PI"), "table-6-si-pi", "Paths of SI and PI", "6", against)


def composites(evidence: Evidence, against: Against) -> Table | None:
    """Return table 7: S2P and P2S by their serial model c and fused group [a-b]."""
    table = _pair(evidence, ("S2P", "P2S"), "table-7-s2p-p2s", "Paths of S2P and P2S", "7", against)
    if table is None:
        return None
    form = "c-[a-b]: S2P is c -> (a | b), P2S is (a | b) -> c"
    return replace(table, notes=(form, *table.notes))


def order_name(wiring: Wiring) -> str:
    """Return a path's row in the paper's tables: a-b-c, or c-[a-b] for the composites."""
    models = wiring.models
    match wiring.strategy:
        case "S2P":
            return f"{models[0]}-[{'-'.join(models[1:])}]"
        case "P2S":
            return f"{models[-1]}-[{'-'.join(models[:-1])}]"
    return "-".join(models)


def _pair(
    evidence: Evidence, kinds: tuple[Strategy, Strategy], key: str, title: str, number: str, against: Against
) -> Table | None:
    there = [kind for kind in kinds if evidence.of(kind)]
    if not there:
        return None
    by_order: dict[str, dict[str, list[Reached]]] = {}
    for wiring in evidence.of(*there):
        by_order.setdefault(order_name(wiring), {})[str(wiring.strategy)] = scores.of_path(evidence, wiring, against)
    columns = [Column("path", "path")]
    for kind in there:
        columns += _columns(evidence, kind)
    width = len(_columns(evidence, ""))
    rows: list[tuple[Entry, ...]] = []
    for order, found in by_order.items():
        cells: list[Entry] = [Text(order)]
        for kind in there:
            cells += found.get(kind, [scores.NOWHERE] * width)
        rows.append(tuple(cells))
    caption = (
        f"Accuracy in %, its 95 % interval and number of questions, seconds per question (the paper's table {number})."
    )
    notes = (scores.MEAN_NOTE, *([paper.NOTE] if against.is_paper else []))
    return Table(key, title, caption, tuple(columns), tuple(_marked(rows, from_column=1)), notes)


def _columns(evidence: Evidence, kind: str) -> list[Column]:
    """Return a column for every question set, and one for their mean where there are several."""
    sets = [
        Column(f"{kind} {dataset.label}".strip(), f"{kind} {dataset.label}".strip()) for dataset in evidence.datasets
    ]
    return sets + ([Column(f"{kind} mean".strip(), f"{kind} mean".strip())] if len(sets) > 1 else [])


def _marked(rows: list[tuple[Entry, ...]], from_column: int) -> list[tuple[Entry, ...]]:
    """Mark the best accuracy of each column, of those that were not cut short."""
    tops: dict[int, float] = {}
    for row in rows:
        for index, entry in enumerate(row):
            if isinstance(entry, Reached) and entry.accuracy is not None and entry.remark is None:
                tops[index] = max(tops.get(index, -1.0), entry.accuracy)
    return [
        tuple(
            replace(entry, is_marked=entry.remark is None and entry.accuracy == tops.get(index))
            if isinstance(entry, Reached) and index >= from_column and len(rows) > 1 and entry.accuracy is not None
            else entry
            for index, entry in enumerate(row)
        )
        for row in rows
    ]
