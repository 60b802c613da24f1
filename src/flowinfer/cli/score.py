"""flowinfer score: judge a run's answers again, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowinfer.cli.inputs import SetOption, settings
from flowinfer.cli.why import plain_why, print_why
from flowinfer.errors import UsageError
from flowinfer.output.console import PlainConsole
from flowinfer.output.words import counted


def command(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Path, name or beginning of a run; the latest if not given.")
    ] = "latest",
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, write nothing.")] = False,
    why: Annotated[
        bool, typer.Option("--why", help="Tell how each verdict that changes, or that MODEL doubts, came about.")
    ] = False,
    opinion: Annotated[
        str | None,
        typer.Option(
            "--second-opinion",
            metavar="MODEL",
            help="Ask a zoo's model about answers of weak rules instead, and list where it differs; changes no score.",
        ),
    ] = None,
    zoo: Annotated[
        str | None, typer.Option("--zoo", metavar="NAME|FILE", help="Of that model; the run's if not given.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Score a run again with the present rules, and say which verdicts changed."""
    from flowinfer.runs.experiment import rescore, write_rescored
    from flowinfer.runs.finding import find_run
    from flowinfer.runs.summary import summarize_run

    path = find_run(run, out)
    if opinion is not None:
        from flowinfer.cli.opinion import second_opinion

        second_opinion(path, opinion, zoo, settings(set_), dry_run=dry_run, as_json=json_, with_why=why)
        return
    if zoo is not None or set_:
        raise UsageError("--zoo and --set are of a model that is asked", help="--second-opinion MODEL")
    pairs = rescore(path)
    changed = [(record, verdict) for record, verdict in pairs if record.score != verdict]
    results = summarize_run(path, [record.model_copy(update={"score": verdict}) for record, verdict in pairs])
    if not dry_run:
        write_rescored(path, pairs, results)
    if json_:
        data = results.model_dump(mode="json", exclude={"steps", "subjects"})
        data |= {"changed": [record.question.id for record, _ in changed]}
        data |= {"why": {record.question.id: plain_why(record) for record, _ in changed}} if why else {}
        print(json.dumps(data, ensure_ascii=False))
        return
    from flowinfer.runs.tables import print_results

    for record, verdict in changed:
        before = "-" if record.score is None else f"{record.score.extracted!r} {_mark(record.score.correct)}"
        after = "-" if verdict is None else f"{verdict.extracted!r} {_mark(verdict.correct)} ({verdict.rule})"
        print(f"{record.question.id}: {before} -> {after}")
    for record, _ in changed if why else ():
        print_why(record, PlainConsole())
    print(
        f"{counted(len(pairs), 'answer')} scored, {counted(len(changed), 'verdict')} changed"
        + (" (not written)" if dry_run else "")
    )
    print_results(results)


def _mark(is_correct: bool) -> str:
    return "right" if is_correct else "wrong"
