"""Read run and sweep folders into findings that `gather` puts together: one per path and question set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from flowinfer.errors import DataError, UnreadableFile, UsageError
from flowinfer.files import read_text
from flowinfer.output.words import counted
from flowinfer.paper.paths import STRATEGIES, Strategy
from flowinfer.report import wirings
from flowinfer.results import Record
from flowinfer.runs.finding import named_folder
from flowinfer.runs.jsonlog import read_rows
from flowinfer.runs.store import info, read_json, read_records

_SWEEPS = Path("sweeps")
_RUNS = Path("runs")
_VERSION = 1


@dataclass(frozen=True)
class Found:
    """One run: a path on a question set."""

    strategy: Strategy | None
    models: tuple[str, ...]
    flow: str
    name: str
    whole: wirings.Whole
    plan: str
    """Fingerprint of the plan."""
    settings: Mapping[str, str]
    dataset: str
    label: str
    fingerprint: str
    num_asked: int
    run: Path
    started: str
    records: tuple[Record, ...]
    timed: tuple[Record, ...]
    """Measured at batch 1 and never from the cache."""


@dataclass
class Reading:
    """What has been read so far, and what a reader must know about it."""

    found: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def locate(named: str) -> list[Path]:
    """Return the run or sweep folder that a path, a name, a unique beginning of one, or `latest` means.

    A folder of runs and sweeps means all that are in it.

    Raises:
        UsageError: there is none, a beginning means several, or the folder holds neither runs nor sweeps.
    """
    if _is_made(Path(named)):
        return [Path(named)]
    if Path(named).exists():
        inside = [path for path in sorted(Path(named).glob("*/")) if _is_made(path)]
        if not inside:
            raise UsageError(
                f"'{named}' is no run, no sweep and no folder of them: no run.json or sweep.json is in it or below it",
                help="name folders that `flowinfer exec --dataset` or `flowinfer sweep` made",
            )
        return inside
    known = sorted((path for root in (_RUNS, _SWEEPS) for path in root.glob("*/") if _is_made(path)), key=_by_name)
    if named == "latest" and known:
        return [known[-1]]
    missing = f"no run '{named}' in '{_RUNS}', no sweep in '{_SWEEPS}'"
    return [named_folder(named, known, kinds="runs and sweeps", missing=missing, cure="name a folder by its path")]


def _is_made(folder: Path) -> bool:
    return any(os.path.isfile(folder / file) for file in ("sweep.json", "run.json"))


def _by_name(folder: Path) -> str:
    """Return what orders folders by their age: names begin with the time of their making."""
    return folder.name


def read(folder: Path, into: Reading) -> None:
    """Read a run or sweep folder."""
    if (folder / "sweep.json").is_file():
        _read_sweep(folder, into)
    else:
        _read_run(folder, into)


def _read_run(folder: Path, into: Reading) -> None:
    plan = read_json(folder / "plan.json")
    into.found.append(_found(folder, plan, wirings.of_plan(plan, source_of(folder, plan)), {}, ()))


def source_of(run: Path, plan: Mapping[str, Any]) -> str:
    """Return the text of a run's flow; where it is gone its name, which says less, but the numbers are all there."""
    try:
        return read_text(run / "pipeline.flow")
    except UnreadableFile:
        return str(plan.get("flow"))


def _read_sweep(folder: Path, into: Reading) -> None:
    sweep = read_json(folder / "sweep.json")
    if sweep.get("version") != _VERSION:
        raise DataError(
            f"{folder / 'sweep.json'}: written by another version of flowinfer",
            help="read it with that version, or sweep again",
        )
    paths = _paths(folder, sweep)
    ended = _ended(folder)
    timed = _timed(folder, into)
    for key, path in paths.items():
        for data in sweep.get("datasets", []):
            line = ended.get((key, data["name"]))
            if line is None:
                continue
            if line.get("status") != "done":
                into.notes.append(f"{path['name']} on {data['label']} failed: {line.get('error') or 'no reason given'}")
            run = folder / str(line.get("run") or "")
            if not line.get("run") or not (run / "run.json").is_file():
                if line.get("status") == "done":
                    into.notes.append(f"{path['name']} on {data['label']}: its run folder '{line.get('run')}' is gone")
                continue
            plan = read_json(run / "plan.json")
            given = wirings.Form(_strategy(path), tuple(path["models"]), path["flow"], path["name"])
            into.found.append(_found(run, plan, given, path.get("settings") or {}, timed.get((key, data["name"]), ())))
    missing = len(paths) * len(sweep.get("datasets", [])) - len(ended)
    if missing > 0:
        into.notes.append(f"sweep {folder.name}: {missing} of its pairs of path and data set were not run")


def _paths(folder: Path, sweep: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    try:
        if not all({"name", "label"} <= set(data) for data in sweep["datasets"]):
            raise KeyError("name, label")
        return {path["key"]: {"name": path["flow"], "models": [], **path} for path in sweep["paths"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / 'sweep.json'}: damaged, it does not list its paths and data sets") from error


def _strategy(path: Mapping[str, Any]) -> Strategy | None:
    named = path.get("strategy")
    return cast(Strategy, named) if named in STRATEGIES else None


def _found(
    run: Path, plan: Mapping[str, Any], form: wirings.Form, settings: Mapping[str, Any], timed: tuple[Record, ...]
) -> Found:
    said = info(run)
    records = tuple(read_records(run))
    own = {str(key): str(value) for key, value in {**(said.data.get("params") or {}), **settings}.items()}
    return Found(
        form.strategy,
        form.models,
        form.flow,
        form.name,
        wirings.whole_of(plan, source_of(run, plan)),
        str(said.said("plan_fingerprint")),
        {**wirings.settings_of(plan), "zoo": "/".join(Path(str(said.data.get("zoo"))).parts[-2:]), **own},
        str(said.said("dataset")),
        str(said.said("dataset_label")),
        str(said.said("data_fingerprint")),
        int(said.said("n")),
        run,
        str(said.data.get("started", "")),
        records,
        timed or timed_alone(said.data, records),
    )


def timed_alone(said: Mapping[str, Any], records: tuple[Record, ...]) -> tuple[Record, ...]:
    """Return the records whose own seconds count: later rows of a batch wait for earlier ones."""
    return tuple(record for record in records if _is_fresh(record)) if str(said.get("batch")) == "1" else ()


def _is_fresh(record: Record) -> bool:
    return record.trace.error is None and all(step.cached_from is None for step in record.trace.steps)


def _ended(folder: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return (path, data set) -> the last line about it."""
    return {(line["path"], line["dataset"]): line for line in read_rows(folder / "index.jsonl", ("path", "dataset"))}


def _timed(folder: Path, into: Reading) -> dict[tuple[str, str], tuple[Record, ...]]:
    records: dict[tuple[str, str], dict[str, Record]] = {}
    cached = 0
    for line in read_rows(folder / "latency.jsonl", ("path", "dataset", "record")):
        try:
            record = Record.model_validate(line["record"])
        except ValidationError as error:
            raise DataError(f"{folder / 'latency.jsonl'}: damaged record") from error
        if _is_fresh(record):
            records.setdefault((line["path"], line["dataset"]), {})[record.question.id] = record
        else:
            cached += 1
    if cached:
        into.notes.append(
            f"{counted(cached, 'timed question')} failed or came from the cache, whose seconds are not counted"
        )
    return {pair: tuple(found.values()) for pair, found in records.items()}
