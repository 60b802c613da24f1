"""What the checks at load have found of a model, kept for the next time: by its files, this code and what it runs on.

A model that has passed is not run in transformers' own way again. Its own logits on the check's few tokens are kept
with the rest, so what takes the place of its modules is still compared with them, each time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowinfer.backends.versions import installed
from flowinfer.files import write_whole
from flowinfer.fusion.selfcheck import checks_folder

_ROOMS = ("backends", "engine/caches", "engine/network")
"""Whose code decides what a check finds."""
_VERSIONS = ("flowinfer", "torch", "transformers", "triton")


@dataclass(frozen=True)
class Passed:
    """What a model's checks have found."""

    session: str = ""
    """The kind of session that serves it."""
    layers: tuple[tuple[Any, ...], ...] = ()
    """Its layers' shapes, where it can be packed."""
    logits: Tensor | None = None
    """(2, V_k): its own logits at the ends of the packed check's rows."""


def identify(model: Any, files: Sequence[Path], config: Mapping[str, Any]) -> None:  # a transformers model
    """Say what a model was loaded from, so that what is found of it can be kept."""
    stats = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    object.__setattr__(model, "flow_files", json.dumps([stats, config], default=str, sort_keys=True))


def recall(model: Any) -> Passed:  # a transformers model
    """Return what is known of a model; nothing, where it was never checked here as it is now."""
    path = _path(model)
    known: Passed | None = getattr(model, "flow_passed", None)
    if known is None:
        known = Passed()
        if path is not None and path.is_file():
            with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):  # damaged: it is checked again
                known = _read(path)
        object.__setattr__(model, "flow_passed", known)
    return known


def remember(model: Any, **found: Any) -> None:  # a transformers model; fields of Passed
    """Keep more of what is known of a model; where it cannot be written, it is only checked again next time."""
    path = _path(model)
    if path is None:
        return
    passed = replace(recall(model), **found)
    object.__setattr__(model, "flow_passed", passed)
    tensors = {} if passed.logits is None else {"logits": passed.logits.contiguous().cpu()}
    told = {"session": passed.session, "layers": json.dumps(passed.layers)}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(tensors, metadata=told))


def _read(path: Path) -> Passed:
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
        logits = file.get_tensor("logits") if "logits" in file.keys() else None  # noqa: SIM118  # it is no mapping
    return Passed(told["session"], tuple(map(tuple, json.loads(told["layers"]))), logits)


def _path(model: Any) -> Path | None:
    files = getattr(model, "flow_files", None)
    if files is None:
        return None
    device: torch.device = model.device
    runs_on = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [files, str(model.dtype), runs_on, _code(), *(installed(name) for name in _VERSIONS)]
    return checks_folder() / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.safetensors"


@cache
def _code() -> str:
    """Return what the code that checks and is checked is."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted(file for room in _ROOMS for file in (root / room).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
