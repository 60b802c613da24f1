"""What a flow gained and cost on a data set: accuracy, counts, seconds and tokens, summed up from records."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flowinfer.planning.plan import Plan
from flowinfer.results import Record
from flowinfer.runs.stats import wilson
from flowinfer.runs.store import info, read_json
from flowinfer.runs.summing import Calls, Costs, Endings, HeadSums, Selected, StepSums, Summing, mean, over
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
    sums: Summing,
    *,
    wall_seconds: float,
    batch: str,
    run: str | None,
    data_note: str | None = None,
    run_on: RunOn | None = None,
    resumed_tokens: int = 0,
) -> Results:
    """Sum up judged answers.

    Args:
        sums: all that was counted of them.
        wall_seconds: of this run.
        resumed_tokens: how many of the tokens that no other run decoded were there before it.
    """
    tokens = sums.fresh_tokens - resumed_tokens
    return _results(
        sums,
        {step.id: step.title for step in plan.steps},
        flow=flow.name,
        zoo=flow.zoo,
        dataset=label,
        wall_seconds=wall_seconds,
        batch=batch,
        run=run,
        data_note=data_note,
        run_on=run_on,
        tokens_per_second=tokens / wall_seconds if tokens and wall_seconds > 0 else None,
    )


def counting(plan: Plan, *, allow_cached_latency: bool = False) -> Summing:
    """Return what counts the records of a plan.

    Args:
        allow_cached_latency: count the seconds of cached steps too, which are other runs'.
    """
    return Summing([step.id for step in plan.steps], allows_cached=allow_cached_latency)


def summarize_run(path: Path, records: Sequence[Record]) -> Results:
    """Sum up a run folder's records; the wall clock is that of its results, 0 where it was interrupted."""
    run = info(path)
    stored = path / "results.json"
    before = read_json(stored) if stored.is_file() else {}
    titles = {step["id"]: step["title"] for step in read_json(path / "plan.json")["steps"]}
    return _results(
        over(records, Summing(titles)),
        titles,
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


def tally(records: Iterable[Record]) -> Tally:
    """Count how outputs ended."""
    return _tally(over(records, Endings()))


def _tally(endings: Endings) -> Tally:
    return Tally(
        no_answer=endings.status.total() - endings.status["ok"],
        ambiguous=endings.status["ambiguous"],
        truncated=endings.truncated,
        failed=endings.failed,
        ties=endings.ties,
        filtered=endings.filtered,
    )


def cost_of(records: Iterable[Record]) -> float | None:
    """Return what endpoints took for all steps of these; None where none of them says a cost."""
    return over(records, Costs()).whole


def _results(
    sums: Summing,
    titles: Mapping[str, str],
    **said: Any,  # the fields of results that no record says
) -> Results:
    interval = wilson(sums.num_correct, sums.num_judged)
    subjects = sums.subjects
    return Results(
        n=sums.num_judged,
        correct=sums.num_correct,
        accuracy=sums.num_correct / sums.num_judged if sums.num_judged else None,
        interval=(interval.low, interval.high),
        **asdict(_tally(sums.endings)),
        cost=sums.costs.whole,
        seconds_per_question=statistics.fmean(sums.seconds) if sums.seconds else None,
        median_seconds=statistics.median(sums.seconds) if sums.seconds else None,
        cached=sums.num_cached,
        tokens=sums.tokens,
        steps=tuple(_step(name, title, sums.fresh[name], sums.cached[name]) for name, title in titles.items()),
        subjects=tuple(
            SubjectSummary(subject=name, n=count, correct=subjects.correct[name])
            for name, count in sorted(subjects.judged.items())
        ),
        selections=_selections(sums.selected),
        calls=sums.calls.mean if sums.calls.has_selections else None,
        **said,
    )


def taken_in(selections: Sequence[SelectionSummary]) -> str:
    """Return in words how often each candidate of some selections was taken."""
    told = [(one.selection, one.shares) for one in selections if one.shares]
    return told[0][1] if len(selections) == 1 and told else "; ".join(f"{name} {shares}" for name, shares in told)


def selections_of(records: Iterable[Record]) -> tuple[SelectionSummary, ...]:
    """Return which candidates were taken."""
    return _selections(over(records, Selected()))


def _selections(selected: Selected) -> tuple[SelectionSummary, ...]:
    return tuple(
        SelectionSummary(
            selection=name,
            title=one.title,
            rule=one.rule,
            taken=tuple(selected.taken[name, index] for index in range(one.most)),
            gathers=one.gathers,
            lost=()
            if one.lost is None
            else tuple(selected.lost[name, str(number)] for number in range(1, one.most + 1)),
        )
        for name, one in sorted(selected.first.items())
    )


def mean_calls(records: Iterable[Record]) -> float | None:
    """Return the mean model calls of the questions that were answered, None where none was."""
    return over(records, Calls()).mean


def _step(name: str, title: str, fresh: StepSums, cached: StepSums) -> StepSummary:
    """Return one step; seconds are this run's, or other runs' where it decoded none itself."""
    own = fresh if fresh.seconds else cached
    count = len(fresh.seconds) + len(cached.seconds)
    return StepSummary(
        step=name,
        title=title,
        seconds=mean(own.seconds),
        tokens=(fresh.tokens + cached.tokens) / max(1, count),
        fuse_seconds=mean(own.fuse_seconds),
        near_ties=(fresh.near_ties + cached.near_ties) / max(1, count),
        truncated=fresh.truncated + cached.truncated,
        cached=len(cached.seconds),
        heads=tuple(_head(head) for head in own.heads),
    )


def _head(head: HeadSums) -> HeadSummary:
    return HeadSummary(
        model=head.model,
        forward_seconds=mean(head.forward_seconds),
        transfer_seconds=mean(head.transfer_seconds),
        fed_tokens=head.fed_tokens / len(head.forward_seconds),
        agreement=mean(head.agreements) if head.agreements else None,
    )
