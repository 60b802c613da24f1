"""Which questions a path answers otherwise than another, with the commands that show them."""

from __future__ import annotations

from collections.abc import Sequence

from flowinfer.output import shell
from flowinfer.report.compare import Comparison
from flowinfer.report.evidence import Evidence
from flowinfer.report.table import Column, Entry, Table, Text

_SHOWN = 3
"""Questions named in a row; the JSON names all."""


def table(evidence: Evidence, found: Sequence[Comparison]) -> Table | None:
    """Return for each compared pair the questions that changed, and how to look at the first of them."""
    rows: list[tuple[Entry, ...]] = []
    for one in found:
        if one.dataset is None or not (one.gained or one.lost):
            continue
        first = (*one.gained, *one.lost)[0]
        rows.append(
            (
                Text(one.dataset.label),
                Text(one.wiring.name, is_flow=True, target=f"#diff/{one.dataset.key}/{one.wiring.key}/{one.other.key}"),
                Text(one.other.name, is_flow=True),
                Text(_named(one.gained)),
                Text(_named(one.lost)),
                Text(command(evidence, one.wiring.key, one.dataset.key, first), is_flow=True),
                Text(command(evidence, one.other.key, one.dataset.key, first), is_flow=True),
            )
        )
    if not rows:
        return None
    columns = [
        Column("task", "task"),
        Column("path", "path"),
        Column("against", "against"),
        Column("gained", "only the path right"),
        Column("lost", "only the other right"),
        Column("show", "shows the first, path", is_command=True),
        Column("show_other", "shows the first, other", is_command=True),
    ]
    caption = "Questions whose verdict differs between two paths."
    notes = (f"the first {_SHOWN} questions of each kind; report.json names all of them",)
    return Table("changes", "Questions that changed", caption, tuple(columns), tuple(rows), notes, is_long=True)


def command(evidence: Evidence, wiring: str, dataset: str, question: str) -> str:
    """Return the command that shows a path's answer to a question, stage by stage."""
    return shell.command("show", evidence.cells[wiring, dataset].run, question)


def _named(questions: Sequence[str]) -> str:
    more = f" and {len(questions) - _SHOWN} more" if len(questions) > _SHOWN else ""
    return ", ".join(questions[:_SHOWN]) + more if questions else "-"
