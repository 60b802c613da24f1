"""What the three models reach alone and along every path of the paper, on fresh items.

Steps that paths share are computed once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flowinfer.engine.base import Observer
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.models import ModelPool
from flowinfer.errors import RunError
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.paper.paths import STRATEGIES, Path, Strategy, paths
from flowinfer.results import Record
from flowinfer.runs.cache import DiskStepCache, default_folder
from flowinfer.sweeps.core import Ended, Job, Sharing
from flowinfer.sweeps.placing import Placed, place_all
from flowinfer.tasks.base import Dataset, fingerprint
from lab import items
from lab.items import KINDS, Item, Kind, Split

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
    sets = [as_dataset(kind, found, f"{split} items, seed {seed}") for kind, found in drawn.items()]
    wired = paths(names, strategies)
    placed = place_all([check(path.flow, zoo=zoo, overrides=_SETTINGS) for path in wired], this_machine())
    rows: dict[int, Row] = {}
    letters: dict[int, Letters] = {}
    accuracy: dict[int, dict[Kind, float]] = {index: {} for index in range(len(wired))}
    for ended in _share(placed, sets):
        index, kind = ended.job.plan, KINDS[ended.job.dataset]
        accuracy[index][kind] = sum(bool(one.score and one.score.correct) for one in ended.records) / num
        if kind == "ceval" and wired[index].strategy == "single":
            letters[index] = _letters(wired[index].flow, drawn[kind], ended.records)
        if len(accuracy[index]) == len(KINDS):
            found = {kind: accuracy[index][kind] for kind in KINDS}
            rows[index] = Row(wired[index], found, statistics.fmean(found.values()))
            if on_row:
                on_row(rows[index])
    in_order = range(len(wired))
    said = tuple(letters[index] for index in in_order if index in letters)
    return Report(tuple(rows[index] for index in in_order), said, num, seed, split)


def _share(placed: Placed, sets: Sequence[Dataset]) -> Iterator[Ended]:
    """Run every path over every set, sharing steps; keep nothing but the cache."""
    problem = next((problem for problem in placed.problems if problem is not None), None)
    if problem is not None:
        raise RunError(problem)
    observer, models = Observer(), ModelPool()
    sharing = Sharing(
        placed.plans,
        sets,
        lambda run: DiskStepCache(default_folder(), run),
        Decoders(models, observer, "auto"),
        observer,
        frees_models=not placed.fits,
    )
    ids = [frozenset(question.id for question in one.questions) for one in sets]
    jobs = [Job(plan, number, "lab", ids[number]) for plan in range(len(placed.plans)) for number in range(len(sets))]
    try:
        for ended in sharing.run(jobs):
            if ended.error is not None:
                raise RunError(ended.error)
            yield ended
    finally:
        models.close()


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
