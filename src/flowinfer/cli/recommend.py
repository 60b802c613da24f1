"""flowinfer recommend: which of the flows that were run to use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flowinfer.errors import UsageError
from flowinfer.files import write_asked
from flowinfer.output.console import PlainConsole
from flowinfer.output.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowinfer.report.choice import Candidate, Choice

_NOTES = 5
"""Notes told at most."""


def command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run and sweep folders, their names, or a folder of them.")
    ],
    max_seconds: Annotated[float | None, typer.Option(help="Only flows of at most so many seconds a question.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Only flows of at least this accuracy (0 to 1).")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE.flow", help="Write the winner as a flow.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List all flows, not only those that no other beats.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Name the flows that no other beats in accuracy and seconds, and the best under limits."""
    from flowinfer.report.choice import as_flow, choose
    from flowinfer.report.gather import gather

    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise UsageError(f"--min-accuracy {min_accuracy}: an accuracy is between 0 and 1")
    if max_seconds is not None and max_seconds <= 0:
        raise UsageError(f"--max-seconds {max_seconds}: must be above 0")
    evidence = gather(runs)
    choice = choose(evidence, max_seconds=max_seconds, min_accuracy=min_accuracy)
    if out is not None:
        write_asked(out, as_flow(choice).encode())
    notes = (*choice.notes, *evidence.notes)
    if json_:
        print(json.dumps(_plain(choice) | {"notes": list(notes)}, ensure_ascii=False))
        return
    _print(choice, PlainConsole(), every)
    _note(notes)
    if out is not None:
        print(f"written to {out}")


def _print(choice: Choice, console: PlainConsole, every: bool) -> None:
    table = Table()
    table.add_column("", no_wrap=True)
    table.add_column("flow", overflow="fold", min_width=12)
    has_control = any(one.taken for one in choice.candidates)
    for name in ("accuracy", "interval", "seconds", "n", *(("calls", "tokens") if has_control else ())):
        table.add_column(name, no_wrap=True, justify="right")
    if has_control:
        table.add_column("taken", overflow="fold")
    for one in choice.candidates:
        if every or one.is_front:
            low, high = (100 * end for end in one.interval)
            cells = (
                "*" if one is choice.winner else "·" if one.is_front else "",
                _flow(one),
                f"{100 * one.accuracy:.1f} %",
                f"{low:.1f} - {high:.1f}",
                "-" if one.seconds is None else f"{one.seconds:.2f}",
                str(one.n),
            )
            table.add_row(*cells, *(_control(one) if has_control else ()))
    console.print(table)
    console.print(f"recommended: {choice.winner.wiring.whole}")
    if choice.runner_up is not None and choice.p_value is not None:
        sure = "beyond chance" if choice.p_value < 0.05 else "which may be chance"
        console.print(
            f"next: {choice.runner_up.wiring.whole}, {100 * (choice.winner.accuracy - choice.runner_up.accuracy):.1f} "
            f"points behind, {sure} (McNemar p = {choice.p_value:.3g}; chosen on these same questions, so optimistic)",
        )
    if choice.num_beyond:
        console.print(f"{counted(choice.num_beyond, 'flow')} beyond the limits")
    if not choice.is_timed:
        console.print("not all flows were timed at batch 1 without cache: the front is by accuracy where seconds lack")


def _flow(one: Candidate) -> str:
    """Return a flow with the settings that set it apart, those that it tells itself not twice."""
    told = one.wiring.whole.beside.split(", ")
    setup = ", ".join(part for part in one.setup.split(", ") if part not in told)
    return f"{one.wiring.whole}  [{setup}]" if setup else str(one.wiring.whole)


def _control(one: Candidate) -> tuple[str, str, str]:
    """Return what a question takes, and how often each member was taken."""
    return f"{one.calls or 0:.2f}", f"{one.tokens or 0:.1f}", one.taken or "-"


def _note(notes: Sequence[str]) -> None:
    """Say what the runs lack: paths that were not run are not among those to choose from."""
    for note in notes[:_NOTES]:
        print(f"note: {note}")
    if len(notes) > _NOTES:
        print(f"note: and {len(notes) - _NOTES} more; `flowinfer report` lists them")


def _plain(choice: Choice) -> dict[str, object]:
    return {
        "winner": _row(choice.winner),
        "candidates": [_row(one) for one in choice.candidates],
        "beyond_limits": choice.num_beyond,
        "left_out": choice.num_left_out,
        "p_value_to_next": choice.p_value,
    }


def _row(one: Candidate) -> dict[str, object]:
    return {
        "flow": one.wiring.whole.flow,
        "with": one.wiring.whole.beside or None,
        "strategy": one.wiring.strategy,
        "settings": one.setup,
        "accuracy": one.accuracy,
        "interval": list(one.interval),
        "n": one.n,
        "seconds_per_question": one.seconds,
        "calls_per_question": one.calls,
        "tokens_per_question": one.tokens,
        "taken": one.taken or None,
        "is_front": one.is_front,
        "run": str(one.run),
    }
