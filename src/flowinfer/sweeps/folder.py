"""Sweep folders: what was asked for, one ordinary run folder per path and data set, and what it came to.

    sweeps/<utc>-<hash8>/
        sweep.json      settings, paths, data sets, host
        index.jsonl     one line per path and data set that ended: appended and fsynced; the last line of a pair counts
        runs/           run folders as `flowinfer exec` makes them
        latency.jsonl   one line per question that was timed alone
        sessions.jsonl  seconds at work, by session
        results.json    written when the sweep is complete

A kill at any moment leaves a folder to go on with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowinfer.errors import DataError, UsageError
from flowinfer.results import Record
from flowinfer.runs.jsonlog import JsonLog, lock, read_rows, writing
from flowinfer.runs.store import host, list_runs, named_folder, new_folder, read_json, write_json
from flowinfer.sweeps.request import SweepRequest
from flowinfer.sweeps.wirings import Wiring
from flowinfer.tasks.base import Dataset

FORMAT = 1
_CURE = "remove it; --resume does its work again"


@dataclass(frozen=True)
class Entry:
    """One line of the index."""

    path: str
    dataset: str
    run: str
    """Folder of the run, relative to the sweep's."""
    status: str
    """done or failed."""
    error: str | None = None


class SweepFolder:
    """An open sweep folder. Use `create` or `reopen`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = lock(path, "sweep")
        self._index = JsonLog(path / "index.jsonl")
        self._latency = JsonLog(path / "latency.jsonl")
        self._sessions = JsonLog(path / "sessions.jsonl")

    @classmethod
    def create(
        cls, root: Path, request: SweepRequest, wirings: Sequence[Wiring], datasets: Sequence[Dataset], now: datetime
    ) -> SweepFolder:
        """Make a new folder under `root` and write down what will be done.

        Raises:
            UsageError: it cannot be made.
        """
        data = _describe(request, wirings, datasets)
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]
        try:
            path = new_folder(root, f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{digest}")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot make a sweep folder in '{root}': {reason}", help="--out FOLDER") from error
        with writing(path, "sweep"):
            (path / "runs").mkdir()
            write_json(path / "sweep.json", {"version": FORMAT, "started": now.isoformat(), **data, **host()})
            return cls(path)

    @property
    def runs(self) -> Path:
        """Return the folder of run folders."""
        return self.path / "runs"

    def check_same(self, wirings: Sequence[Wiring], datasets: Sequence[Dataset]) -> None:
        """Refuse to go on with other paths or questions than the folder's.

        Raises:
            UsageError: says what differs.
        """
        said = describe_sweep(self.path)
        now = _plain_parts(wirings, datasets)
        for key, what in (("paths", "the paths"), ("datasets", "the questions")):
            if said.get(key) != now[key]:
                raise UsageError(
                    f"cannot resume '{self.path.name}': {what} differ from the sweep's",
                    help="start a new sweep (leave out --resume), or put zoo, flows and data back",
                )

    def entries(self) -> dict[tuple[str, str], Entry]:
        """Return the index: (path, data set) -> how it ended last."""
        return read_index(self.path)

    def run_names(self) -> dict[tuple[str, str], str]:
        """Return the run folders that are there: (path, data set) -> name; remove those that a kill left half made."""
        for path in self.runs.iterdir() if self.runs.is_dir() else ():
            if path.is_dir() and not (path / "run.json").is_file():
                shutil.rmtree(path)
        found = {}
        for run in list_runs(self.runs):
            found[(str(run.data.get("sweep_path")), str(run.data.get("dataset")))] = run.name
        return found

    def ended(self, entry: Entry) -> None:
        """Write down that a path has ended on a data set."""
        with writing(self.path, "sweep"):
            self._index.append(vars(entry))

    def timed(self, path: str, dataset: str, record: Record) -> None:
        """Write down a question that was timed alone."""
        row = {
            "path": path,
            "dataset": dataset,
            "question_id": record.question.id,
            "seconds": record.trace.seconds,
            "record": record.model_dump(mode="json"),
        }
        with writing(self.path, "sweep"):
            self._latency.append(row)

    def worked(self, session: str, seconds: float) -> None:
        """Write down how long a session has been at work."""
        with writing(self.path, "sweep"):
            self._sessions.append({"session": session, "seconds": seconds})

    def seconds(self) -> float:
        """Return the seconds at work of all sessions."""
        last = {
            row["session"]: float(row["seconds"])
            for row in read_rows(self.path / "sessions.jsonl", ("session", "seconds"), _CURE)
        }
        return sum(last.values())

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the results of a complete sweep."""
        with writing(self.path, "sweep"):
            write_json(self.path / "results.json", results)

    def close(self) -> None:
        """Close the logs and release the folder."""
        for log in (self._index, self._latency, self._sessions):
            log.close()
        self._lock.close()


def read_index(path: Path) -> dict[tuple[str, str], Entry]:
    """Return a sweep folder's index.

    Raises:
        DataError: a line other than a torn last one is damaged.
    """
    found = {}
    for row in read_rows(path / "index.jsonl", cure=_CURE):
        try:
            entry = Entry(**row)
        except TypeError as error:
            raise DataError(
                f"{path / 'index.jsonl'}: damaged", help="remove the line; --resume runs it again"
            ) from error
        found[(entry.path, entry.dataset)] = entry
    return found


def read_latency(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return the timed questions of a sweep folder: (path, data set) -> question id -> seconds."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_rows(path / "latency.jsonl", ("path", "dataset", "question_id", "seconds"), _CURE):
        found.setdefault((row["path"], row["dataset"]), {})[row["question_id"]] = float(row["seconds"])
    return found


def describe_sweep(path: Path) -> Mapping[str, Any]:
    """Return what sweep.json says.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    data = read_json(path / "sweep.json")
    if data.get("version") != FORMAT:
        raise DataError(
            f"{path / 'sweep.json'}: written by another version of flowinfer",
            help="read it with that version, or sweep again",
        )
    return data


def request_of(path: Path) -> SweepRequest:
    """Return the request that a sweep folder was made for."""
    try:
        return SweepRequest.model_validate(describe_sweep(path).get("settings", {}))
    except ValidationError as error:
        raise DataError(f"{path / 'sweep.json'}: damaged settings", help="start a new sweep") from error


def find_sweep(named: str, root: Path) -> Path:
    """Return the sweep folder that a path, a name, a unique beginning of one, or `latest` means.

    Raises:
        UsageError: none or several.
    """
    if (Path(named) / "sweep.json").is_file():
        return Path(named)
    known = sorted((one.parent for one in root.glob("*/sweep.json")), reverse=True)
    if named == "latest":
        if not known:
            raise UsageError(f"no sweeps in '{root}'", help="--out FOLDER names another folder")
        return known[0]
    missing = f"no sweep '{named}' in '{root}'"
    return named_folder(named, known, kinds="sweeps", missing=missing, cure="--out FOLDER names their folder")


def _describe(request: SweepRequest, wirings: Sequence[Wiring], datasets: Sequence[Dataset]) -> dict[str, Any]:
    first = wirings[0].checked
    return {
        "settings": request.model_dump(mode="json"),
        "zoo": first.zoo,
        "zoo_why": first.zoo_why,
        **_plain_parts(wirings, datasets),
    }


def _plain_parts(wirings: Sequence[Wiring], datasets: Sequence[Dataset]) -> dict[str, Any]:
    return {
        "paths": [
            {
                "key": wiring.key,
                "strategy": wiring.strategy,
                "models": list(wiring.models),
                "flow": wiring.flow,
                "name": wiring.name,
                "settings": dict(wiring.settings),
            }
            for wiring in wirings
        ],
        "datasets": [
            {
                "name": dataset.name,
                "label": dataset.label,
                "fingerprint": dataset.fingerprint,
                "n": len(dataset.questions),
            }
            for dataset in datasets
        ],
    }
