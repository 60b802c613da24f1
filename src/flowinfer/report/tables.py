"""Fill layouts with rows: the paper's tables, and those of any report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, product

from flowinfer.output.layout import Column, Layout
from flowinfer.paper import numbers
from flowinfer.paper.tables import CELL, LEVEL, MEAN, TABLES
from flowinfer.report.cells import Cells
from flowinfer.report.rows import ROWS, SHOWN
from flowinfer.report.table import Entry, Reached, Table, entry_of

_PATH = (Column("strategy", "strategy"), Column("path", "path", "flow"))
_TASK = Column("task", "task")


def _paired(kind: str, title: str, note: str) -> Layout:
    return Layout(
        f"tests-{kind}",
        title,
        "Each path paired question by question.",
        rows="tests",
        columns=(
            _TASK,
            *_PATH,
            Column("against", "against", "flow"),
            Column("n", "questions", "count"),
            Column("gained", "only the path right", "count"),
            Column("lost", "only the other right", "count"),
            Column("points", "points", "points"),
            Column("p", "McNemar p", "p"),
            Column("p_holm", "p, Holm", "p", level=LEVEL),
        ),
        notes=(
            "exact McNemar test on the questions that both answered; Holm's correction over the rows of one task",
            note,
        ),
        kinds=(kind,),
        is_long=True,
    )


OWN = (
    Layout(
        "paths",
        "All paths",
        f"{CELL}.",
        rows="paths",
        columns=(*_PATH, Column("{place}", "{place}", "cell", value="at {place}")),
        notes=(MEAN,),
        marks="column",
        is_long=True,
    ),
    _paired(
        "single",
        "Against the best single model",
        "best single: the most accurate on these same questions, which favours it",
    ),
    _paired(
        "reversal",
        "Against the reversal",
        "reversal: the flow read from right to left, so a -> (b | c) meets (c | b) -> a",
    ),
    Layout(
        "endings",
        "How answers ended",
        "How outputs ended; rates are of the outputs that are there.",
        rows="cells",
        columns=(
            *_PATH,
            _TASK,
            Column("accuracy", "accuracy %", "percent"),
            Column("no_answer", "no answer %", "percent"),
            Column("ambiguous", "of them ambiguous", "count"),
            Column("truncated", "truncated %", "percent"),
            Column("failed", "failed", "count"),
            Column("ties", "tied votes", "count"),
            Column("filtered", "filtered", "count"),
            Column("cost", "cost", "cost"),
            Column("answered", "answered", "count"),
            Column("asked", "asked", "count"),
        ),
        is_long=True,
    ),
    Layout(
        "control",
        "What questions took",
        "Model calls and tokens of a question (means), and how often each member or round was taken.",
        rows="control",
        columns=(
            *_PATH,
            _TASK,
            Column("accuracy", "accuracy %", "percent"),
            Column("calls", "calls / question", "mean"),
            Column("tokens", "tokens / question", "mean"),
            Column("taken", "taken"),
        ),
        notes=("tokens: written by all steps of a question, also by those whose text was not taken",),
        is_long=True,
    ),
    Layout(
        "agreement",
        "Agreement of the heads",
        "Share of emitted tokens (end of text included) that were the head's own argmax.",
        rows="fused steps",
        columns=(*_PATH, _TASK, Column("step", "step"), Column("agreement {model}", "{model} %", "percent")),
        is_long=True,
    ),
    Layout(
        "changes",
        "Questions that changed",
        "Questions whose verdict differs between two paths.",
        rows="changes",
        columns=(
            _TASK,
            Column("path", "path", "flow"),
            Column("against", "against", "flow"),
            Column("gained", "only the path right"),
            Column("lost", "only the other right"),
            Column("show", "shows the first, path", "flow", is_command=True),
            Column("show_other", "shows the first, other", "flow", is_command=True),
        ),
        notes=(f"the first {SHOWN} questions of each kind; report.json names all of them",),
        is_long=True,
    ),
)


def tables(cells: Cells) -> list[Table]:
    """Return every table that says something."""
    return [table for layout in (*TABLES, *OWN) if (table := fill(layout, cells)).has_numbers]


def fill(layout: Layout, cells: Cells) -> Table:
    """Return a layout with its rows; a column for which no row has a value is left out."""
    found = list(ROWS[layout.rows](cells, layout))
    columns = [one for one in _columns(layout, cells) if any(one.value in row for row in found)]
    rows = [tuple(entry_of(column, row.get(column.value)) for column in columns) for row in found]
    if layout.marks == "row":
        rows = [_marked(row) for row in rows]
    elif layout.marks == "column" and len(rows) > 1:
        rows = list(zip(*map(_marked, zip(*rows, strict=True)), strict=True))
    has_paper = cells.against == "paper" and any(column.unit == "cell" for column in layout.columns)
    notes = (*layout.notes, *([numbers.NOTE] if has_paper else []))
    return Table(layout.key, layout.title, layout.caption, tuple(columns), tuple(rows), notes, layout.is_long)


def _columns(layout: Layout, cells: Cells) -> Iterator[Column]:
    """Yield columns, families of one name together: SI best, SI mean, PI best, PI mean."""
    evidence = cells.evidence
    there: dict[str, Sequence[str]] = {
        "single": [wiring.name for wiring in evidence.of("single")],
        "kind": [kind for kind in evidence.collaborations if kind in layout.kinds or not layout.kinds],
        "place": cells.places,
        "model": evidence.fused_models,
    }
    for names, family in groupby(layout.columns, lambda column: tuple(re.findall(r"{(\w+)}", column.key))):
        columns = list(family)
        for chosen in product(*(there[name] for name in names)):
            words = dict(zip(names, chosen, strict=True))
            for one in columns:
                key, title, value = (text.format(**words) for text in (one.key, one.title, one.value or one.key))
                yield replace(one, key=key, title=title, value=value)


def _marked(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Mark the best accuracy of a row or column, of those that were not cut short; equals are all marked."""
    known = [
        one.accuracy for one in entries if isinstance(one, Reached) and one.accuracy is not None and not one.remark
    ]
    return tuple(
        replace(one, is_marked=not one.remark and one.accuracy == max(known, default=None))
        if isinstance(one, Reached) and one.accuracy is not None and len(known) > 1
        else one
        for one in entries
    )
