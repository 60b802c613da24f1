"""What the three models reach alone and along every path of the paper, on fresh items.

Steps that paths share are computed once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flowinfer.check import check
from flowinfer.engine.models import ModelPool
from flowinfer.experiment import Request, evaluate
from flowinfer.lab import items
from flowinfer.lab.items import KINDS, Item, Kind, Split
from flowinfer.paths import STRATEGIES, Path, Strategy, paths
from flowinfer.results import Record
from flowinfer.tasks.base import Dataset, fingerprint

_SETTINGS = {"max_tokens": "160"}


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
    """Return fresh items as a data set."""
    return as_dataset(kind, items.draw(kind, split, num, seed), f"{split} items, seed {seed}")


def as_dataset(kind: Kind, drawn: Iterable[Item], source: str) -> Dataset:
    """Return items as a data set, numbered."""
    questions = tuple(item.as_question(f"{index}") for index, item in enumerate(drawn))
    return Dataset(kind, f"{kind} (lab)", questions, fingerprint(questions), source)


def measure(
    zoo: str,
    *,
    names: Sequence[str] = ("Qwen", "Ds", "Yi"),
    strategies: Sequence[Strategy] = STRATEGIES,
    split: Split = "test",
    num: int = 100,
    seed: int = 42,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Run every path over fresh items of every kind.

    Args:
        zoo: name or file of the zoo.
        names: its three models.
        strategies: only these.
        split: dev while a zoo is being made, test to say what it reaches.
        num, seed: how many items of each kind, and which.
        on_row: hears each finished row.
    """
    drawn = {kind: items.draw(kind, split, num, seed) for kind in KINDS}
    sets = {kind: as_dataset(kind, found, f"{split} items, seed {seed}") for kind, found in drawn.items()}
    rows: list[Row] = []
    letters: list[Letters] = []
    models = ModelPool()
    try:
        for path in paths(names, strategies):
            flow = check(path.flow, zoo=zoo, overrides=_SETTINGS)
            accuracy: dict[Kind, float] = {}
            for kind, questions in sets.items():
                records: list[Record] = []
                found = evaluate(flow, questions, Request(out=None), on_record=records.append, models=models)
                accuracy[kind] = found.accuracy or 0.0
                if kind == "ceval" and path.strategy == "single":
                    letters.append(_letters(path.flow, drawn[kind], records))
            rows.append(Row(path, accuracy, statistics.fmean(accuracy.values())))
            if on_row:
                on_row(rows[-1])
    finally:
        models.close()
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


def _letters(model: str, drawn: Sequence[Item], records: Sequence[Record]) -> Letters:
    """Count the answers that state the right fact, and those of them that name its letter."""
    facts = {str(index): item.right.steps.split("\n")[0] for index, item in enumerate(drawn)}
    stated = [record for record in records if facts[record.question.id] in record.trace.answer]
    return Letters(model, len(stated), sum(bool(record.score and record.score.correct) for record in stated))
