"""One flow over one data set: plan, run, judge, store, sum up."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from flowinfer.cache import DiskStepCache, default_folder, step_key
from flowinfer.plan import Plan, fingerprint
from flowinfer.results import Question, Record, Score, Trace
from flowinfer.spec import Flow
from flowinfer.stats import wilson
from flowinfer.store import Run, find_run, write_json

if TYPE_CHECKING:
    from flowinfer.engine.base import Observer
    from flowinfer.engine.models import ModelPool
    from flowinfer.tasks.base import Dataset


class HeadSummary(BaseModel):
    """What one head of a step cost per question, in seconds (the paper's table 5 is per token)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    forward_seconds: float
    transfer_seconds: float
    fed_tokens: float
    agreement: float | None
    """Share of emitted tokens that were its own favourite."""


class StepSummary(BaseModel):
    """One step over all questions, means per question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class SubjectSummary(BaseModel):
    """One subject or module of the data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str
    n: int
    correct: int


class Results(BaseModel):
    """What a flow gained and cost on a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flow: str
    dataset: str
    zoo: str
    n: int
    """Questions with a verdict or a failure."""
    correct: int
    accuracy: float | None
    """Between 0 and 1; failed questions count as wrong; None without questions."""
    interval: tuple[float, float]
    """Wilson's, 95 %."""
    no_answer: int
    """Outputs in which no single answer was found, ambiguous ones included."""
    ambiguous: int
    truncated: int
    """Outputs cut by max_tokens or a context limit."""
    failed: int
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


@dataclass(frozen=True)
class Request:
    """How to evaluate."""

    out: Path | None = Path("runs")
    """Where run folders go; None keeps nothing."""
    batch: int | Literal["auto"] = "auto"
    resume: str | None = None
    """Path, name or beginning of a run, or `latest`."""
    use_cache: bool = True
    allow_cached_latency: bool = False
    settings: dict[str, Any] | None = None
    """Further settings for run.json."""


def evaluate(
    flow: Flow,
    dataset: Dataset,
    request: Request,
    *,
    observer: Observer | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_start: Callable[[Plan, Run | None, Sequence[Record]], None] | None = None,
    models: ModelPool | None = None,
) -> Results:
    """Run a flow over a data set and sum up.

    Args:
        flow: a checked flow.
        dataset: the questions.
        request: how.
        observer: hears the engine.
        on_record: hears each judged answer.
        on_start: hears plan, run folder and the answers that are there already.
        models: loaded models to share.
    Raises:
        UsageError: the run to resume is another's.
        RunError: models cannot be loaded or do not fit.
    """
    from flowinfer.engine.scheduler import execute
    from flowinfer.machine import this_machine
    from flowinfer.placement import ready
    from flowinfer.tasks.base import question_text
    from flowinfer.toy import provide

    provide(flow.models.values())
    plan = ready(flow, this_machine())
    run = _open(flow, plan, dataset, request)
    start = time.perf_counter()
    records = run.records() if run else []
    try:
        if on_start:
            on_start(plan, run, records)
        done = {record.question.id for record in records}
        left = [question for question in dataset.questions if question.id not in done]
        by_id = {question.id: question for question in left}
        cache = DiskStepCache(default_folder(), run.path.name if run else "") if request.use_cache else None
        traces = execute(
            plan,
            left,
            batch=request.batch,
            observer=observer,
            cache=cache,
            step_key=step_key,
            vote=majority,
            question_text=question_text,
            models=models,
        )
        for trace in traces:
            question = by_id[trace.question_id]
            record = Record(question=question, trace=trace, score=score(question, trace))
            if run:
                run.append(record)
            records.append(record)
            if on_record:
                on_record(record)
        results = summarize(
            flow,
            plan,
            dataset.label,
            records,
            wall_seconds=time.perf_counter() - start,
            batch=str(request.batch),
            run=str(run.path) if run else None,
            resumed=len(done),
            allow_cached_latency=request.allow_cached_latency,
        )
        if run:
            run.finish(results.model_dump(mode="json"))
        return results
    finally:
        if run:
            run.close()


def score(question: Question, trace: Trace) -> Score | None:
    """Judge a trace; None where the question failed or has no reference."""
    if trace.error is not None or not question.reference:
        return None
    from flowinfer.tasks.answers import judge

    return judge(
        question.kind,
        trace.answer,
        question.reference,
        question=question.question,
        choices=question.choices or None,
    )


def majority(question: Question, outputs: Sequence[str]) -> int:
    """Return the index of the output that most agree with."""
    from flowinfer.tasks.answers import vote

    return vote(question.kind, outputs, question.choices or None)


def summarize(
    flow: Flow,
    plan: Plan,
    label: str,
    records: Sequence[Record],
    *,
    wall_seconds: float,
    batch: str,
    run: str | None,
    resumed: int = 0,
    allow_cached_latency: bool = False,
) -> Results:
    """Sum up judged answers.

    Args:
        wall_seconds: of this run.
        resumed: how many of the records (the first ones) were there before it.
        allow_cached_latency: count the seconds of cached steps too, which are other runs'.
    """
    emitted = sum(
        step.tokens for record in records[resumed:] for step in record.trace.steps if step.cached_from is None
    )
    return _sum(
        flow.name,
        flow.zoo,
        {step.id: step.title for step in plan.steps},
        label,
        records,
        wall_seconds=wall_seconds,
        batch=batch,
        run=run,
        tokens_per_second=emitted / wall_seconds if emitted and wall_seconds > 0 else None,
        allow_cached_latency=allow_cached_latency,
    )


def _sum(
    flow: str,
    zoo: str,
    titles: Mapping[str, str],
    label: str,
    records: Sequence[Record],
    *,
    wall_seconds: float,
    batch: str,
    run: str | None,
    tokens_per_second: float | None,
    allow_cached_latency: bool,
) -> Results:
    judged = [record for record in records if record.score is not None or record.trace.error is not None]
    correct = sum(bool(record.score and record.score.correct) for record in judged)
    interval = wilson(correct, len(judged))
    fresh = [r for r in records if allow_cached_latency or not _is_cached(r)]
    fresh = [r for r in fresh if r.trace.error is None]
    seconds = [record.trace.seconds for record in fresh]
    return Results(
        flow=flow,
        dataset=label,
        zoo=zoo,
        n=len(judged),
        correct=correct,
        accuracy=correct / len(judged) if judged else None,
        interval=(interval.low, interval.high),
        no_answer=_count(records, lambda r: bool(r.score and r.score.status != "ok")),
        ambiguous=_count(records, lambda r: bool(r.score and r.score.status == "ambiguous")),
        truncated=_count(records, is_truncated),
        failed=_count(records, lambda r: r.trace.error is not None),
        seconds_per_question=statistics.fmean(seconds) if seconds else None,
        median_seconds=statistics.median(seconds) if seconds else None,
        cached=_count(records, _is_cached),
        tokens=sum(step.tokens for record in records for step in record.trace.steps),
        tokens_per_second=tokens_per_second,
        wall_seconds=wall_seconds,
        batch=batch,
        steps=tuple(_step_summary(step_id, title, records) for step_id, title in titles.items()),
        subjects=_subjects(judged),
        run=run,
    )


def is_truncated(record: Record) -> bool:
    """Return whether an output was cut before its end."""
    finals = record.trace.steps[-1:] if record.trace.error is None else ()
    return any(step.finish_reason in ("length", "context") for step in finals) or bool(
        record.score and record.score.status == "truncated"
    )


def rescore(path: Path) -> list[tuple[Record, Score | None]]:
    """Judge a run's answers again, without a model; return each record with its new verdict."""
    from flowinfer.store import read_records

    return [(record, score(record.question, record.trace)) for record in read_records(path)]


def summarize_run(path: Path, records: Sequence[Record]) -> Results:
    """Sum up a run folder's records; the wall clock is that of its results, 0 where it was interrupted."""
    from flowinfer.store import info

    said = info(path).data
    stored = path / "results.json"
    before = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    plan = json.loads((path / "plan.json").read_text(encoding="utf-8"))
    titles = {step["id"]: step["title"] for step in plan["steps"]}
    return _sum(
        said["flow"],
        said["zoo"],
        titles,
        str(said["dataset_label"]),
        records,
        wall_seconds=float(before.get("wall_seconds", 0.0)),
        batch=str(said["batch"]),
        run=str(path),
        tokens_per_second=before.get("tokens_per_second"),
        allow_cached_latency=False,
    )


def write_rescored(path: Path, pairs: Iterable[tuple[Record, Score | None]], results: Results) -> None:
    """Write new verdicts over a run's old ones, whole or not at all."""
    run = Run(path)
    try:
        old = path / "samples.jsonl"
        fresh = path / "samples.jsonl.rescored"
        fresh.unlink(missing_ok=True)
        from flowinfer.store import append_row

        for record, verdict in pairs:
            append_row(fresh, record.model_copy(update={"score": verdict}))
        fresh.replace(old)
        write_json(path / "results.json", results.model_dump(mode="json"))
    finally:
        run.close()


def _open(flow: Flow, plan: Plan, dataset: Dataset, request: Request) -> Run | None:
    settings = {
        "flow": flow.name,
        "plan_fingerprint": fingerprint(plan),
        "dataset": dataset.name,
        "dataset_label": dataset.label,
        "data_source": dataset.source,
        "data_fingerprint": dataset.fingerprint,
        "question_ids": [question.id for question in dataset.questions],
        "n": len(dataset.questions),
        "zoo": flow.zoo,
        "params": dict(flow.params),
        "batch": str(request.batch),
        "use_cache": request.use_cache,
        **(request.settings or {}),
    }
    if request.resume is not None:
        return Run.reopen(find_run(request.resume, request.out or Path("runs")), plan, settings)
    if request.out is None:
        return None
    return Run.create(request.out, flow, plan, settings, datetime.now(UTC))


def _is_cached(record: Record) -> bool:
    return any(step.cached_from is not None for step in record.trace.steps)


def _count(records: Sequence[Record], holds: Callable[[Record], bool]) -> int:
    return sum(holds(record) for record in records)


def _step_summary(step_id: str, title: str, records: Sequence[Record]) -> StepSummary:
    found = [step for record in records for step in record.trace.steps if step.step == step_id]
    fresh = [step for step in found if step.cached_from is None] or found
    heads = []
    for index in range(len(fresh[0].heads) if fresh else 0):
        rows = [step.heads[index] for step in fresh if len(step.heads) > index]
        agreements = [row.agreement for row in rows if row.agreement is not None]
        heads.append(
            HeadSummary(
                model=rows[0].model,
                forward_seconds=statistics.fmean(row.forward_seconds for row in rows),
                transfer_seconds=statistics.fmean(row.transfer_seconds for row in rows),
                fed_tokens=statistics.fmean(row.fed_tokens for row in rows),
                agreement=statistics.fmean(agreements) if agreements else None,
            )
        )
    return StepSummary(
        step=step_id,
        title=title,
        seconds=_mean([step.seconds for step in fresh]),
        tokens=_mean([step.tokens for step in found]),
        fuse_seconds=_mean([step.fuse_seconds for step in fresh]),
        near_ties=_mean([step.near_ties for step in found]),
        truncated=sum(step.finish_reason in ("length", "context") for step in found),
        cached=sum(step.cached_from is not None for step in found),
        heads=tuple(heads),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _subjects(records: Sequence[Record]) -> tuple[SubjectSummary, ...]:
    tally: dict[str, list[bool]] = {}
    for record in records:
        if record.question.subject:
            tally.setdefault(record.question.subject, []).append(bool(record.score and record.score.correct))
    return tuple(SubjectSummary(subject=name, n=len(v), correct=sum(v)) for name, v in sorted(tally.items()))
