"""Results as tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from flowinfer.experiment import Results


def print_results(results: Results, console: Console | None = None) -> None:
    """Print accuracy with its interval, counts, costs, and one row per step."""
    console = console or Console(highlight=False, soft_wrap=True)
    low, high = (100 * end for end in results.interval)
    head = Table(title=f"{results.flow} on {results.dataset}, zoo {results.zoo}", title_justify="left")
    for name in ("accuracy", "95 % interval", "n", "no answer", "truncated", "failed", "s / question", "tokens", "tok/s"):
        head.add_column(name, justify="right", no_wrap=True)
    head.add_row(
        "-" if results.accuracy is None else f"{100 * results.accuracy:.1f} %",
        f"{low:.1f} - {high:.1f}",
        str(results.n),
        f"{results.no_answer}" + (f" ({results.ambiguous} ambiguous)" if results.ambiguous else ""),
        str(results.truncated),
        str(results.failed),
        "cached" if results.seconds_per_question is None else f"{results.seconds_per_question:.2f}",
        str(results.tokens),
        "-" if results.tokens_per_second is None else f"{results.tokens_per_second:.0f}",
    )
    console.print(head)
    console.print(_steps(results))
    notes = []
    if results.cached:
        notes.append(f"{results.cached} questions hold cached steps; their seconds are other runs' and not counted")
    if results.zoo == "toy":
        notes.append("toy zoo: random weights, the answers are noise")
    if results.batch != "1":
        notes.append(f"seconds at batch {results.batch}; --batch 1 measures the paper's protocol")
    for note in notes:
        console.print(note)
    if results.run:
        console.print(f"run {results.run}: `flowinfer show {results.run.rsplit('/', 1)[-1]}`")


def _steps(results: Results) -> Table:
    table = Table()
    table.add_column("step")
    table.add_column("heads")
    for name in ("s / question", "tokens", "forward s", "transfer s", "fuse s", "agreement"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in results.steps:
        table.add_row(
            step.step,
            "\n".join(head.model for head in step.heads) or step.title,
            f"{step.seconds:.3f}",
            f"{step.tokens:.1f}",
            "\n".join(f"{head.forward_seconds:.3f}" for head in step.heads),
            "\n".join(f"{head.transfer_seconds:.4f}" for head in step.heads),
            f"{step.fuse_seconds:.3f}",
            "\n".join("-" if head.agreement is None else f"{100 * head.agreement:.0f} %" for head in step.heads),
        )
    return table
