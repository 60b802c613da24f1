"""flowinfer compare: two runs on the same questions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flowinfer.errors import UsageError
from flowinfer.output import shell
from flowinfer.output.console import PlainConsole, plain
from flowinfer.output.words import counted

if TYPE_CHECKING:
    from flowinfer.report.versus import Versus

_SHOWN = 20
"""Changed questions listed without --all."""


def command(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="Path, name or beginning of a run, or 'latest'.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another run on the same questions.")],
    question: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Show this question's stages side by side.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every question that changed.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two runs question by question: gained, lost, and whether it can be chance."""
    from flowinfer.report.versus import versus
    from flowinfer.runs.finding import find_run

    runs = find_run(first, out), find_run(second, out)
    if question is not None:
        _side_by_side(runs, question)
        return
    found = versus(*runs)
    if json_:
        print(json.dumps(asdict(found), ensure_ascii=False))
        return
    _print(found, PlainConsole(), None if every else _SHOWN)
    if found.gained or found.lost:
        change = (*found.gained, *found.lost)[0]
        shown = shell.command("compare", first, second, options=shell.options(out, "runs", "--id", change.question_id))
        print(f"`{shown}` shows every stage side by side")


def _print(found: Versus, console: PlainConsole, limit: int | None) -> None:
    datasets = dict.fromkeys((found.first.dataset, found.second.dataset))
    console.print(f"{' and '.join(datasets)}: {counted(found.n, 'question')}")
    for letter, side in (("A", found.first), ("B", found.second)):
        low, high = (100 * end for end in side.interval)
        console.print(
            f"  {letter}  {side.flow}: {100 * side.accuracy:.1f} %, 95 % interval {low:.1f} - {high:.1f}"
            f" ({side.correct} of {found.n}), no answer {side.no_answer}  [{side.name}]",
        )
    for letter, side in (("A", found.first), ("B", found.second)) if found.first.taken or found.second.taken else ():
        taken = f", taken {side.taken}" if side.taken else ""
        console.print(f"  {letter}  {side.calls or 0:.2f} model calls a question{taken}")
    for line in _lines(found):
        console.print(line)
    for title, changes in (("only B right", found.gained), ("only A right", found.lost)):
        for change in changes[:limit]:
            texts = f"A {change.first!r}, B {change.second!r}, reference {change.reference!r}"
            console.print(f"  {title}: {change.question_id}  {texts}")
        if limit is not None and len(changes) > limit:
            console.print(f"  and {len(changes) - limit} more: --all")


def _lines(found: Versus) -> list[str]:
    counts, points = found.counts, found.points
    lines = [
        f"both right {counts.both}, only A {counts.first_only}, only B {counts.second_only}, neither {counts.neither}",
        f"McNemar's exact test: p = {counts.p_value:.3g}" + _verdict(counts.p_value),
        f"B - A: {100 * points.mean:+.1f} points, 95 % interval {100 * points.low:+.1f} to {100 * points.high:+.1f}",
    ]
    if found.seconds:
        one = found.seconds
        lines.append(
            f"B - A: {one.mean:+.2f} s a question, 95 % interval {one.low:+.2f} to {one.high:+.2f}"
            f" ({one.n} questions at batch 1)"
        )
    else:
        lines.append("seconds are compared where both runs went at batch 1 without cached steps")
    if found.left_out:
        lines.append(
            f"{counted(found.left_out, 'question')} with a verdict in one run only left out: failed, or not asked"
        )
    return lines


def _verdict(p_value: float) -> str:
    return ", beyond chance at the 5 % level" if p_value < 0.05 else ", may be chance"


def _side_by_side(runs: tuple[Path, Path], question: str) -> None:
    from flowinfer.runs.store import read_records

    console = PlainConsole(soft_wrap=False)
    panels = []
    for letter, run in zip("AB", runs, strict=True):
        record = next((record for record in read_records(run) if record.question.id == question), None)
        if record is None:
            raise UsageError(f"run '{run.name}' has no question '{question}'", help="flowinfer show RUN lists them")
        mark = "failed" if record.score is None else "right" if record.score.correct else "wrong"
        parts = [
            plain(step.step, "bold") + plain(f" {', '.join(h.model for h in step.heads)}\n{step.text}")
            for step in record.trace.steps
        ]
        shown_parts = Text("\n\n").join(parts)
        panels.append(Panel(shown_parts, title=plain(f"{letter}, {mark}: {run.name}"), title_align="left"))
        shown = record.question
    console.print(Panel(f"{shown.whole}\nreference: {shown.gold}", title=plain(f"question {question}")))
    beside = Table.grid(expand=True)
    beside.add_column(ratio=1)
    beside.add_column(ratio=1)
    beside.add_row(*panels)
    console.print(beside)
