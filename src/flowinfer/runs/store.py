"""Run folders: what was asked for, every answer as it came, and the results.

    runs/<utc>-<flow>-<hash8>/
        pipeline.flow   the flow's text, with *** for passwords and keys in it
        plan.json       steps, models, placements
        run.json        settings, seeds, versions, host, fingerprints
        samples.jsonl   one record per question: appended, flushed and fsynced
        results.json    written when the run is complete

A kill at any moment loses at most the questions in flight: a torn last line is cut when the log is opened.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowinfer.errors import DataError, UnreadableFile, UsageError
from flowinfer.files import read_text, write_whole
from flowinfer.output.secrets import redacted_data, shown
from flowinfer.planning.plain import fingerprint, to_json
from flowinfer.planning.plan import Plan
from flowinfer.results import Record
from flowinfer.runs.jsonlog import JsonLog, encoded, line_of, lock, object_of, read_each, writing
from flowinfer.spec import Flow

FORMAT = 1
_REPAIR = {
    "results.json": "remove it: `flowinfer score` sums the run up again",
    "run.json": "`flowinfer runs` lists runs",
    "plan.json": "the answers in samples.jsonl are whole; run the flow again for its plan",
}


@dataclass(frozen=True)
class RunInfo:
    """What run.json says."""

    path: Path
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.path.name

    def said(self, key: str) -> Any:  # whatever JSON holds
        """Return one of its entries.

        Raises:
            DataError: it is not there.
        """
        if key not in self.data:
            raise DataError(f"{self.path / 'run.json'}: damaged, it does not say '{key}'")
        return self.data[key]


class Run:
    """An open run folder that answers are written to. Use `create` or `reopen`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = lock(path)
        self._log = JsonLog(path / "samples.jsonl")

    @classmethod
    def create(cls, root: Path, flow: Flow, plan: Plan, settings: Mapping[str, Any], now: datetime) -> Run:
        """Make a new run folder under `root` and write down what it will do."""
        digest = fingerprint(plan)[:8]
        stem = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{_slug(flow.name)}-{digest}"
        path = new_folder(root, stem, "run")
        with writing(path):
            (path / "pipeline.flow").write_bytes(encoded(shown(flow.source)))
            write_json(path / "plan.json", to_json(plan))
            write_json(path / "run.json", {"version": FORMAT, "started": now.isoformat(), **settings, **host()})
            return cls(path)

    @classmethod
    def reopen(cls, path: Path, plan: Plan, settings: Mapping[str, Any]) -> Run:
        """Open a run to go on with it.

        Raises:
            UsageError: its plan or data are not these; says which.
        """
        before = info(path).data
        now = {"plan_fingerprint": fingerprint(plan), **settings}
        named = {"plan_fingerprint": "the plan (flow, models or decoding)", "data_fingerprint": "the questions"}
        for key, what in named.items():
            if before.get(key) != now.get(key):
                changed = _changed_routes(path, plan) if key == "plan_fingerprint" else None
                what = f"the routes '{changed}'" if changed else what
                raise UsageError(
                    f"cannot resume '{path.name}': {what} differ from the run's",
                    help="start a new run (leave out --resume), or give the options that it was started with",
                )
        return cls(path)

    def records(self) -> list[Record]:
        """Return what has been answered; a torn last line is passed over."""
        return list(read_records(self.path))

    def append(self, *records: Record) -> None:
        """Write answers so that a kill cannot lose them.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        self.write(*map(record_line, records))
        self.sync()

    def write(self, *lines: bytes) -> None:
        """Write answers, as `record_line` has them: a kill cannot lose them, nor after `sync` a machine that stops.

        Raises: as `append`.
        """
        with writing(self.path):
            self._log.write(*lines)

    def sync(self) -> None:
        """Let the disk have all answers.

        Raises: as `append`.
        """
        with writing(self.path):
            self._log.sync()

    def rewrite(self, records: Sequence[Record]) -> None:
        """Put these records in the place of the log's, whole or not at all."""
        with writing(self.path):
            write_whole(self.path / "samples.jsonl", b"".join(map(record_line, records)))

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the results of a complete run."""
        with writing(self.path):
            write_json(self.path / "results.json", results)

    def close(self) -> None:
        """Close the log and release the folder."""
        self._log.close()
        self._lock.close()


def _changed_routes(path: Path, plan: Plan) -> str | None:
    """Return the name of the first table of routes that is not the one that a run went by."""
    said = read_json(path / "plan.json").get("selections") or ()
    before = {one["id"]: one["routes"]["digest"] for one in said if one.get("routes")}
    tables = {one.id: one.routes for one in plan.selections if one.routes}
    return next((table.name for name, table in tables.items() if before.get(name, table.digest) != table.digest), None)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a run folder, one per question: a failed question that ran again counts with its last.

    Raises:
        DataError: a line other than a torn last one is damaged.
    """
    cure = "remove the line; with --resume its question runs again"
    found: dict[str, Record] = {}
    for record in read_each(path / "samples.jsonl", read_record, cure, "record"):
        found.pop(record.question.id, None)
        found[record.question.id] = record
    yield from found.values()


def ordered_records(path: Path) -> list[Record]:
    """Return the records of a run folder in the order of its data set.

    Raises:
        DataError: a line other than a torn last one is damaged.
    """
    places = {name: place for place, name in enumerate(info(path).data.get("question_ids") or ())}
    return sorted(read_records(path), key=lambda record: places.get(record.question.id, len(places)))


class _Line(Record):
    """A record with lm-eval's field names beside its own."""

    doc_id: Any = None
    target: Any = None
    resps: Any = None
    filtered_resps: Any = None
    acc: Any = None


def record_line(record: Record) -> bytes:
    """Return a record as a run's folder keeps it, without secrets."""
    score = record.score
    return line_of(
        {
            "doc_id": record.question.id,
            "target": record.question.reference,
            "resps": [[record.trace.answer]],
            "filtered_resps": [score.extracted if score else None],
            "acc": float(score.correct) if score else None,
            **record.model_dump(mode="json"),
        }
    )


def read_record(line: bytes) -> Record:
    """Return the record that `record_line` was given.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = _Line.model_validate_json(line)
    except ValidationError:  # half of a surrogate pair, which is kept, is no JSON for pydantic
        found = _Line.model_validate(object_of(line))
    return Record(version=found.version, question=found.question, trace=found.trace, score=found.score)


def info(path: Path) -> RunInfo:
    """Read a run folder's run.json.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    return RunInfo(path, read_described(path / "run.json"))


def read_described(path: Path) -> Mapping[str, Any]:
    """Read the file that says what a folder is of.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    data = read_json(path)
    if data.get("version") != FORMAT:
        cure = "read it with that version, or run again"
        raise DataError(f"{path}: written by another version of flowinfer", help=cure)
    return data


def read_json(path: Path) -> Mapping[str, Any]:
    """Read one of a run folder's JSON files.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        data = json.loads(read_text(path, errors="surrogatepass"))
    except (UnreadableFile, ValueError, RecursionError) as error:
        raise DataError(f"{path}: missing or damaged", help=_REPAIR.get(path.name)) from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: not a JSON object", help=_REPAIR.get(path.name))
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all, without secrets."""
    write_whole(path, encoded(json.dumps(redacted_data(data), ensure_ascii=False, indent=1) + "\n"))


def new_folder(root: Path, stem: str, kind: str) -> Path:
    """Make a folder that was not there before, numbered where its name is taken.

    Raises:
        UsageError: it cannot be made.
    """
    path, number = root / stem, 1
    try:
        while path.exists():
            number += 1
            path = root / f"{stem}-{number}"
        path.mkdir(parents=True)
    except FileExistsError:  # another process was faster
        return new_folder(root, stem, kind)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot make a {kind} folder in '{root}': {reason}", help="--out FOLDER") from error
    return path


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[:40] or "flow"


@cache
def host() -> Mapping[str, Any]:
    """Return what a run's folder says of the machine and of the libraries' versions."""
    versions: dict[str, str | None] = dict.fromkeys(("flowinfer", "torch", "transformers", "tokenizers"))
    for package in versions:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "versions": versions | {"python": platform.python_version()},
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
    }
