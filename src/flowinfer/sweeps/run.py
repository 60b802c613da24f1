"""Run a sweep into its folder: new or resumed, shared or path by path, then timed, then summed up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from flowinfer.engine.decoders import Decoders
from flowinfer.engine.models import ModelPool
from flowinfer.errors import DeviceLost, Diagnostic
from flowinfer.machine import this_machine
from flowinfer.planning.merge import SharedStep
from flowinfer.planning.plan import Plan, compile
from flowinfer.results import Record
from flowinfer.runs.answering import Owners
from flowinfer.runs.cache import DiskStepCache, default_folder
from flowinfer.runs.experiment import Request, evaluate, rows_at_once, run_settings
from flowinfer.runs.replicas.pool import ReplicaPool, Setting
from flowinfer.runs.replicas.sharing import sited
from flowinfer.runs.replicas.site import Site
from flowinfer.runs.store import Run, read_json, read_records, record_line
from flowinfer.runs.summary import counting, summarize
from flowinfer.runs.summing import over
from flowinfer.sweeps.core import Ended, Job, Sharing
from flowinfer.sweeps.folder import Entry, SweepFolder, find_sweep, read_latency
from flowinfer.sweeps.latency import Stopwatch, turns
from flowinfer.sweeps.outcome import Sweep, language_notes, read_sweep
from flowinfer.sweeps.placing import Placed, place_all
from flowinfer.sweeps.prepare import Prepared, prepare
from flowinfer.sweeps.progress import SweepProgress
from flowinfer.sweeps.request import SweepRequest
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
    site, placed = _place(prepared)
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
        return _Run(prepared, site, placed, folder, progress).run()
    finally:
        folder.close()


def _place(prepared: Prepared) -> tuple[Site | None, Placed]:
    """Return where replicas run, if there are several, and the flows as they are placed on one's part of the machine.

    Raises:
        UsageError, MemoryShort: so many replicas have no room.
    """
    flows = [wiring.checked for wiring in prepared.wirings]
    provide(spec for flow in flows for spec in flow.models.values())
    whole = place_all(flows, this_machine())
    return sited(
        prepared.request.replicas,
        prepared.request.cluster,
        [spec for flow in flows for spec in flow.models.values()],
        lambda machine: place_all(flows, machine),
        lambda placed: placed.fits and placed.num_unplaced == whole.num_unplaced,
    )


class _Run:
    """One session of a sweep."""

    def __init__(
        self, prepared: Prepared, site: Site | None, placed: Placed, folder: SweepFolder, progress: SweepProgress
    ) -> None:
        self._site, self._placed = site, placed
        self._request, self._folder, self._progress = prepared.request, folder, progress
        self._wirings, self._datasets = prepared.wirings, prepared.datasets
        self._session = datetime.now(UTC).isoformat()
        self._started = self._written = time.monotonic()
        self._pool = ModelPool()
        self._names = folder.run_names()
        self._done = {key for key, entry in folder.entries().items() if entry.status == "done"}

    def run(self) -> Sweep:
        flow, asked = self._wirings[0].checked, len(self._datasets)
        self._progress.say(f"{len(self._wirings)} paths x {asked} data sets, zoo {flow.zoo} ({flow.zoo_why})")
        if flow.zoo_note:
            self._progress.notice(flow.zoo_note)
        read = (f"{dataset.label}: {dataset.note}" for dataset in self._datasets if dataset.note)
        for note in (*read, *language_notes(self._wirings, self._datasets)):
            self._progress.notice(note)
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

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Yield every path on every data set, by their indices."""
        return product(range(len(self._wirings)), range(len(self._datasets)))

    def _key(self, index: int, number: int) -> tuple[str, str]:
        return self._wirings[index].key, self._datasets[number].name

    def _make_runs(self) -> None:
        """Make the run folders that are not there; refuse those of other plans."""
        for index, number in self._pairs():
            key, wiring = self._key(index, number), self._wirings[index]
            if key not in self._names:
                settings = self._settings(index, number)
                run = Run.create(self._folder.runs, wiring.checked, self._plan(index), settings, datetime.now(UTC))
                self._names[key] = run.path.name
                run.close()
            else:
                self._reopen(index, number).close()

    def _reopen(self, index: int, number: int) -> Run:
        return Run.reopen(self._run_path(index, number), self._plan(index), self._settings(index, number))

    def _plan(self, index: int) -> Plan:
        return self._placed.plans[index] or compile(self._wirings[index].checked)

    def _settings(self, index: int, number: int) -> dict[str, Any]:
        wiring, request = self._wirings[index], self._request
        more = {name: getattr(request, name) for name in ("sample", "seed", "limit", "few_shot")}
        more |= {"zoo_why": wiring.checked.zoo_why, "sweep": self._folder.path.name, "sweep_path": wiring.key}
        batch = 1 if request.independent else request.batch
        replicas = self._site.num_replicas if self._site else 1
        asked = Request(
            batch=batch,
            replicas=replicas,
            cluster=request.cluster,
            use_cache=request.use_cache and not request.independent,
            settings=more,
        )
        return run_settings(wiring.checked, self._plan(index), self._datasets[number], asked)

    def _run_path(self, index: int, number: int) -> Path:
        return self._folder.runs / self._names[self._key(index, number)]

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
            elsewhere=partial(self._elsewhere, self._site, where) if self._site else None,
        )
        jobs = self._jobs()
        weight = sum(shared.num_calls for shared in sharing.wanted(jobs))
        self._progress.begin("answers", weight, len(self._wirings) * len(self._datasets))
        self._refuse_unplaced()
        whole = [job for job in jobs if not job.left and self._key(job.plan, job.dataset) in self._done]
        for job in whole:
            self._progress.run_ended(self._wirings[job.plan].name, is_failed=False)
        for ended in sharing.run(jobs, self._stepped):
            if ended.job not in whole:
                self._keep(ended)
        if self._request.latency:
            self._time(sharing)

    def _elsewhere(self, site: Site, cache: Path, plans: Sequence[Plan], owners: Owners) -> ReplicaPool:
        setting = Setting(owners, self._request.batch, cache=cache, breaks_steps=True)
        return ReplicaPool(site, plans, setting, self._progress)

    def _jobs(self) -> list[Job]:
        jobs = []
        for index, number in self._pairs():
            if self._placed.plans[index] is not None:
                path = self._run_path(index, number)
                done = {record.question.id for record in _answered(path)}
                left = frozenset(question.id for question in self._datasets[number].questions) - done
                name = f"{self._folder.path.name}/{path.name}"  # of its kind in the whole cache
                jobs.append(Job(index, number, name, left))
        return jobs

    def _refuse_unplaced(self) -> None:
        for index, number in self._pairs():
            if (problem := self._placed.problems[index]) is not None:
                self._ended(index, number, problem)

    def _keep(self, ended: Ended) -> None:
        """Write a job's records and results."""
        index, number = ended.job.plan, ended.job.dataset
        if ended.error is None:
            with closing(self._reopen(index, number)) as run:
                records = [*_answered(run.path), *(answer.record for answer in ended.answers)]
                run.write(*(answer.line or record_line(answer.record) for answer in ended.answers))
                run.sync()
                results = summarize(
                    self._wirings[index].checked,
                    self._plan(index),
                    self._datasets[number].label,
                    over(records, counting(self._plan(index))),
                    data_note=self._datasets[number].note,
                    wall_seconds=0.0,  # many runs share the clock
                    batch=str(self._request.batch),
                    run=str(run.path),
                )
                run.finish(results.model_dump(mode="json"))
        self._ended(index, number, ended.error)

    def _ended(self, index: int, number: int, error: str | None) -> None:
        wiring, dataset = self._wirings[index], self._datasets[number]
        run = f"runs/{self._names[self._key(index, number)]}"
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
        questions = len(self._wirings) * sum(len(dataset.questions) for dataset in self._datasets)
        self._progress.begin("alone", questions, len(self._wirings) * len(self._datasets), "questions")
        for index, number in self._pairs():
            is_done = self._key(index, number) in self._done
            if is_done and not read_json(self._run_path(index, number) / "results.json").get("failed"):
                self._progress.step(len(self._datasets[number].questions), False)
                self._progress.run_ended(self._wirings[index].name, is_failed=False)
            else:
                self._evaluate(index, number)

    def _evaluate(self, index: int, number: int) -> None:
        plan, problem, dataset = self._placed.plans[index], self._placed.problems[index], self._datasets[number]
        if plan is not None:
            self._pool.keep_only(plan, plan.models)
            path = str(self._run_path(index, number))
            request = Request(out=self._folder.runs, batch=1, resume=path, use_cache=False)
            try:
                evaluate(self._wirings[index].checked, dataset, request, observer=self._progress, models=self._pool)
            except DeviceLost:
                raise
            except Exception as error:  # whatever it is, the other paths can go on; it is told with the path
                problem = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        self._ended(index, number, problem)

    def _time(self, sharing: Sharing) -> None:
        plans = [index for index, plan in enumerate(self._placed.plans) if plan is not None]
        there = read_latency(self._folder.path)
        todo = []
        for turn in turns(plans, self._datasets, self._request.latency, by_path=bool(sharing.waves)):
            key = self._key(turn.plan, turn.dataset)
            if turn.question.id not in there.get(key, {}):
                todo.append(turn)
        self._progress.begin("timing", len(todo), 0, "questions")
        watch = Stopwatch(sharing, self._pool, self._progress)
        for turn, record in watch.run(self._placed.plans, todo):
            if record.trace.error is None:
                self._folder.timed(*self._key(turn.plan, turn.dataset), record)
            self._progress.step(1, True)
            if time.monotonic() - self._written > _WRITE_SECONDS:
                self._worked()


def _answered(path: Path) -> Sequence[Record]:
    return [record for record in read_records(path) if record.trace.error is None]
