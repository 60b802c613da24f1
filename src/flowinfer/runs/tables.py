"""Results as tables for the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

from flowinfer.output.console import PlainConsole
from flowinfer.output.shell import command
from flowinfer.output.words import counted
from flowinfer.runs.summary import Results, RunOn, SelectionSummary


def print_results(results: Results, console: PlainConsole | None = None) -> None:
    """Print accuracy with its interval, counts, costs, and one row per head of each step."""
    console = console or PlainConsole()
    console.print(f"\n{results.flow} on {results.dataset}, zoo {results.zoo}\n")
    for name, value in summary_lines(results):
        console.print(f"  {name:<20} {value}")
    console.print()
    console.print(_steps(results))
    for note in notes(results):
        console.print(note)
    if results.run:
        run = Path(results.run)
        shows = command("show", run.name if run == Path("runs", run.name) else run)
        console.print(f"run {results.run}\n`{shows}` shows every stage of every answer")


def summary_lines(results: Results) -> list[tuple[str, str]]:
    """Return the figures of a run with their names, ready to be shown."""
    low, high = (100 * end for end in results.interval)
    accuracy = "- (no question has a verdict)"
    if results.accuracy is not None:
        interval = f"95 % interval {low:.1f} - {high:.1f}"
        accuracy = f"{100 * results.accuracy:.1f} %  {interval}  ({results.correct} of {results.n})"
    ambiguous = f" ({results.ambiguous} of them ambiguous)" if results.ambiguous else ""
    seconds = "- (all cached)" if results.cached else "- (nothing was answered)"
    if results.seconds_per_question is not None:
        seconds = f"{results.seconds_per_question:.2f}"
    if results.median_seconds is not None:
        seconds += f" (median {results.median_seconds:.2f}, batch {results.batch})"
    rate = "-" if results.tokens_per_second is None else f"{results.tokens_per_second:.0f}"
    num = results.n + results.failed
    cost = [] if results.cost is None else [("cost", _cost(results.cost, num))]
    return [
        ("accuracy", accuracy),
        ("no answer", f"{results.no_answer}{ambiguous}"),
        ("truncated", str(results.truncated)),
        *([("tied votes", f"{results.ties}, decided by the order of the members")] if results.ties else []),
        *([("filtered", f"{results.filtered} by an endpoint")] if results.filtered else []),
        *([("failed", f"{results.failed}, not counted")] if results.failed else []),
        ("seconds / question", seconds),
        ("tokens", f"{results.tokens}, {rate} per second"),
        *([] if results.calls is None else [("model calls", f"{results.calls:.2f} a question")]),
        *((f"taken in {one.selection}", _taken(one)) for one in results.selections if not one.lost),
        *((f"lost in {one.selection}", _lost(one)) for one in results.selections if any(one.lost)),
        *cost,
    ]


def _taken(one: SelectionSummary) -> str:
    counts = ", ".join(f"{number}: {count}" for number, count in enumerate(one.taken, 1 + one.gathers) if count)
    return f"{counts} of {one.title}, by {one.rule}"


def _lost(one: SelectionSummary) -> str:
    counts = ", ".join(
        f"member {number} in {counted(count, 'question')}" for number, count in enumerate(one.lost, start=1) if count
    )
    return f"{counts}, of {one.title}"


def _cost(cost: float, num: int) -> str:
    return f"{cost:.4g}" + (f", {cost / num:.3g} a question" if num else "")


def notes(results: Results) -> list[str]:
    """Return what a reader must know before comparing these figures."""
    found = [results.data_note] if results.data_note else []
    if results.cached:
        cached = counted(results.cached, "answer")
        found.append(f"{cached} with steps from the cache, whose seconds are other runs' and not counted")
    if results.run_on is not None:
        found.append(_run_on(results.run_on))
    if results.zoo == "toy":
        found.append("toy zoo: random weights, the answers are noise")
    if results.batch != "1":
        found.append(
            f"seconds at batch {results.batch}, waiting for the batch included; --batch 1 is the paper's protocol"
        )
    return found


def _run_on(found: RunOn) -> str:
    stops = json.dumps(found.stops, ensure_ascii=False)
    cure = f"; stop={stops} behind {found.step} ends them there" if found.stops else ""
    which = ", ".join(f"'{one}'" for one in found.first) + (", ..." if found.num > len(found.first) else "")
    share = f"{100 * found.needless:.0f} % of all that was written"
    who = f"{found.num} of {found.of} answers ({which})"
    return f"{who} run on into a question of the model's own, {share}; no verdict reads it{cure}"


def _steps(results: Results) -> Table:
    table = Table()
    table.add_column("step", no_wrap=True)
    table.add_column("head", no_wrap=True)
    for name in ("tokens", "seconds", "forward", "transfer", "fuse", "agrees"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in results.steps:
        heads = step.heads
        table.add_row(
            step.step,
            "\n".join(head.model for head in heads) or step.title,
            f"{step.tokens:.1f}",
            f"{step.seconds:.3f}",
            "\n".join(f"{head.forward_seconds:.3f}" for head in heads),
            "\n".join(f"{head.transfer_seconds:.4f}" for head in heads),
            f"{step.fuse_seconds:.3f}",
            "\n".join("-" if head.agreement is None else f"{100 * head.agreement:.0f} %" for head in heads),
        )
    return table
