"""flowinfer score: judge a run's answers again, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Path, name or beginning of a run; the latest if not given.")
    ] = "latest",
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, write nothing.")] = False,
) -> None:
    """Score a run again with the present rules, and say which verdicts changed."""
    from flowinfer.runs.experiment import rescore, write_rescored
    from flowinfer.runs.finding import find_run
    from flowinfer.runs.summary import summarize_run

    path = find_run(run, out)
    pairs = rescore(path)
    changed = [(record, verdict) for record, verdict in pairs if record.score != verdict]
    results = summarize_run(path, [record.model_copy(update={"score": verdict}) for record, verdict in pairs])
    if not dry_run:
        write_rescored(path, pairs, results)
    if json_:
        data = results.model_dump(mode="json", exclude={"steps", "subjects"})
        print(json.dumps(data | {"changed": [record.question.id for record, _ in changed]}, ensure_ascii=False))
        return
    from flowinfer.runs.tables import print_results

    for record, verdict in changed:
        before = "-" if record.score is None else f"{record.score.extracted!r} {_mark(record.score.correct)}"
        after = "-" if verdict is None else f"{verdict.extracted!r} {_mark(verdict.correct)} ({verdict.rule})"
        print(f"{record.question.id}: {before} -> {after}")
    print(f"{len(pairs)} answers scored, {len(changed)} verdicts changed" + (" (not written)" if dry_run else ""))
    print_results(results)


def _mark(is_correct: bool) -> str:
    return "right" if is_correct else "wrong"
