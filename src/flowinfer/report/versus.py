"""Two runs on the same questions: who gained what, whether it can be chance, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowinfer.errors import UsageError
from flowinfer.report.folders import timed_alone
from flowinfer.report.inference import Difference, paired_difference
from flowinfer.results import Record
from flowinfer.runs.stats import Paired, paired, paired_interval, wilson
from flowinfer.runs.store import info, read_records


@dataclass(frozen=True)
class Side:
    """One of the two runs, on the questions that both have a verdict for."""

    name: str
    """Its folder's name."""
    flow: str
    dataset: str
    correct: int
    accuracy: float
    interval: tuple[float, float]
    """Wilson's, 95 %."""
    no_answer: int


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
    _refuse_other_questions(first, second, one, two, common)
    right = [{i: _is_right(records[i]) for i in common} for records in (one, two)]
    changed = [i for i in common if right[0][i] != right[1][i]]
    return Versus(
        _side(first, [one[i] for i in common]),
        _side(second, [two[i] for i in common]),
        len(common),
        len(one) + len(two) - 2 * len(common),
        paired(right[0], right[1]),
        _points(paired(right[1], right[0])),
        _seconds(first, second, one, two),
        tuple(_change(one[i], two[i]) for i in changed if right[1][i]),
        tuple(_change(one[i], two[i]) for i in changed if right[0][i]),
    )


def _points(counts: Paired) -> Points:
    interval = paired_interval(counts)
    return Points(counts.difference, interval.low, interval.high)


def _judged(run: Path) -> dict[str, Record]:
    return {record.question.id: record for record in read_records(run) if record.score is not None}


def _refuse_other_questions(
    first: Path, second: Path, one: Mapping[str, Record], two: Mapping[str, Record], common: Sequence[str]
) -> None:
    if not common:
        raise UsageError(
            f"'{first.name}' and '{second.name}' have no judged question in common",
            help="compare runs over the same data set, sample and seed",
        )
    for question_id in common:
        if one[question_id].question != two[question_id].question:
            raise UsageError(
                f"question '{question_id}' is another in '{first.name}' than in '{second.name}'",
                help="compare runs over the same data set, sample and seed",
            )


def _side(run: Path, records: Sequence[Record]) -> Side:
    said = info(run).data
    correct = sum(_is_right(record) for record in records)
    interval = wilson(correct, len(records))
    return Side(
        run.name,
        str(said["flow"]),
        str(said["dataset_label"]),
        correct,
        correct / len(records),
        (interval.low, interval.high),
        sum(bool(record.score and record.score.status != "ok") for record in records),
    )


def _seconds(first: Path, second: Path, one: Mapping[str, Record], two: Mapping[str, Record]) -> Difference | None:
    before, after = (
        {record.question.id: record.trace.seconds for record in timed_alone(info(run).data, tuple(own.values()))}
        for run, own in ((first, one), (second, two))
    )
    return paired_difference([after[i] - before[i] for i in before if i in after])


def _change(one: Record, two: Record) -> Change:
    return Change(
        one.question.id,
        one.question.subject,
        one.question.reference.rsplit("\n", 1)[-1],
        one.score.extracted if one.score else None,
        two.score.extracted if two.score else None,
    )


def _is_right(record: Record) -> bool:
    return bool(record.score and record.score.correct)
