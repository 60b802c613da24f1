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
from flowinfer.runs.finding import list_runs, one_of
from flowinfer.runs.jsonlog import JsonLog, lock, object_of, read_each, read_rows, writing
from flowinfer.runs.store import FORMAT, host, new_folder, read_described, write_json
from flowinfer.sweeps.request import SweepRequest
from flowinfer.sweeps.wirings import Wiring
from flowinfer.tasks.base import Dataset

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
        flow = wirings[0].checked
        data = {"settings": request.model_dump(mode="json"), "zoo": flow.zoo, "zoo_why": flow.zoo_why}
        data |= _plain_parts(wirings, datasets)
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]
        path = new_folder(root, f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{digest}", "sweep")
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
        said = read_described(self.path / "sweep.json")
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
        return {
            (str(run.data.get("sweep_path")), str(run.data.get("dataset"))): run.name for run in list_runs(self.runs)
        }

    def ended(self, entry: Entry) -> None:
        """Write down that a path has ended on a data set."""
        self._append(self._index, vars(entry))

    def timed(self, path: str, dataset: str, record: Record) -> None:
        """Write down a question that was timed alone."""
        key = {"path": path, "dataset": dataset, "question_id": record.question.id}
        measured = {"seconds": record.trace.seconds, "record": record.model_dump(mode="json")}
        self._append(self._latency, key | measured)

    def worked(self, session: str, seconds: float) -> None:
        """Write down how long a session has been at work."""
        self._append(self._sessions, {"session": session, "seconds": seconds})

    def _append(self, log: JsonLog, row: Mapping[str, Any]) -> None:
        with writing(self.path, "sweep"):
            log.append(row)

    def seconds(self) -> float:
        """Return the seconds at work of all sessions."""
        rows = read_rows(self.path / "sessions.jsonl", ("session", "seconds"), _CURE)
        return sum({row["session"]: float(row["seconds"]) for row in rows}.values())

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
    entries = read_each(path / "index.jsonl", lambda line: Entry(**object_of(line)), _CURE)
    return {(entry.path, entry.dataset): entry for entry in entries}


def read_latency(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return the timed questions of a sweep folder: (path, data set) -> question id -> seconds."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_rows(path / "latency.jsonl", ("path", "dataset", "question_id", "seconds"), _CURE):
        found.setdefault((row["path"], row["dataset"]), {})[row["question_id"]] = float(row["seconds"])
    return found


def request_of(path: Path) -> SweepRequest:
    """Return the request that a sweep folder was made for."""
    said = read_described(path / "sweep.json")
    try:
        return SweepRequest.model_validate(said.get("settings", {}))
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
    return one_of(named, known, root, "sweep", "--out FOLDER names their folder")


def _plain_parts(wirings: Sequence[Wiring], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return paths and data sets as JSON has them, to be written and compared."""
    parts = {
        "paths": [{name: value for name, value in vars(wiring).items() if name != "checked"} for wiring in wirings],
        "datasets": [
            {"name": one.name, "label": one.label, "fingerprint": one.fingerprint, "n": len(one.questions)}
            for one in datasets
        ],
    }
    return dict(json.loads(json.dumps(parts)))
