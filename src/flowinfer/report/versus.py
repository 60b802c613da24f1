"""Two runs on the same questions: who gained what, whether it can be chance, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowinfer.errors import UsageError
from flowinfer.report.evidence import Cell
from flowinfer.report.folders import source_of, timed_alone
from flowinfer.report.inference import Difference, paired_difference
from flowinfer.report.wirings import whole_of
from flowinfer.results import Record
from flowinfer.runs.stats import Paired, paired, paired_interval
from flowinfer.runs.store import info, read_json, read_records
from flowinfer.runs.summary import taken_in


@dataclass(frozen=True)
class Side:
    """One of the two runs, on the questions that both have a verdict for."""

    name: str
    """Its folder's name."""
    flow: str
    """As one writes it, with all options."""
    dataset: str
    correct: int
    accuracy: float
    interval: tuple[float, float]
    """Wilson's, 95 %."""
    no_answer: int
    calls: float | None
    """Model calls of a question, mean."""
    taken: str
    """How often each member was taken, where steps may be skipped."""


@dataclass(frozen=True)
class Change:
    """A question that only one of the two got right."""

    question_id: str
    subject: str | None
    reference: str
    first: str | None
    """What was found in the first run's answer."""
    second: str | None


@dataclass(frozen=True)
class Points:
    """The second's accuracy less the first's, with its 95 % interval (Newcombe's for pairs)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Versus:
    """What two runs on the same questions say."""

    first: Side
    second: Side
    n: int
    """Questions with a verdict in both."""
    left_out: int
    """Questions with a verdict in one of them only."""
    counts: Paired
    points: Points
    seconds: Difference | None
    """The second's seconds less the first's; None unless both were timed at batch 1 without cached steps."""
    gained: tuple[Change, ...]
    """Only the second got them right."""
    lost: tuple[Change, ...]
    """Only the first did."""


def versus(first: Path, second: Path) -> Versus:
    """Compare two run folders question by question.

    Raises:
        UsageError: they have no judged question in common, or one id stands for two questions.
    """
    one, two = _judged(first), _judged(second)
    common = [question_id for question_id in one if question_id in two]
    other = next((i for i in common if one[i].question.bare != two[i].question.bare), None)
    if not common or other is not None:
        said = f"'{first.name}' and '{second.name}' have no judged question in common"
        if other is not None:
            said = f"question '{other}' is another in '{first.name}' than in '{second.name}'"
        raise UsageError(said, help="compare runs over the same data set, sample and seed")
    cells = [Cell("", "", run, tuple(own[i] for i in common), 0) for run, own in ((first, one), (second, two))]
    right, now_right = (cell.verdicts for cell in cells)
    gains = paired(now_right, right)
    interval = paired_interval(gains)
    return Versus(
        _side(cells[0]),
        _side(cells[1]),
        len(common),
        len(one) + len(two) - 2 * len(common),
        paired(right, now_right),
        Points(gains.difference, interval.low, interval.high),
        _seconds(first, second, one, two),
        tuple(_change(one[i], two[i]) for i in common if now_right[i] and not right[i]),
        tuple(_change(one[i], two[i]) for i in common if right[i] and not now_right[i]),
    )


def _judged(run: Path) -> dict[str, Record]:
    return {record.question.id: record for record in read_records(run) if record.score is not None}


def _side(cell: Cell) -> Side:
    said, interval, plan = info(cell.run).data, cell.interval, read_json(cell.run / "plan.json")
    return Side(
        cell.run.name,
        str(whole_of(plan, source_of(cell.run, plan))),
        str(said["dataset_label"]),
        cell.correct,
        cell.correct / cell.n,
        (interval.low, interval.high),
        cell.tally.no_answer,
        cell.calls,
        taken_in(cell.selections),
    )


def _seconds(first: Path, second: Path, one: Mapping[str, Record], two: Mapping[str, Record]) -> Difference | None:
    before, after = (
        {record.question.id: record.trace.seconds for record in timed_alone(info(run).data, tuple(own.values()))}
        for run, own in ((first, one), (second, two))
    )
    return paired_difference([after[i] - before[i] for i in before if i in after])


def _change(one: Record, two: Record) -> Change:
    found = [record.score.extracted if record.score else None for record in (one, two)]
    return Change(one.question.id, one.question.subject, one.question.gold, *found)
