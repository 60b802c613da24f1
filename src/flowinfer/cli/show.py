"""flowinfer show: a run, or one of its questions with every stage's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.panel import Panel
from rich.table import Table

from flowinfer.cli.why import plain_why, print_why
from flowinfer.errors import UsageError
from flowinfer.output.console import PlainConsole, plain
from flowinfer.output.shell import command as command_line
from flowinfer.output.shell import option

if TYPE_CHECKING:
    from flowinfer.results import Record


def command(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Path, name or beginning of a run; the latest if not given.")
    ] = "latest",
    question: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this question.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    wrong: Annotated[bool, typer.Option("--wrong", help="List only questions that were answered wrong.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="List only questions that failed; with --wrong both.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="List only the first N of them.")] = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="Show each head's prompt too.")] = False,
    why: Annotated[
        bool, typer.Option("--why", help="Judge again and tell how: the rule, where, and what was passed over.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's results and answers, or one question stage by stage."""
    from flowinfer.runs.finding import find_run
    from flowinfer.runs.store import ordered_records

    path = find_run(run, out)
    records = ordered_records(path)
    console = PlainConsole()
    if question is not None:
        record = next((record for record in records if record.question.id == question), None)
        if record is None:
            known = ", ".join(record.question.id for record in records[:5])
            raise UsageError(f"run '{path.name}' has no question '{question}'", help=f"ids look like {known}")
        if json_:
            print(json.dumps(_plain(record, with_why=why), ensure_ascii=False, indent=1))
        else:
            _show_question(record, console, prompts)
            if why:
                print_why(record, console)
        return
    chosen = [
        record
        for record in records
        if not (wrong or failed)
        or (wrong and record.score is not None and not record.score.correct)
        or (failed and record.trace.error is not None)
    ][:limit]
    if json_:
        print(json.dumps([_plain(record, with_why=why) for record in chosen], ensure_ascii=False))
        return
    _show_run(path, records, chosen, console)
    for record in chosen if why else ():
        print_why(record, console)


def _plain(record: Record, *, with_why: bool) -> dict[str, object]:
    return record.model_dump(mode="json") | ({"why": plain_why(record)} if with_why else {})


def _show_run(path: Path, records: list[Record], chosen: list[Record], console: PlainConsole) -> None:
    from flowinfer.runs.summary import summarize_run
    from flowinfer.runs.tables import print_results

    print_results(summarize_run(path, records), console)
    if not (path / "results.json").is_file():
        again = command_line("exec", options=option("--resume", path.name if path == Path("runs", path.name) else path))
        console.print(f"the run was interrupted: `{again}` goes on with it", markup=False)
    if not chosen:
        console.print("it has no such question" if records else "nothing was answered yet")
        return
    table = Table(box=SIMPLE, expand=True, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True, max_width=20)
    table.add_column("", width=1)
    for name, ratio in (("question", 3), ("answer", 3), ("found", 1), ("reference", 1)):
        table.add_column(name, ratio=ratio, no_wrap=True, overflow="ellipsis")
    for record in chosen:
        score = record.score
        mark = "!" if record.trace.error else " " if score is None else "✓" if score.correct else "✗"
        found = "" if score is None else score.extracted if score.extracted is not None else score.status
        table.add_row(
            record.question.id,
            mark,
            _short(record.question.question),
            _short(record.trace.error or record.trace.answer),
            _short(found),
            _short(record.question.gold),
        )
    console.print(table)


def _show_question(record: Record, console: PlainConsole, with_prompts: bool) -> None:
    question, trace, score = record.question, record.trace, record.score
    console.print(Panel(question.whole, title=plain(f"question {question.id}"), title_align="left"))
    for step in trace.steps:
        if with_prompts:
            for node, prompt in step.prompts.items():
                console.print(Panel(prompt, title=plain(f"{step.step} prompt of {node}"), title_align="left"))
        heads = ", ".join(
            head.model
            + ("" if head.agreement is None or len(step.heads) == 1 else f" {100 * head.agreement:.0f} %")
            + ("" if head.lost_at is None else f" (lost after {head.lost_at} tokens)")
            + ("" if head.forwards is None else f" ({head.forwards} forwards)")
            for head in step.heads
        )
        cached = f", cached from {step.cached_from}" if step.cached_from else ""
        cost = f", cost {step.usage.cost:.4g}" if step.usage and step.usage.cost is not None else ""
        rounds = f" in {step.rounds} rounds" if step.drafted_tokens else ""
        fused = "" if step.fused_tokens is None else f", {step.fused_tokens} fused"
        took = f"{step.tokens} tokens{rounds}{fused}, {step.seconds:.2f} s, {step.finish_reason}{cost}{cached}"
        title = f"{step.step} {heads}: {took}"
        shown = plain(step.text)
        if step is trace.steps[-1] and score and score.span and step.text == trace.answer:
            start, end = score.span
            text = step.text
            shown = plain(text[:start]) + plain(text[start:end], "reverse") + plain(text[end:])
        console.print(Panel(shown, title=plain(title), title_align="left"))
        if step.likelihoods:
            ranked = sorted(step.likelihoods.items(), key=lambda one: -one[1])
            told = ", ".join(f"{text!r} {value:.3f}" for text, value in ranked)
            console.print(f"{step.step} log-likelihood: {told}", markup=False)
    for taken in trace.selections:
        console.print(f"{taken.selection} {taken}", markup=False)
    if trace.ballot:
        console.print(f"vote: {trace.ballot}")
    if trace.error:
        console.print(f"failed: {trace.error}")
    if score:
        verdict = "right" if score.correct else "wrong"
        console.print(f"{verdict}: found {score.extracted!r} ({score.status}, by {score.rule}), reference", end=" ")
        console.print(repr(question.gold))


def _short(text: str, most: int = 200) -> str:
    """Return the beginning of a text on one line; a table cuts it to its column."""
    return " ".join(text[: 2 * most].split())[:most]
