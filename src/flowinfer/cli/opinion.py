"""flowinfer score --second-opinion: ask a model about answers of weak rules, and print where it differs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE
from rich.table import Table

from flowinfer.cli.why import plain_why, print_why
from flowinfer.output import shell
from flowinfer.output.console import PlainConsole

if TYPE_CHECKING:
    from flowinfer.runs.opinion import Doubt, Opinion
    from flowinfer.spec import Flow


def second_opinion(
    path: Path,
    model: str,
    zoo: str | None,
    options: Mapping[str, str] | None,
    *,
    dry_run: bool,
    as_json: bool,
    with_why: bool,
) -> None:
    """Ask a model about the answers of a run that weak rules found; write nothing into it.

    Where asked, tell of each answer on which it differs how the verdict came about.
    """
    from flowinfer.runs.opinion import ask, doubts, flow_of
    from flowinfer.runs.store import info

    said = info(path).data
    flow = flow_of(model, zoo or str((said.get("asked") or {}).get("zoo") or said["zoo"]), options)
    asked = doubts(path)
    if not asked:
        print(
            json.dumps({"asked": 0}) if as_json else "nothing to ask: every answer is marked as one, cut off or empty"
        )
        return
    print(_cost(flow, model, asked, int(said.get("n", len(asked)))), file=sys.stderr, flush=True)
    if dry_run:
        return
    from flowinfer.runs.live import LiveProgress

    with LiveProgress(len(asked), is_quiet=not sys.stderr.isatty()) as live:
        try:
            found = ask(flow, asked, observer=live, on_record=live.answered)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on, replies are kept", file=sys.stderr)
            raise typer.Exit(130) from None
    if live.first_failure is not None:
        print(f"some calls failed, the first because: {live.first_failure.trace.error}", file=sys.stderr)
    if as_json:
        print(json.dumps(_plain(model, found, with_why=with_why), ensure_ascii=False))
    else:
        _print(path, model, found, with_why=with_why)


def _cost(flow: Flow, model: str, asked: Sequence[Doubt], total: int) -> str:
    from flowinfer.runs.opinion import by_rule, most_tokens, num_cached

    rules = ", ".join(f"{rule} {count}" for rule, count in by_rule(asked).most_common())
    known = num_cached(flow, asked)
    size = sum(len(doubt.question().question) for doubt in asked)
    return (
        f"{model} (zoo {flow.zoo}) is asked about {len(asked)} of {total} answers: {rules}\n"
        f"{len(asked) - known} calls ({known} replies are known), prompts of {size:,} characters in all, "
        f"replies of at most {most_tokens(flow)} tokens"
    )


def _print(path: Path, model: str, found: Sequence[Opinion], *, with_why: bool) -> None:
    console = PlainConsole()
    table = Table(box=SIMPLE)
    for name in ("rule", "asked", "agrees", "differs", "neither"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for rule, counts in _counts(found).items():
        table.add_row(rule, *(str(counts[name]) for name in ("asked", "agrees", "differs", "neither")))
    console.print(table)
    for opinion in found:
        if opinion.is_other:
            score, question = opinion.doubt.score, opinion.doubt.record.question
            verdict = "right" if score.correct else "wrong"
            shown = "nothing" if score.extracted is None else repr(score.extracted)
            console.print(
                f"{question.id}: judged {verdict} ({score.rule} found {shown}, reference {question.gold!r}), "
                f"{model} says {opinion.says}"
            )
            if with_why:
                print_why(opinion.doubt.record, console)
    differs = sum(opinion.is_other for opinion in found)
    why = shell.command("show", path.name if path == Path("runs", path.name) else path, "ID", options="--why")
    told = "no verdict was changed" + ("" if with_why else f": `{why}` tells each")
    console.print(f"{model} differs on {differs} of {len(found)} answers; {told}")


def _counts(found: Sequence[Opinion]) -> Mapping[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for opinion in found:
        kind = "neither" if opinion.says == "neither" else "differs" if opinion.is_other else "agrees"
        counts.setdefault(opinion.doubt.score.rule, Counter()).update(("asked", kind))
    return counts


def _plain(model: str, found: Sequence[Opinion], *, with_why: bool) -> dict[str, object]:
    return {
        "model": model,
        "asked": len(found),
        "rules": {rule: dict(counts) for rule, counts in _counts(found).items()},
        "differs": [
            {
                "id": opinion.doubt.record.question.id,
                "judged": opinion.doubt.score.model_dump(mode="json"),
                "says": opinion.says,
                "reply": opinion.reply,
            }
            | ({"why": plain_why(opinion.doubt.record)} if with_why else {})
            for opinion in found
            if opinion.is_other
        ],
    }
