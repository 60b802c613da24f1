"""What the three models reach alone and along every path of the paper, on fresh items: a sweep over them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from tempfile import TemporaryDirectory

import flowinfer
from flowinfer.errors import RunError
from flowinfer.paper.paths import STRATEGIES, Path
from flowinfer.results import Record
from flowinfer.runs.store import read_records
from flowinfer.tasks.base import Dataset, fingerprint
from lab import items
from lab.files import lines
from lab.items import KINDS, Item, Kind, Split


@dataclass(frozen=True)
class Row:
    """What a path reached."""

    path: Path
    accuracy: Mapping[Kind, float]
    """Between 0 and 1."""
    mean: float


@dataclass(frozen=True)
class Letters:
    """How often a model that stated the right fact also found its letter, on the ceval form."""

    model: str
    stated: int
    found: int


@dataclass(frozen=True)
class Report:
    """All rows, and how well letters are found."""

    rows: tuple[Row, ...]
    letters: tuple[Letters, ...]
    num: int
    """Items of each kind."""
    seed: int
    split: Split


def dataset(kind: Kind, split: Split, num: int, seed: int) -> Dataset:
    """Return fresh items as a data set, numbered."""
    drawn = items.draw(kind, split, num, seed)
    questions = tuple(item.as_question(f"{index}") for index, item in enumerate(drawn))
    return Dataset(kind, f"{kind} (lab)", questions, fingerprint(questions), f"{split} items, seed {seed}")


def measure(
    zoo: str,
    *,
    names: Sequence[str] = ("Qwen", "Ds", "Yi"),
    strategies: Sequence[str] | str = STRATEGIES,
    split: Split = "test",
    num: int = 100,
    seed: int = 42,
) -> Report:
    """Run every path over fresh items of every kind.

    Args:
        zoo: name or file of the zoo.
        names: its three models.
        strategies: only these.
        split: dev while a zoo is being made, test to say what it reaches.
        num, seed: how many items of each kind, and which.
    Raises:
        RunError: a path or a question failed.
    """
    drawn = {kind: items.draw(kind, split, num, seed) for kind in KINDS}
    rows, letters = [], []
    with TemporaryDirectory() as named:
        files = [Folder(named, f"{kind}.jsonl") for kind in KINDS]
        for file, (kind, found) in zip(files, drawn.items(), strict=True):
            file.write_text("".join(f"{line}\n" for line in lines(kind, found, "jsonl")), encoding="utf-8")
        swept = flowinfer.sweep(
            names,
            strategies=strategies,
            datasets=[str(file) for file in files],
            zoo=zoo,
            params={"max_tokens": 160},
            out=named,
            quiet=False,
        )
        if swept.failures:
            raise RunError(swept.failures[0])
        for row in swept.rows:
            results = {kind: cell.results for kind, cell in zip(KINDS, row.cells, strict=True) if cell.results}
            accuracy = {kind: found.correct / num for kind, found in results.items()}
            strategy, models, flow = row.wiring.strategy, row.wiring.models, row.wiring.flow
            assert strategy is not None, "wired in the paper's ways"
            rows.append(Row(Path(strategy, models, flow), accuracy, statistics.fmean(accuracy.values())))
            if strategy == "single":
                letters.append(_letters(flow, drawn["ceval"], read_records(Folder(results["ceval"].run or ""))))
    return Report(tuple(rows), tuple(letters), num, seed, split)


def table(report: Report) -> str:
    """Return the rows as a Markdown table, in %."""
    lines = ["| path | " + " | ".join(KINDS) + " | mean |", "|---|" + "---|" * (len(KINDS) + 1)]
    for row in report.rows:
        name = row.path.flow.replace("|", "\\|")
        cells = [f"{100 * row.accuracy[kind]:.0f}" for kind in KINDS]
        lines.append(f"| {row.path.strategy} `{name}` | {' | '.join(cells)} | {100 * row.mean:.1f} |")
    return "\n".join(lines)


def summary(report: Report) -> list[str]:
    """Say what the rows show: the singles' mean, the worst and best path of each strategy, letters found."""
    lines = []
    singles = [row.mean for row in report.rows if row.path.strategy == "single"]
    for strategy in dict.fromkeys(row.path.strategy for row in report.rows):
        chosen = [row for row in report.rows if row.path.strategy == strategy]
        worst, best = min(chosen, key=lambda row: row.mean), max(chosen, key=lambda row: row.mean)
        lines.append(
            f"{strategy:<6} worst {100 * worst.mean:.1f} ({worst.path.flow}), best {100 * best.mean:.1f} "
            f"({best.path.flow}), mean {100 * statistics.fmean(row.mean for row in chosen):.1f}"
        )
    if singles:
        lines.append(f"mean of the singles {100 * statistics.fmean(singles):.1f}")
    for row in report.letters:
        share = f" ({100 * row.found / row.stated:.0f} %)" if row.stated else ""
        lines.append(f"{row.model}: stated the fact {row.stated} times, found its letter {row.found} times{share}")
    return lines


def _letters(model: str, drawn: Sequence[Item], records: Iterable[Record]) -> Letters:
    """Count the answers that state the right fact, and those of them that name its letter."""
    facts = {str(index): item.right.steps.split("\n")[0] for index, item in enumerate(drawn)}
    stated = [record for record in records if facts[record.question.id] in record.trace.answer]
    return Letters(model, len(stated), sum(bool(record.score and record.score.correct) for record in stated))
