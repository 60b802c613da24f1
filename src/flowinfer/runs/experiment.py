"""One flow over one data set: plan, run, judge, store, sum up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flowinfer.errors import RunError
from flowinfer.language.routing import identity
from flowinfer.output import shell
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import Plan, compile
from flowinfer.results import Question, Record, Score
from flowinfer.runs.answering import Answered, Task
from flowinfer.runs.cache import DiskStepCache, default_folder, member_order, step_key
from flowinfer.runs.finding import find_run
from flowinfer.runs.judging import failed, judged, majority, score
from flowinfer.runs.store import Run, info, read_records, record_line
from flowinfer.runs.summary import Results, RunOn, counting, summarize
from flowinfer.spec import Flow, written
from flowinfer.startup import STARTUP

if TYPE_CHECKING:
    from flowinfer.engine.base import Observer
    from flowinfer.engine.models import ModelPool
    from flowinfer.runs.remote import Server
    from flowinfer.runs.replicas.site import Site
    from flowinfer.tasks.answers.turns import NextQuestion
    from flowinfer.tasks.base import Dataset


@dataclass(frozen=True)
class Request:
    """How to evaluate."""

    out: Path | None = Path("runs")
    """Where run folders go; None keeps nothing."""
    batch: int | Literal["auto"] = "auto"
    engine: Literal["auto", "packed", "reference"] = "auto"
    """Which decoding loops may serve."""
    resume: str | None = None
    """Path, name or beginning of a run, or `latest`."""
    use_cache: bool = True
    allow_cached_latency: bool = False
    server: Server | None = None
    """What answers in the place of this process."""
    replicas: int | Literal["auto"] = 1
    """Copies of the plan, each in a process of its own where there are several."""
    cluster: str | None = None
    """Address of the Ray cluster that they run on; None for this machine."""
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
    into: list[Record] | None = None,
    models: ModelPool | None = None,
) -> Results:
    """Run a flow over a data set and sum up.

    Args:
        flow: a checked flow.
        dataset: the questions.
        request: how.
        observer, on_record: hear the engine, and each judged answer.
        on_start: hears plan, run folder and the answers that are there already; failed questions run again.
        into: takes all records as they are kept.
        models: loaded models to share.
    Raises:
        UsageError: the run to resume is another's.
        RunError: models cannot be loaded or do not fit, or the first questions fail, all of them.
    """
    from flowinfer.engine.patience import Patience

    site, plan = _placed(flow, request)
    run = _open(flow, plan, dataset, replace(request, replicas=site.num_replicas if site else 1))
    start = time.perf_counter()
    with closing(run) if run else nullcontext():
        records = [record for record in run.records() if record.trace.error is None] if run else []
        if on_start:
            on_start(plan, run, records)
        done = {record.question.id for record in records}
        heard = _Heard(plan, request, records, into)
        patience = Patience(has_answer=bool(records))
        left = [question for question in dataset.questions if question.id not in done]
        with _resumable(run):
            for answer in _answered(plan, left, request, run, observer, models, site):
                record = _kept(answer, run, on_record)
                heard.add(record, answer.goes_on)
                if run and site is None:  # else many together, by the pool
                    run.sync()
                patience.hear(record.trace.error)
        results = summarize(
            flow,
            plan,
            dataset.label,
            heard.sums,
            data_note=dataset.note,
            run_on=heard.run_on(plan.step(plan.answer.steps[0]).title),
            wall_seconds=time.perf_counter() - start,
            batch=str(request.batch),
            run=str(run.path) if run else None,
            resumed_tokens=heard.resumed_tokens,
        )
        if run:
            run.finish(results.model_dump(mode="json"))
        return results


class _Heard:
    """What is kept of answers until the end: numbers, and texts that may go on with another question.

    Args:
        before: what was answered before this run.
        into: takes the records too.
    """

    def __init__(self, plan: Plan, request: Request, before: Sequence[Record], into: list[Record] | None) -> None:
        from flowinfer.runs.run_on import goes_on

        self._into = into
        self.sums = counting(plan, allow_cached_latency=request.allow_cached_latency)
        self._answers: dict[str, str] = {}
        """By question, what was judged."""
        self._going_on: dict[str, NextQuestion] = {}
        for record in before:
            self.add(record, goes_on(record))
        self.resumed_tokens = self.sums.fresh_tokens

    def add(self, record: Record, going_on: NextQuestion | None) -> None:
        """Count an answer."""
        self.sums.add(record)
        if self._into is not None:
            self._into.append(record)
        if record.score is not None:
            self._answers[record.question.id] = record.trace.answer
        if going_on is not None:
            self._going_on[record.question.id] = going_on

    def run_on(self, step: str) -> RunOn | None:
        """Return which answers run on, if some do; see `runs.run_on`."""
        from flowinfer.runs.run_on import run_on

        return run_on(self._answers, self._going_on, step)


def _placed(flow: Flow, request: Request) -> tuple[Site | None, Plan]:
    """Return what runs, placed on this machine, once or as several copies, or as a server has placed it."""
    from flowinfer.planning.placement import ready
    from flowinfer.runs.replicas.sharing import sited
    from flowinfer.zoos.toy import provide

    provide(flow.models.values())
    if request.server is not None:
        from flowinfer.runs import remote

        return None, remote.placed(request.server, compile(flow))
    with STARTUP.waiting_for("devices"):
        return sited(
            request.replicas,
            request.cluster,
            flow.models.values(),
            partial(ready, flow),
            lambda plan: len(plan.waves) == 1,
        )


def _answered(
    plan: Plan,
    questions: Sequence[Question],
    request: Request,
    run: Run | None,
    observer: Observer | None,
    models: ModelPool | None,
    site: Site | None,
) -> Iterator[Answered]:
    """Yield each question's answer as it comes, judged."""
    from flowinfer.engine.execute import execute
    from flowinfer.runs.run_on import goes_on
    from flowinfer.tasks.base import question_text

    batch = rows_at_once(request.batch, len(questions))
    if site is not None:
        yield from _replicated(plan, questions, replace(request, batch=batch), run, observer, site)
        return
    if request.server is not None:
        from flowinfer.runs import remote

        at_once = None if batch == "auto" else batch
        traces = remote.traces(request.server, plan, questions, question_text, at_once=at_once)
    else:
        traces = execute(
            plan,
            questions,
            batch=batch,
            engine=request.engine,
            observer=observer,
            cache=DiskStepCache(default_folder(), _name(run)) if request.use_cache else None,
            step_key=step_key,
            member_order=member_order,
            vote=majority,
            question_text=question_text,
            models=models,
        )
    asked = {question.id: question for question in questions}
    for trace in traces:
        record = judged(asked[trace.question_id], trace)
        yield Answered(Task(record.question), 0, record, goes_on=goes_on(record))


def _replicated(
    plan: Plan, questions: Sequence[Question], request: Request, run: Run | None, observer: Observer | None, site: Site
) -> Iterator[Answered]:
    """Yield each question's answer as it comes from a replica, which has judged it."""
    from flowinfer.engine.base import Observer
    from flowinfer.engine.execute import window
    from flowinfer.runs.replicas.pool import ReplicaPool, Setting

    folder = default_folder() if request.use_cache else None
    setting = Setting({(0, 0): _name(run)}, request.batch, request.engine, folder)
    pause = run.sync if run else lambda: None
    pool = ReplicaPool(site, [plan], setting, observer or Observer(), on_pause=pause)
    events = pool.run(map(Task, questions), most=window(plan, request.batch))
    yield from (event for event in events if isinstance(event, Answered))


def _name(run: Run | None) -> str:
    return run.path.name if run else ""


def rows_at_once(batch: int | Literal["auto"], most: int) -> int | Literal["auto"]:
    """Return a batch for so many rows at most: memory is taken for every row that there could be."""
    return batch if batch == "auto" else max(1, min(batch, most))


def _kept(answer: Answered, run: Run | None, on_record: Callable[[Record], None] | None) -> Record:
    """Tell of an answer and write it; one that cannot be told of, or not be written, has failed and is written so."""
    try:
        if on_record:
            on_record(answer.record)
        if run:
            run.write(answer.line or record_line(answer.record))
        return answer.record
    except RunError:  # the disk is the run's
        raise
    except BaseException as error:  # what is not the question's is raised
        record = failed(answer.record, error)
        if run:
            run.write(record_line(record))
        return record


@contextmanager
def _resumable(run: Run | None) -> Iterator[None]:
    """Let what ends a run in the middle say how to go on."""
    try:
        yield
    except RunError as stopped:
        name = shell.options(run.path.parent, "runs", "--resume", run.path.name) if run else ""
        again = f"go on with: {shell.command('exec', options=name)}" if run else "run again"
        stopped.help = stopped.help or f"mend it, and {again}"
        raise


def rescore(path: Path) -> list[tuple[Record, Score | None]]:
    """Judge a run's answers again, without a model; return each record with its new verdict."""
    return [(record, score(record.question, record.trace)) for record in read_records(path)]


def write_rescored(path: Path, pairs: Sequence[tuple[Record, Score | None]], results: Results) -> None:
    """Write new verdicts over a run's old ones, whole or not at all, and its results if it is complete."""
    run = Run(path)
    try:
        if any(record.score != verdict for record, verdict in pairs):
            run.rewrite([record.model_copy(update={"score": verdict}) for record, verdict in pairs])
        if len(pairs) >= int(info(path).said("n")):
            run.finish(results.model_dump(mode="json"))
    finally:
        run.close()


def run_settings(flow: Flow, plan: Plan, dataset: Dataset, request: Request) -> dict[str, Any]:
    """Return what run.json says of a run."""
    return {
        "flow": flow.name,
        "plan_fingerprint": fingerprint(plan),
        "wiring": {"flow": written(flow.root), "identity": identity(flow.root, flow.prompts)},
        "dataset": dataset.name,
        "dataset_label": dataset.label,
        "data_source": dataset.source,
        "data_fingerprint": dataset.fingerprint,
        "question_ids": [question.id for question in dataset.questions],
        "n": len(dataset.questions),
        "data_note": dataset.note,
        "zoo": flow.zoo,
        "prompts": flow.prompts,
        "params": dict(flow.params),
        "batch": str(request.batch),
        "engine": request.engine,
        "use_cache": request.use_cache,
        **({"replicas": request.replicas} if request.replicas != 1 else {}),
        **({"cluster": request.cluster} if request.cluster else {}),
        **({"server": request.server.url} if request.server else {}),
        **(request.settings or {}),
    }


def _open(flow: Flow, plan: Plan, dataset: Dataset, request: Request) -> Run | None:
    settings = run_settings(flow, plan, dataset, request)
    if request.resume is not None:
        return Run.reopen(find_run(request.resume, request.out or Path("runs")), plan, settings)
    if request.out is None:
        return None
    return Run.create(request.out, flow, plan, settings, datetime.now(UTC))
