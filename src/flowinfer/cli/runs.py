"""flowinfer runs: what has been run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from flowinfer.report.wirings import Whole
    from flowinfer.runs.store import RunInfo


_USUAL = Path("runs")


def command(
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = _USUAL,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List runs, newest first."""
    from flowinfer.runs.finding import list_runs

    if not out.is_dir() and out != _USUAL:  # which the first run makes
        raise UsageError(f"no folder '{out}'", help="--out FOLDER names the one that runs were kept in")
    rows = [_row(run) for run in list_runs(out)]
    if json_:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    if not rows:
        print(f"no runs in '{out}'")
        return
    from flowinfer.output.console import PlainConsole, plain

    console = PlainConsole()
    width = max(len(row["run"]) for row in rows)
    for row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        where = f"  on {row['dataset']}, zoo {row['zoo']}"
        room = max(20, console.width - 2 - len(where))
        flow = f"{row['flow']}  with {row['with']}" if row["with"] else row["flow"]
        flow = flow if len(flow) <= room else flow[: room - 1] + "…"
        answered, state = f"{row['answered']}/{row['n']}", row["state"]
        state += f", {row['failed']} failed" if row["failed"] else ""
        console.print(plain(f"{row['run']:<{width}}  {answered:>9}  {accuracy:>7}  {state}\n  {flow}{where}"))


def _row(run: RunInfo) -> dict[str, Any]:
    from flowinfer.errors import DataError
    from flowinfer.runs.store import read_records

    state = "complete" if (run.path / "results.json").is_file() else "interrupted"
    try:
        records = list(read_records(run.path))
    except DataError:
        records, state = [], "damaged"
    verdicts = [record.score.correct for record in records if record.score is not None]
    failed = sum(record.trace.error is not None for record in records)
    whole = _flow(run)
    return {
        "run": run.name,
        "flow": whole.flow,
        "with": whole.beside or None,
        "name": run.data.get("flow"),
        "dataset": str(run.data.get("dataset_label")),
        "zoo": "/".join(Path(str(run.data.get("zoo"))).parts[-2:]),  # of a path the end
        "n": run.data.get("n"),
        "answered": len(records) - failed,
        "failed": failed,
        "accuracy": sum(verdicts) / len(verdicts) if verdicts else None,
        "state": state,
        "path": str(run.path),
    }


def _flow(run: RunInfo) -> Whole:
    """Return a run's flow with its options; its name where its folder is damaged."""
    from flowinfer.errors import DataError
    from flowinfer.report.wirings import Whole, whole_of
    from flowinfer.runs.jsonlog import decoded
    from flowinfer.runs.store import read_json

    try:
        source = decoded((run.path / "pipeline.flow").read_bytes())
        return whole_of(read_json(run.path / "plan.json"), source)
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return Whole(str(run.data.get("flow")), "")
