"""A sweep as a table: for the terminal, for print, for a notebook."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING

from rich.table import Table

from flowinfer.errors import of_arguments
from flowinfer.output.console import PlainConsole
from flowinfer.runs.live import clock
from flowinfer.runs.summary import taken_in

if TYPE_CHECKING:
    from flowinfer.sweeps.outcome import Cell, Sweep, SweepRow

_WIDE = 200
"""Columns of a table that no terminal bounds."""


def print_sweep(sweep: Sweep, console: PlainConsole | None = None) -> None:
    """Print the paths with their accuracies, and what sharing saved."""
    console = console or PlainConsole()
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    table = Table()
    for name in _head(sweep):
        is_text = name in ("path", "strategy", "flow")
        table.add_column(name, overflow="fold", justify="left" if is_text else "right")
    for row in sweep.rows:
        table.add_row(*_cells(row, sweep))
    console.print(table)
    for line in [*notes(sweep), *closing(sweep)]:
        console.print(line)


def as_text(sweep: Sweep) -> str:
    """Return what `print_sweep` prints, without colour and in Python's words."""
    text = io.StringIO()
    print_sweep(sweep, PlainConsole(file=text))
    return of_arguments(text.getvalue()) + "".join(f"failed: {line}\n" for line in sweep.failures)


def as_html(sweep: Sweep) -> str:
    """Return the table as HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in _head(sweep))
    rows = ["".join(f"<td>{escape(text)}</td>" for text in _cells(row, sweep)) for row in sweep.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    remarks = "".join(
        f"<p><small>{escape(line)}</small></p>"
        for line in [*map(of_arguments, (*notes(sweep), *closing(sweep))), *sweep.failures]
    )
    return f"<table><tr>{head}</tr>{body}</table>{remarks}"


def notes(sweep: Sweep) -> list[str]:
    """Return what a reader must know before comparing the figures."""
    found = []
    if sweep.zoo_note:
        found.append(sweep.zoo_note)
    read = {cell.results.data_note for row in sweep.rows for cell in row.cells if cell.results}
    found += sorted(note for note in read if note)
    found += sweep.language_notes
    n = {cell.results.n for row in sweep.rows for cell in row.cells if cell.results}
    if n:
        asked = f"{min(n)}" if len(n) == 1 else f"{min(n)} to {max(n)}"
        found.append(f"accuracy in % with its 95 % interval (Wilson), {asked} questions each")
    if any(cell.results and cell.results.failed for row in sweep.rows for cell in row.cells):
        found.append("failed questions are not counted; a path with some has no mean")
    if all(row.seconds is None for row in sweep.rows):
        found.append("s/question: nothing was timed alone; --latency N times N questions of each path")
    return found


def closing(sweep: Sweep) -> list[str]:
    """Return what sharing saved, and where everything is kept."""
    saved = 1 - sweep.calls_made / sweep.calls_needed if sweep.calls_needed else 0.0
    return [
        f"{sweep.calls_made:,} model calls made; path by path they would be {sweep.calls_needed:,}"
        f" ({100 * saved:.0f} % saved); {clock(sweep.wall_seconds)} at work",
        f"sweep {sweep.folder}",
    ]


def _head(sweep: Sweep) -> list[str]:
    control = ["calls", "taken"] if _has_control(sweep) else []
    return ["path", "strategy", "flow", *sweep.labels, "mean", "s/question", *control, "shared"]


def _has_control(sweep: Sweep) -> bool:
    return any(cell.results and cell.results.selections for row in sweep.rows for cell in row.cells)


def _cells(row: SweepRow, sweep: Sweep) -> list[str]:
    return [
        row.wiring.key,
        row.wiring.strategy or "-",
        row.wiring.name,
        *(_cell(cell) for cell in row.cells),
        "-" if row.mean is None else f"{100 * row.mean:.1f}",
        "-" if row.seconds is None else f"{row.seconds:.2f}",
        *(_control(row, sweep) if _has_control(sweep) else ()),
        f"{100 * row.shared:.0f} %",
    ]


def _control(row: SweepRow, sweep: Sweep) -> tuple[str, str]:
    """Return the model calls of a question, and how often each member was taken on each data set."""
    cells = [cell for cell in row.cells if cell.results]
    n = sum(cell.results.n + cell.results.failed for cell in cells if cell.results)
    found = zip(sweep.labels, row.cells, strict=True)
    taken = {label: taken_in(cell.results.selections) for label, cell in found if cell.results}
    told = [f"{label} {words}" if len(sweep.labels) > 1 else words for label, words in taken.items() if words]
    return f"{sum(cell.needed for cell in cells) / n:.2f}" if n else "-", "\n".join(told) or "-"


def _cell(cell: Cell) -> str:
    if cell.results is None:
        return "failed"
    failed = f" ({cell.results.failed} failed)" if cell.results.failed else ""
    if cell.results.accuracy is None:
        return f"-{failed}"
    low, high = (100 * end for end in cell.results.interval)
    return f"{100 * cell.results.accuracy:.0f} [{low:.0f}-{high:.0f}]{failed}"
