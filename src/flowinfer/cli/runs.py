"""flowinfer runs: what has been run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List runs, newest first."""
    from flowinfer.store import list_runs

    rows = [_row(run) for run in list_runs(out)]
    if json_:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    if not rows:
        print(f"no runs in '{out}'")
        return
    from rich.table import Table

    from flowinfer.console import PlainConsole

    table = Table()
    for name in ("run", "data set", "zoo", "answered", "accuracy", "state"):
        table.add_column(name, no_wrap=name == "run", overflow="fold")
    for row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        table.add_row(row["run"], row["dataset"], row["zoo"], f"{row['answered']}/{row['n']}", accuracy, row["state"])
    PlainConsole().print(table)


def _row(run: Any) -> dict[str, Any]:  # a RunInfo; typed where it is made
    from flowinfer.errors import DataError
    from flowinfer.store import read_records

    state = "complete" if (run.path / "results.json").is_file() else "interrupted"
    try:
        records = list(read_records(run.path))
    except DataError:
        records, state = [], "damaged"
    judged = [record for record in records if record.score is not None or record.trace.error is not None]
    correct = sum(bool(record.score and record.score.correct) for record in judged)
    return {
        "run": run.name,
        "flow": run.data.get("flow"),
        "dataset": str(run.data.get("dataset_label")),
        "zoo": _short(str(run.data.get("zoo"))),
        "n": run.data.get("n"),
        "answered": len(records),
        "accuracy": correct / len(judged) if judged else None,
        "state": state,
        "path": str(run.path),
    }


def _short(zoo: str) -> str:
    """Return a zoo's name, of a path only its last two parts."""
    return "/".join(Path(zoo).parts[-2:])
