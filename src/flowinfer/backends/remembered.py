"""What the checks at load have found of a model, kept for the next time: by its files, this code and what it runs on.

A model that has passed is not run in transformers' own way again. Its own logits on the check's few tokens are kept
with the rest, so what takes the place of its modules is still compared with them, each time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowinfer.backends.versions import code, installed
from flowinfer.checkpoint import Held
from flowinfer.files import write_whole
from flowinfer.fusion.selfcheck import checks_folder

_PLAIN = ("session", "layers", "max_positions", "end_ids", "is_tied")
"""Fields of `Passed` that are plain data."""
_VERSIONS = ("flowinfer", "torch", "transformers", "triton")


@dataclass(frozen=True)
class Numbers:
    """What the layers of a decoder of Llama's kind calculate with, beside their weights."""

    frequencies: Tensor
    """(D / 2,) float32: radians by which a position turns each pair of a head's numbers."""
    amplitude: float
    """What cosines and sines are multiplied with."""
    scaling: float
    """What scores are multiplied with."""
    eps: float
    """Of RMS norms."""

    def turns(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the first positions, (length, D / 2) float32 each."""
        angles = torch.arange(length, device=self.frequencies.device)[:, None] * self.frequencies.float()
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude


@dataclass(frozen=True)
class Passed:
    """What a model's checks have found."""

    session: str = ""
    """The kind of session that serves it; "" = none was tried."""
    layers: tuple[tuple[Any, ...], ...] = ()
    """Its layers' shapes, where it can be packed."""
    logits: Tensor | None = None
    """(2, V_k): its own logits at the ends of the packed check's rows."""
    numbers: Numbers | None = None
    """Where its forward is written out."""
    max_positions: int = 0
    end_ids: int | Sequence[int] | None = None
    """What its generation config says."""
    is_tied: bool = False
    """Whether the last matrix is the embedding."""


def identify(model: Any, held: Held) -> None:  # a transformers model
    """Say what a model was loaded from, so that what is found of it can be kept."""
    object.__setattr__(model, "flow_files", _told(held))


def recall_files(held: Held, dtype: torch.dtype, device: torch.device) -> Passed:
    """Return what is known of the model that some files hold, as `recall` does."""
    return _recalled(_path_of(_told(held), dtype, device))


def _told(held: Held) -> str:
    """Return what tells one model's files from another's: names, sizes and times; configs word for word."""
    stats = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in held.files]
    beside = [held.files[0].parent / name for name in ("config.json", "generation_config.json")]
    return json.dumps([stats, [path.read_text("utf-8", "replace") if path.is_file() else "" for path in beside]])


def recall(model: Any) -> Passed:  # a transformers model
    """Return what is known of a model; nothing, where it was never checked here as it is now."""
    path = _path(model)
    known: Passed | None = getattr(model, "flow_passed", None)
    if known is None:
        known = _recalled(path) if path is not None else Passed()
        object.__setattr__(model, "flow_passed", known)
    return known


def remember(model: Any, **found: Any) -> None:  # a transformers model; fields of Passed
    """Keep more of what is known of a model; where it cannot be written, it is only checked again next time."""
    path = _path(model)
    if path is None:
        return
    passed = replace(recall(model), **found)
    object.__setattr__(model, "flow_passed", passed)
    tensors = {} if passed.logits is None else {"logits": passed.logits}
    told: dict[str, Any] = {name: getattr(passed, name) for name in _PLAIN}
    if passed.numbers:
        tensors["frequencies"] = passed.numbers.frequencies
        told["numbers"] = [passed.numbers.amplitude, passed.numbers.scaling, passed.numbers.eps]
    kept = {name: one.contiguous().cpu() for name, one in tensors.items()}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(kept, metadata={"told": json.dumps(told)}))


def _recalled(path: Path) -> Passed:
    """Read a record; one that is damaged is a missing one: the model is checked again."""
    if path.is_file():
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
            return _read(path)
    return Passed()


def _read(path: Path) -> Passed:
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["told"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    plain = {name: told[name] for name in _PLAIN} | {"layers": tuple(map(tuple, told["layers"]))}
    numbers = Numbers(tensors["frequencies"], *told["numbers"]) if "numbers" in told else None
    return Passed(**plain, logits=tensors.get("logits"), numbers=numbers)


def _path(model: Any) -> Path | None:
    files = getattr(model, "flow_files", None)
    return None if files is None else _path_of(files, model.dtype, model.device)


def _path_of(files: str, dtype: torch.dtype, device: torch.device) -> Path:
    runs_on = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [files, str(dtype), runs_on, code(), *(installed(name) for name in _VERSIONS)]
    return checks_folder() / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.safetensors"
