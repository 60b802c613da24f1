"""What a flow gained and cost on a data set: accuracy, counts, seconds and tokens, summed up from records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flowinfer.planning.plan import Plan
from flowinfer.results import HeadTimes, Record, Taken, Trace
from flowinfer.runs.stats import wilson
from flowinfer.runs.store import info, read_json
from flowinfer.spec import Flow


class _Summary(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HeadSummary(_Summary):
    """What one head of a step cost per question, in seconds (the paper's table 5 is per token)."""

    model: str
    forward_seconds: float
    transfer_seconds: float
    fed_tokens: float
    agreement: float | None
    """Share of emitted tokens that were its own favourite."""


class StepSummary(_Summary):
    """One step over all questions, means per question."""

    step: str
    title: str
    seconds: float
    tokens: float
    fuse_seconds: float
    near_ties: float
    truncated: int
    cached: int
    """Questions whose result was taken from the cache; not in the seconds."""
    heads: tuple[HeadSummary, ...]


class SelectionSummary(_Summary):
    """Which of several texts was taken, over all questions."""

    selection: str
    title: str
    rule: str
    taken: tuple[int, ...]
    """Of each candidate, how many questions took it."""
    gathers: bool = False
    """Whether a candidate has the texts of those before it too: samples, the first of which are two."""
    lost: tuple[int, ...] = ()
    """Of a quorum: of each member, how many questions went on without it."""

    @property
    def shares(self) -> str:
        """Return how often each candidate was taken, in words; "" where a quorum lost nobody."""
        total = sum(self.taken)
        if self.lost or not total:
            lost = [(number, count) for number, count in enumerate(self.lost, start=1) if count]
            return ", ".join(f"{number} lost: {100 * count / total:.0f} %" for number, count in lost)
        if self.gathers:
            drawn = sum((index + 2) * count for index, count in enumerate(self.taken)) / total
            return f"{drawn:.1f} of {len(self.taken) + 1} drawn"
        found = [(number, count) for number, count in enumerate(self.taken, start=1) if count]
        return ", ".join(f"{number}: {100 * count / total:.0f} %" for number, count in found)


class SubjectSummary(_Summary):
    """One subject or module of the data set."""

    subject: str
    n: int
    correct: int


class RunOn(_Summary):
    """Answers that go on with questions of the model's own behind the one that it was asked."""

    num: int
    of: int
    """Answers that are there."""
    first: tuple[str, ...]
    """Ids of the first of their questions."""
    needless: float
    """Share of all that was answered that stands behind the answers."""
    stops: tuple[str, ...]
    """Texts that would end them there, and no answer before."""
    step: str
    """What writes the answers."""


class Results(_Summary):
    """What a flow gained and cost on a data set."""

    flow: str
    dataset: str
    zoo: str
    n: int
    """Questions with a verdict; failed ones have none."""
    correct: int
    accuracy: float | None
    """Between 0 and 1; None where no question has a verdict."""
    interval: tuple[float, float]
    """Wilson's, 95 %."""
    no_answer: int
    """Outputs in which no single answer was found, ambiguous ones included."""
    ambiguous: int
    truncated: int
    """Outputs cut by max_tokens or a context limit."""
    failed: int
    ties: int = 0
    """Votes at the end of the flow that the order of the members decided, for no answer had more than another."""
    filtered: int = 0
    """Answers with a step that an endpoint refused or filtered."""
    cost: float | None = None
    """What endpoints took for all steps, those from the cache included; None where no model says a price."""
    seconds_per_question: float | None
    """Mean along the longest chain of steps, over questions without cached steps; None if there are none."""
    median_seconds: float | None
    cached: int
    """Questions with at least one cached step."""
    tokens: int
    """Emitted by all steps of all questions."""
    tokens_per_second: float | None
    """Emitted in this run over its wall clock."""
    wall_seconds: float
    batch: str
    steps: tuple[StepSummary, ...]
    subjects: tuple[SubjectSummary, ...]
    run: str | None
    """Folder of the run."""
    data_note: str | None = None
    """What a user must know of how references were read."""
    run_on: RunOn | None = None
    """What ran on; None where hardly anything did."""
    selections: tuple[SelectionSummary, ...] = ()
    """Where steps may be skipped."""
    calls: float | None = None
    """Model calls of a question, mean; None where no step may be skipped, so that all have the same."""


def summarize(
    flow: Flow,
    plan: Plan,
    label: str,
    records: Sequence[Record],
    *,
    wall_seconds: float,
    batch: str,
    run: str | None,
    data_note: str | None = None,
    run_on: RunOn | None = None,
    resumed: int = 0,
    allow_cached_latency: bool = False,
) -> Results:
    """Sum up judged answers.

    Args:
        wall_seconds: of this run.
        resumed: how many of the records (the first ones) were there before it.
        allow_cached_latency: count the seconds of cached steps too, which are other runs'.
    """
    fresh = [step.tokens for record in records[resumed:] for step in record.trace.steps if step.cached_from is None]
    return _sum(
        records,
        {step.id: step.title for step in plan.steps},
        allow_cached_latency=allow_cached_latency,
        flow=flow.name,
        zoo=flow.zoo,
        dataset=label,
        wall_seconds=wall_seconds,
        batch=batch,
        run=run,
        data_note=data_note,
        run_on=run_on,
        tokens_per_second=sum(fresh) / wall_seconds if any(fresh) and wall_seconds > 0 else None,
    )


def summarize_run(path: Path, records: Sequence[Record]) -> Results:
    """Sum up a run folder's records; the wall clock is that of its results, 0 where it was interrupted."""
    run = info(path)
    stored = path / "results.json"
    before = read_json(stored) if stored.is_file() else {}
    return _sum(
        records,
        {step["id"]: step["title"] for step in read_json(path / "plan.json")["steps"]},
        flow=str(run.said("flow")),
        zoo=str(run.said("zoo")),
        batch=str(run.said("batch")),
        dataset=str(run.said("dataset_label")),
        wall_seconds=float(before.get("wall_seconds", 0.0)),
        run=str(path),
        data_note=run.data.get("data_note"),
        run_on=before.get("run_on"),
        tokens_per_second=before.get("tokens_per_second"),
    )


@dataclass(frozen=True)
class Tally:
    """How outputs ended."""

    no_answer: int
    """Outputs in which no single answer was found, ambiguous ones included."""
    ambiguous: int
    truncated: int
    """Outputs cut by max_tokens or a context limit."""
    failed: int
    ties: int
    """Votes that the order of the members decided, for no answer had more than another."""
    filtered: int
    """Answers with a step that an endpoint refused or filtered."""


def tally(records: Sequence[Record]) -> Tally:
    """Count how outputs ended."""
    status = Counter(record.score.status for record in records if record.score)
    return Tally(
        no_answer=status.total() - status["ok"],
        ambiguous=status["ambiguous"],
        truncated=_count(records, _is_truncated),
        failed=_count(records, lambda record: record.trace.error is not None),
        ties=_count(records, is_tied),
        filtered=_count(records, lambda record: any(s.finish_reason == "content_filter" for s in record.trace.steps)),
    )


def cost_of(records: Sequence[Record]) -> float | None:
    """Return what endpoints took for all steps of these; None where none of them says a cost."""
    costs = [step.usage.cost for record in records for step in record.trace.steps if step.usage]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def is_tied(record: Record) -> bool:
    """Return whether its answer was voted on and no answer had more votes than another."""
    return record.trace.ballot is not None and record.trace.ballot.is_tie


def _is_truncated(record: Record) -> bool:
    is_voted = record.trace.finish_reason == "vote"
    ends = [step.finish_reason for step in record.trace.steps[-1:]] if is_voted else [record.trace.finish_reason]
    return any(end in ("length", "context") for end in ends) or bool(
        record.score and record.score.status == "truncated"
    )


def _sum(
    records: Sequence[Record],
    titles: Mapping[str, str],
    *,
    allow_cached_latency: bool = False,
    **said: Any,  # the fields of results that no record says
) -> Results:
    judged = [record for record in records if record.score is not None]
    correct = _count(judged, lambda r: bool(r.score and r.score.correct))
    interval = wilson(correct, len(judged))
    fresh = [r for r in records if r.trace.error is None and (allow_cached_latency or not _is_cached(r))]
    seconds = [record.trace.seconds for record in fresh]
    return Results(
        n=len(judged),
        correct=correct,
        accuracy=correct / len(judged) if judged else None,
        interval=(interval.low, interval.high),
        **asdict(tally(records)),
        cost=cost_of(records),
        seconds_per_question=statistics.fmean(seconds) if seconds else None,
        median_seconds=statistics.median(seconds) if seconds else None,
        cached=_count(records, _is_cached),
        tokens=sum(step.tokens for record in records for step in record.trace.steps),
        steps=tuple(_step_summary(step_id, title, records) for step_id, title in titles.items()),
        subjects=_subjects(judged),
        selections=selections_of(records),
        calls=_calls(records),
        **said,
    )


def taken_in(selections: Sequence[SelectionSummary]) -> str:
    """Return in words how often each candidate of some selections was taken."""
    told = [(one.selection, one.shares) for one in selections if one.shares]
    return told[0][1] if len(selections) == 1 and told else "; ".join(f"{name} {shares}" for name, shares in told)


def selections_of(records: Sequence[Record]) -> tuple[SelectionSummary, ...]:
    found: dict[str, list[Taken]] = {}
    for record in records:
        for taken in record.trace.selections:
            found.setdefault(taken.selection, []).append(taken)
    return tuple(
        SelectionSummary(
            selection=name,
            title=one[0].title,
            rule=one[0].rule,
            taken=tuple(sum(taken.taken == index for taken in one) for index in range(one[0].most)),
            gathers=one[0].gathers,
            lost=()
            if one[0].lost is None
            else tuple(sum(str(number) in (taken.lost or ()) for taken in one) for number in range(1, one[0].most + 1)),
        )
        for name, one in sorted(found.items())
    )


def _calls(records: Sequence[Record]) -> float | None:
    has_selections = any(record.trace.selections for record in records if record.trace.error is None)
    return mean_calls(records) if has_selections else None


def mean_calls(records: Sequence[Record]) -> float | None:
    """Return the mean model calls of the questions that were answered, None where none was."""
    answered = [calls_of(record.trace) for record in records if record.trace.error is None]
    return statistics.fmean(answered) if answered else None


def calls_of(trace: Trace) -> int:
    """Return how many models decoded for a question; an endpoint's step has no heads."""
    return sum(max(1, len(step.heads)) for step in trace.steps)


def _is_cached(record: Record) -> bool:
    return any(step.cached_from is not None for step in record.trace.steps)


def _count(records: Sequence[Record], holds: Callable[[Record], bool]) -> int:
    return sum(holds(record) for record in records)


def _step_summary(step_id: str, title: str, records: Sequence[Record]) -> StepSummary:
    found = [step for record in records for step in record.trace.steps if step.step == step_id]
    fresh = [step for step in found if step.cached_from is None] or found
    most = len(fresh[0].heads) if fresh else 0
    heads = [[step.heads[index] for step in fresh if len(step.heads) > index] for index in range(most)]
    return StepSummary(
        step=step_id,
        title=title,
        seconds=_mean([step.seconds for step in fresh]),
        tokens=_mean([step.tokens for step in found]),
        fuse_seconds=_mean([step.fuse_seconds for step in fresh]),
        near_ties=_mean([step.near_ties for step in found]),
        truncated=sum(step.finish_reason in ("length", "context") for step in found),
        cached=sum(step.cached_from is not None for step in found),
        heads=tuple(_head_summary(rows) for rows in heads),
    )


def _head_summary(rows: Sequence[HeadTimes]) -> HeadSummary:
    agreements = [row.agreement for row in rows if row.agreement is not None]
    return HeadSummary(
        model=rows[0].model,
        forward_seconds=_mean([row.forward_seconds for row in rows]),
        transfer_seconds=_mean([row.transfer_seconds for row in rows]),
        fed_tokens=_mean([row.fed_tokens for row in rows]),
        agreement=_mean(agreements) if agreements else None,
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _subjects(records: Sequence[Record]) -> tuple[SubjectSummary, ...]:
    tally: dict[str, list[bool]] = {}
    for record in records:
        if record.question.subject:
            tally.setdefault(record.question.subject, []).append(bool(record.score and record.score.correct))
    return tuple(SubjectSummary(subject=name, n=len(v), correct=sum(v)) for name, v in sorted(tally.items()))
