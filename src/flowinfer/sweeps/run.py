"""Run a sweep into its folder: new or resumed, shared or path by path, then timed, then summed up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flowinfer.engine.decoders import Decoders
from flowinfer.engine.models import ModelPool
from flowinfer.errors import Diagnostic
from flowinfer.machine import this_machine
from flowinfer.planning.merge import SharedStep
from flowinfer.planning.plan import compile
from flowinfer.results import Record
from flowinfer.runs.cache import DiskStepCache, default_folder
from flowinfer.runs.experiment import Request, evaluate, rows_at_once, run_settings
from flowinfer.runs.store import Run, read_json, read_records
from flowinfer.runs.summary import summarize
from flowinfer.sweeps.core import Ended, Job, Sharing
from flowinfer.sweeps.folder import Entry, SweepFolder, find_sweep, read_latency
from flowinfer.sweeps.latency import Stopwatch, turns
from flowinfer.sweeps.outcome import Sweep, language_notes, read_sweep
from flowinfer.sweeps.placing import Placed, place_all
from flowinfer.sweeps.prepare import Prepared, prepare
from flowinfer.sweeps.progress import SweepProgress
from flowinfer.sweeps.request import SweepRequest
from flowinfer.tasks.base import Dataset
from flowinfer.zoos.toy import provide

_WRITE_SECONDS = 10.0
"""How often the time at work is written down, so that a kill loses little of it."""


def run_sweep(
    request: SweepRequest,
    *,
    out: Path,
    resume: str | None = None,
    progress: SweepProgress | None = None,
    on_folder: Callable[[SweepFolder], None] | None = None,
    on_warnings: Callable[[Sequence[Diagnostic]], None] | None = None,
) -> Sweep:
    """Run a sweep, or go on with one.

    Args:
        request: what to do; with `resume`, what its folder says is meant to be given here (see `request_of`).
        out: where sweep folders go.
        resume: path, name or beginning of a sweep, or `latest`.
        progress: hears how far it is.
        on_folder: hears the folder before anything runs.
        on_warnings: hears the flows' warnings.
    Raises:
        FlowError, DataError, UsageError: the request is wrong, or the sweep to resume is another's.
        RunError: the disk is full.
    """
    progress = progress or SweepProgress(is_quiet=True)
    path = find_sweep(resume, out) if resume is not None else None
    prepared = prepare(request)
    if path is None:
        folder = SweepFolder.create(out, request, prepared.wirings, prepared.datasets, datetime.now(UTC))
    else:
        folder = SweepFolder(path)
    if on_folder:
        on_folder(folder)
    if on_warnings:
        on_warnings(list(dict.fromkeys(one for wiring in prepared.wirings for one in wiring.checked.warnings)))
    try:
        if path is not None:
            folder.check_same(prepared.wirings, prepared.datasets)
        return _Run(prepared, folder, progress).run()
    finally:
        folder.close()


class _Run:
    """One session of a sweep."""

    def __init__(self, prepared: Prepared, folder: SweepFolder, progress: SweepProgress) -> None:
        self._request, self._folder, self._progress = prepared.request, folder, progress
        self._wirings, self._datasets = prepared.wirings, prepared.datasets
        provide(spec for wiring in self._wirings for spec in wiring.checked.models.values())
        self._placed: Placed = place_all([wiring.checked for wiring in self._wirings], this_machine())
        self._session = datetime.now(UTC).isoformat()
        self._started = self._written = time.monotonic()
        self._pool = ModelPool()
        self._names = folder.run_names()

    def run(self) -> Sweep:
        flow = self._wirings[0].checked
        self._progress.say(
            f"{len(self._wirings)} paths x {len(self._datasets)} data sets, zoo {flow.zoo} ({flow.zoo_why})"
        )
        if flow.zoo_note:
            self._progress.say(f"note: {flow.zoo_note}")
        read = (f"{dataset.label}: {dataset.note}" for dataset in self._datasets if dataset.note)
        for note in (*read, *language_notes(self._wirings, self._datasets)):
            self._progress.say(f"note: {note}")
        self._progress.say(f"sweep {self._folder.path.name}")
        try:
            self._make_runs()
            if self._request.independent:
                self._run_alone()
            else:
                self._run_shared()
        finally:
            self._worked()
            self._pool.close()
        sweep = read_sweep(self._folder.path, self._wirings, self._datasets, self._folder.seconds())
        self._folder.finish(sweep.to_json())
        shutil.rmtree(self._folder.path / "steps", ignore_errors=True)
        return sweep

    def _make_runs(self) -> None:
        """Make the run folders that are not there; refuse those of other plans."""
        for index, wiring in enumerate(self._wirings):
            plan = self._placed.plans[index] or compile(wiring.checked)
            for dataset in self._datasets:
                settings = self._settings(index, dataset)
                key = (wiring.key, dataset.name)
                if key in self._names:
                    Run.reopen(self._folder.runs / self._names[key], plan, settings).close()
                    continue
                run = Run.create(self._folder.runs, wiring.checked, plan, settings, datetime.now(UTC))
                self._names[key] = run.path.name
                run.close()

    def _settings(self, index: int, dataset: Dataset) -> dict[str, Any]:
        wiring, request = self._wirings[index], self._request
        plan = self._placed.plans[index] or compile(wiring.checked)
        more = {
            "sample": request.sample,
            "seed": request.seed,
            "limit": request.limit,
            "zoo_why": wiring.checked.zoo_why,
            "sweep": self._folder.path.name,
            "sweep_path": wiring.key,
        }
        batch = 1 if request.independent else request.batch
        asked = Request(batch=batch, use_cache=request.use_cache and not request.independent, settings=more)
        return run_settings(wiring.checked, plan, dataset, asked)

    def _run_path(self, index: int, dataset: Dataset) -> Path:
        return self._folder.runs / self._names[(self._wirings[index].key, dataset.name)]

    def _run_shared(self) -> None:
        where = default_folder() if self._request.use_cache else self._folder.path / "steps"
        most = len(self._wirings) * sum(len(dataset.questions) for dataset in self._datasets)
        decoders = Decoders(self._pool, self._progress, rows_at_once(self._request.batch, most))
        sharing = Sharing(
            self._placed.plans,
            self._datasets,
            lambda run: DiskStepCache(where, run),
            decoders,
            self._progress,
            frees_models=not self._placed.fits,
        )
        jobs = self._jobs()
        weight = sum(shared.num_calls for shared in sharing.wanted(jobs))
        self._progress.begin("answers", weight, len(self._wirings) * len(self._datasets))
        self._refuse_unplaced()
        for job in [job for job in jobs if not job.left and self._is_done(job)]:
            self._progress.run_ended(self._wirings[job.plan].name, is_failed=False)
        for ended in sharing.run(jobs, self._stepped):
            if ended.job.left or not self._is_done(ended.job):
                self._keep(ended)
        if self._request.latency:
            self._time(sharing)

    def _jobs(self) -> list[Job]:
        jobs = []
        for index, plan in enumerate(self._placed.plans):
            for number, dataset in enumerate(self._datasets):
                if plan is not None:
                    path = self._run_path(index, dataset)
                    done = {record.question.id for record in _answered(path)}
                    left = frozenset(question.id for question in dataset.questions) - done
                    name = f"{self._folder.path.name}/{path.name}"  # of its kind in the whole cache
                    jobs.append(Job(index, number, name, left))
        return jobs

    def _is_done(self, job: Job) -> bool:
        key = (self._wirings[job.plan].key, self._datasets[job.dataset].name)
        entry = self._folder.entries().get(key)
        return entry is not None and entry.status == "done"

    def _refuse_unplaced(self) -> None:
        for index, problem in enumerate(self._placed.problems):
            for dataset in self._datasets if problem is not None else ():
                self._ended(index, dataset, problem)

    def _keep(self, ended: Ended) -> None:
        """Write a job's records and results."""
        job, dataset = ended.job, self._datasets[ended.job.dataset]
        wiring, plan = self._wirings[job.plan], self._placed.plans[job.plan]
        if ended.error is None:
            assert plan is not None, "jobs have plans"
            run = Run.reopen(self._run_path(job.plan, dataset), plan, self._settings(job.plan, dataset))
            try:
                before = [record for record in run.records() if record.trace.error is None]
                run.append(*ended.records)
                results = summarize(
                    wiring.checked,
                    plan,
                    dataset.label,
                    [*before, *ended.records],
                    data_note=dataset.note,
                    wall_seconds=0.0,  # many runs share the clock
                    batch=str(self._request.batch),
                    run=str(run.path),
                )
                run.finish(results.model_dump(mode="json"))
            finally:
                run.close()
        self._ended(job.plan, dataset, ended.error)

    def _ended(self, index: int, dataset: Dataset, error: str | None) -> None:
        wiring = self._wirings[index]
        run = f"runs/{self._names[(wiring.key, dataset.name)]}"
        self._folder.ended(Entry(wiring.key, dataset.name, run, "failed" if error else "done", error))
        self._worked()
        said = f"failed: {wiring.key} {wiring.name} on {dataset.label}: {error}"
        self._progress.run_ended(said, is_failed=error is not None)

    def _stepped(self, shared: SharedStep, is_fresh: bool) -> None:
        self._progress.step(shared.num_calls, is_fresh)
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self._worked()

    def _worked(self) -> None:
        self._written = time.monotonic()
        self._folder.worked(self._session, self._written - self._started)

    def _run_alone(self) -> None:
        """Run every path by itself, question by question; nothing is shared and nothing cached."""
        entries = self._folder.entries()
        questions = len(self._wirings) * sum(len(dataset.questions) for dataset in self._datasets)
        self._progress.begin("alone", questions, len(self._wirings) * len(self._datasets), "questions")
        for index, wiring in enumerate(self._wirings):
            for dataset in self._datasets:
                entry = entries.get((wiring.key, dataset.name))
                path = self._run_path(index, dataset)
                if entry and entry.status == "done" and not read_json(path / "results.json").get("failed"):
                    self._progress.step(len(dataset.questions), False)
                    self._progress.run_ended(wiring.name, is_failed=False)
                else:
                    self._evaluate(index, dataset, path)

    def _evaluate(self, index: int, dataset: Dataset, path: Path) -> None:
        plan = self._placed.plans[index]
        problem = self._placed.problems[index]
        if plan is not None:
            self._pool.keep_only(plan, plan.models)
            request = Request(out=self._folder.runs, batch=1, resume=str(path), use_cache=False)
            try:
                evaluate(self._wirings[index].checked, dataset, request, observer=self._progress, models=self._pool)
            except Exception as error:  # whatever it is, the other paths can go on; it is told with the path
                problem = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        self._ended(index, dataset, problem)

    def _time(self, sharing: Sharing) -> None:
        plans = [index for index, plan in enumerate(self._placed.plans) if plan is not None]
        there = read_latency(self._folder.path)
        todo = []
        for turn in turns(plans, self._datasets, self._request.latency, by_path=bool(sharing.waves)):
            key = (self._wirings[turn.plan].key, self._datasets[turn.dataset].name)
            if turn.question.id not in there.get(key, {}):
                todo.append(turn)
        self._progress.begin("timing", len(todo), 0, "questions")
        watch = Stopwatch(sharing, self._pool, self._progress)
        for turn, record in watch.run(self._placed.plans, todo):
            if record.trace.error is None:
                self._folder.timed(self._wirings[turn.plan].key, self._datasets[turn.dataset].name, record)
            self._progress.step(1, True)
            if time.monotonic() - self._written > _WRITE_SECONDS:
                self._worked()


def _answered(path: Path) -> Sequence[Record]:
    return [record for record in read_records(path) if record.trace.error is None]
