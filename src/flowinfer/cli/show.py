"""flowinfer show: a run, or one of its questions with every stage's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.table import Table

from flowinfer.console import PlainConsole, plain
from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from flowinfer.results import Record


def command(
    run: Annotated[str, typer.Argument(help="Path, name or beginning of a run, or 'latest'.")],
    question: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this question.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    wrong: Annotated[bool, typer.Option("--wrong", help="List only questions that were not answered right.")] = False,
    prompts: Annotated[bool, typer.Option("--prompts", help="Show each head's prompt too.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's results and answers, or one question stage by stage."""
    from flowinfer.store import find_run, read_records

    path = find_run(run, out)
    records = list(read_records(path))
    console = PlainConsole()
    if question is not None:
        record = next((record for record in records if record.question.id == question), None)
        if record is None:
            known = ", ".join(record.question.id for record in records[:5])
            raise UsageError(f"run '{path.name}' has no question '{question}'", help=f"ids look like {known}")
        if json_:
            print(json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=1))
        else:
            _show_question(record, console, prompts)
        return
    chosen = [record for record in records if not wrong or not (record.score and record.score.correct)]
    if json_:
        print(json.dumps([record.model_dump(mode="json") for record in chosen], ensure_ascii=False))
        return
    _show_run(path, records, chosen, console)


def _show_run(path: Path, records: list[Record], chosen: list[Record], console: PlainConsole) -> None:
    from flowinfer.summary import summarize_run
    from flowinfer.tables import print_results

    print_results(summarize_run(path, records), console)
    if not (path / "results.json").is_file():
        console.print("the run was interrupted: the same command with --resume goes on with it")
    table = Table()
    table.add_column("id", no_wrap=True)
    table.add_column("", width=1)
    for name in ("answer", "reference", "rule"):
        table.add_column(name)
    for record in chosen:
        score = record.score
        mark = "!" if record.trace.error else " " if score is None else "✓" if score.correct else "✗"
        found = record.trace.error or (score.extracted if score and score.extracted is not None else "-")
        table.add_row(
            record.question.id,
            mark,
            _short(str(found)),
            _short(record.question.reference.rsplit("\n", 1)[-1]),
            f"{score.status}, {score.rule}" if score else "",
        )
    console.print(table)


def _show_question(record: Record, console: PlainConsole, with_prompts: bool) -> None:
    question, trace, score = record.question, record.trace, record.score
    choices = "".join(f"\n{letter}. {text}" for letter, text in question.choices.items())
    console.print(Panel(question.question + choices, title=plain(f"question {question.id}"), title_align="left"))
    for step in trace.steps:
        if with_prompts:
            for node, prompt in step.prompts.items():
                console.print(Panel(prompt, title=plain(f"{step.step} prompt of {node}"), title_align="left"))
        heads = ", ".join(
            head.model + ("" if head.agreement is None or len(step.heads) == 1 else f" {100 * head.agreement:.0f} %")
            for head in step.heads
        )
        cached = f", cached from {step.cached_from}" if step.cached_from else ""
        rounds = f" in {step.rounds} rounds" if step.drafted_tokens else ""
        title = f"{step.step} {heads}: {step.tokens} tokens{rounds}, {step.seconds:.2f} s, {step.finish_reason}{cached}"
        shown = plain(step.text)
        if step is trace.steps[-1] and score and score.span and step.text == trace.answer:
            start, end = score.span
            text = step.text
            shown = plain(text[:start]) + plain(text[start:end], "reverse") + plain(text[end:])
        console.print(Panel(shown, title=plain(title), title_align="left"))
    if trace.error:
        console.print(f"failed: {trace.error}")
    if score:
        verdict = "right" if score.correct else "wrong"
        console.print(f"{verdict}: found {score.extracted!r} ({score.status}, by {score.rule}), reference", end=" ")
        console.print(repr(question.reference.rsplit("\n", 1)[-1]))


def _short(text: str, width: int = 48) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
