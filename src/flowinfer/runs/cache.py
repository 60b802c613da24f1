"""The cache of steps: results by all that decides their text, shared by all runs of a user.

A cached result keeps the seconds of the run that made it and says so; a resumed run gets its own steps back as its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowinfer.files import write_whole
from flowinfer.machine import hub_folder
from flowinfer.output.secrets import redacted_data
from flowinfer.planning.identity import Canonical, as_text, canonical
from flowinfer.planning.plan import Member, Plan, Step
from flowinfer.results import StepResult
from flowinfer.runs.jsonlog import decoded, encoded
from flowinfer.stores.gguf import SUFFIX, part_names
from flowinfer.stores.refs import is_stored, locate
from flowinfer.stores.stored import NotHere

_FORMAT = 2
"""Version of the engine's meaning of a step; raise it when texts would differ."""
_SAMPLING = 3
"""Version of how slots are drawn; raise it when only sampled texts would differ."""


class DiskStepCache:
    """A `StepCache` of small files under a folder.

    Args:
        folder: where they are.
        run: name of the run that reads and writes now.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run
        self.num_hits = 0

    def get(self, key: str) -> StepResult | None:
        """Return a stored result, marked with the run that made it unless it is this one."""
        path = self._path(key)
        try:
            stored = json.loads(decoded(path.read_bytes()))
            result = StepResult.model_validate(stored["result"])
            made_by = str(stored["run"])
            if stored["sum"] != _sum(stored["result"]):
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError):
            return None  # not there, or damaged in any way: the step runs again
        self.num_hits += 1
        return result.model_copy(update={"cached_from": None if made_by == self._run else made_by})

    def put(self, key: str, result: StepResult) -> None:
        """Store a result whole or not at all; a full disk costs the cache, not the run."""
        path = self._path(key)
        plain = redacted_data(result.model_dump(mode="json"))
        body = {"run": self._run, "result": plain, "sum": _sum(plain)}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, encoded(json.dumps(body, ensure_ascii=False)))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def _sum(result: Mapping[str, Any]) -> str:
    """Return a checksum of a result, so that no damaged text is taken for a step's."""
    return hashlib.sha256(encoded(as_text(result))).hexdigest()[:16]


def default_folder() -> Path:
    """Return $FLOWINFER_CACHE/steps, else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("FLOWINFER_CACHE") or user_cache_dir("flowinfer")) / "steps"


def step_key(plan: Plan, step: Step, prompts: Mapping[str, str], question_id: str) -> str:
    """Return sha256 of all that decides a step's text: models, decoding, fuser, weights, rendered prompts.

    Devices, names, timeouts and the order of a group's branches are not in it. Sampling draws from a stream of its own
    per question and step, so those count where the step samples.
    """
    decisive: dict[str, Any] = {
        "format": _FORMAT,
        "source": _canonical(plan, step, prompts).description,
        "decoding": step.decoding.decisive(),
    }
    if step.decoding.temperature > 0:
        decisive["stream"] = [_SAMPLING, question_id, step.stream]
    return hashlib.sha256(encoded(as_text(decisive))).hexdigest()


def member_order(plan: Plan, step: Step, prompts: Mapping[str, str]) -> tuple[str, ...]:
    """Return a step's nodes in the order in which its cached results hold their heads."""
    return _canonical(plan, step, prompts).nodes


def _canonical(plan: Plan, step: Step, prompts: Mapping[str, str]) -> Canonical:
    return canonical(step.source, lambda member: _model(plan, member) | {"prompt": prompts[member.node]})


def _model(plan: Plan, member: Member) -> dict[str, Any]:
    spec = plan.models[member.model]
    placed = plan.placements.get(member.model)
    return spec.decisive() | {"ref": _content(spec.ref, spec.revision), "dtype": placed.dtype if placed else spec.dtype}


@cache
def _content(ref: str, revision: str | None) -> str:
    """Return what a reference's weights are: a hub id with its commit, or a fingerprint of a folder's files."""
    try:
        folder = locate(ref, revision).path if is_stored(ref) else Path(ref)
    except NotHere:  # it is downloaded when it is loaded
        return f"{ref}@{revision}"
    if folder.is_file():  # of a backend whose models are files
        return hashlib.sha256(
            b"".join(_sampled(folder.with_name(name)) for name in part_names(folder.name))
        ).hexdigest()
    if not folder.is_dir():
        snapshot = hub_folder(ref, revision=revision)
        return f"{ref}@{snapshot.name if snapshot else revision}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model", SUFFIX):
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            digest.update(_sampled(path))
    return digest.hexdigest()


def _sampled(path: Path) -> bytes:
    """Return a small file whole, of a large one its beginning, end and change time."""
    size = path.stat().st_size
    if size <= 32 << 20:
        return path.read_bytes()
    with path.open("rb") as file:
        begin = file.read(1 << 20)
        file.seek(size - (1 << 20))
        return begin + file.read() + str(path.stat().st_mtime_ns).encode()
