"""What a summary counts of records, one after the other: numbers, so that no record need be kept."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from flowinfer.results import HeadTimes, Record, StepResult, Taken, Trace


class Sums(Protocol):
    """Something that is counted."""

    def add(self, record: Record) -> None:
        """Count a record."""


S = TypeVar("S", bound=Sums)


def over(records: Iterable[Record], sums: S) -> S:
    """Count records, and return the sums."""
    for record in records:
        sums.add(record)
    return sums


class Endings:
    """How outputs ended; see `summary.Tally`."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.truncated = self.failed = self.ties = self.filtered = 0

    def add(self, record: Record) -> None:
        """Count a record."""
        if record.score:
            self.status[record.score.status] += 1
        self.truncated += _is_truncated(record)
        self.failed += record.trace.error is not None
        self.ties += is_tied(record)
        self.filtered += any(step.finish_reason == "content_filter" for step in record.trace.steps)


class Costs:
    """What endpoints took."""

    def __init__(self) -> None:
        self.whole: float | None = None
        """None where no step says a cost."""

    def add(self, record: Record) -> None:
        """Count a record."""
        for step in record.trace.steps:
            if step.usage and step.usage.cost is not None:
                self.whole = (self.whole or 0) + step.usage.cost


class Calls:
    """How many models decoded for those questions that were answered."""

    def __init__(self) -> None:
        self.whole = self.num_answered = 0
        self.has_selections = False
        """Whether steps may be skipped, so that not all have the same."""

    def add(self, record: Record) -> None:
        """Count a record."""
        if record.trace.error is None:
            self.whole += calls_of(record.trace)
            self.num_answered += 1
            self.has_selections |= bool(record.trace.selections)

    @property
    def mean(self) -> float | None:
        """Return the mean of a question; None where none was answered."""
        return self.whole / self.num_answered if self.num_answered else None


class Selected:
    """Which candidates were taken."""

    def __init__(self) -> None:
        self.first: dict[str, Taken] = {}
        """By selection."""
        self.taken: Counter[tuple[str, int]] = Counter()
        self.lost: Counter[tuple[str, str]] = Counter()
        """By selection and member's number."""

    def add(self, record: Record) -> None:
        """Count a record."""
        for taken in record.trace.selections:
            self.first.setdefault(taken.selection, taken)
            self.taken[taken.selection, taken.taken] += 1
            self.lost.update((taken.selection, number) for number in taken.lost or ())


class Subjects:
    """Verdicts by subject."""

    def __init__(self) -> None:
        self.judged: Counter[str] = Counter()
        self.correct: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        """Count a record."""
        if record.question.subject and record.score is not None:
            self.judged[record.question.subject] += 1
            self.correct[record.question.subject] += record.score.correct


class HeadSums:
    """One head of a step."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.forward_seconds, self.transfer_seconds, self.agreements = array("d"), array("d"), array("d")
        self.fed_tokens = 0

    def add(self, head: HeadTimes) -> None:
        """Count what it did for one question."""
        self.forward_seconds.append(head.forward_seconds)
        self.transfer_seconds.append(head.transfer_seconds)
        self.fed_tokens += head.fed_tokens
        if head.agreement is not None:
            self.agreements.append(head.agreement)


class StepSums:
    """One step."""

    def __init__(self) -> None:
        self.seconds, self.fuse_seconds = array("d"), array("d")
        self.tokens = self.near_ties = self.truncated = self.num_heads = 0
        self.heads: list[HeadSums] = []

    def add(self, step: StepResult) -> None:
        """Count one question's."""
        if not self.seconds:
            self.num_heads = len(step.heads)
        self.seconds.append(step.seconds)
        self.fuse_seconds.append(step.fuse_seconds)
        self.tokens += step.tokens
        self.near_ties += step.near_ties
        self.truncated += step.finish_reason in ("length", "context")
        for index, head in enumerate(step.heads[: self.num_heads]):
            if index == len(self.heads):
                self.heads.append(HeadSums(head.model))
            self.heads[index].add(head)


class Summing:
    """All that a run's results count.

    Args:
        steps: ids of the plan's steps.
        allows_cached: whether the seconds of cached steps count too, which are other runs'.
    """

    def __init__(self, steps: Iterable[str], *, allows_cached: bool = False) -> None:
        self._allows_cached = allows_cached
        self.endings, self.costs, self.calls = Endings(), Costs(), Calls()
        self.selected, self.subjects = Selected(), Subjects()
        self.fresh = {step: StepSums() for step in steps}
        self.cached = {step: StepSums() for step in self.fresh}
        """What other runs decoded."""
        self.num_judged = self.num_correct = self.num_cached = self.tokens = self.fresh_tokens = 0
        self.seconds = array("d")
        """Of the questions without cached steps."""

    def add(self, record: Record) -> None:
        """Count a record."""
        for part in (self.endings, self.costs, self.calls, self.selected, self.subjects):
            part.add(record)
        if record.score is not None:
            self.num_judged += 1
            self.num_correct += record.score.correct
        is_cached = False
        for step in record.trace.steps:
            self.tokens += step.tokens
            is_fresh = step.cached_from is None
            is_cached |= not is_fresh
            self.fresh_tokens += step.tokens * is_fresh
            if (sums := (self.fresh if is_fresh else self.cached).get(step.step)) is not None:
                sums.add(step)
        self.num_cached += is_cached
        if record.trace.error is None and (self._allows_cached or not is_cached):
            self.seconds.append(record.trace.seconds)


def calls_of(trace: Trace) -> int:
    """Return how many models decoded for a question; an endpoint's step has no heads."""
    return sum(max(1, len(step.heads)) for step in trace.steps)


def is_tied(record: Record) -> bool:
    """Return whether its answer was voted on and no answer had more votes than another."""
    return record.trace.ballot is not None and record.trace.ballot.is_tie


def _is_truncated(record: Record) -> bool:
    is_voted = record.trace.finish_reason == "vote"
    ends = [step.finish_reason for step in record.trace.steps[-1:]] if is_voted else [record.trace.finish_reason]
    return any(end in ("length", "context") for end in ends) or bool(
        record.score and record.score.status == "truncated"
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return statistics.fmean(values) if values else 0.0
