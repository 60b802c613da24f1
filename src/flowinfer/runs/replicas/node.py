"""What one host has for replicas: versions, devices, models; said as plain data and compared with another host's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flowinfer.errors import LoadError
from flowinfer.machine import Device, hub_cache, model_folder, this_machine
from flowinfer.registry import BUILT_IN_BACKENDS
from flowinfer.runs.store import host
from flowinfer.spec import ModelSpec
from flowinfer.stores.refs import locate

_COMPARED = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")
"""Files of a model that decide which ids a text has, and what the ids mean."""
_HEADER_BYTES = 16 << 20
"""Of a GGUF file, which begins with its vocabulary."""
_MUST_AGREE = ("flowinfer", "torch", "transformers", "tokenizers")


class Files(BaseModel):
    """A model's files on a host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    path: str
    """Where they are, or should be."""
    is_there: bool
    digests: Mapping[str, str]
    """Of small files, by name."""


class Look(BaseModel):
    """What a host has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: Mapping[str, str | None]
    devices: tuple[Device, ...]
    """GPUs first, the CPU last."""
    cores: int
    models: tuple[Files, ...]


def look(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Look at this host; return a `Look` as plain data.

    Args:
        models: specs of local models, as plain data.
    """
    found = Look(
        versions=dict(host()["versions"]),
        devices=this_machine().devices,
        cores=os.cpu_count() or 1,
        models=tuple(_files(ModelSpec.model_validate(model)) for model in models),
    )
    return found.model_dump(mode="json")


def differences(here: Look, there: Look) -> list[str]:
    """Return why another host cannot answer as this one does, each reason in words."""
    found = [
        f"{name} {here.versions.get(name)} here, {there.versions.get(name)} there"
        for name in _MUST_AGREE
        if here.versions.get(name) != there.versions.get(name)
    ]
    for own, other in zip(here.models, there.models, strict=True):
        if not other.is_there:
            found.append(f"model '{other.name}' is missing there: nothing at {other.path}")
            continue
        if not own.is_there:
            found.append(f"model '{own.name}' is missing here: nothing at {own.path}")
            continue
        names = [name for name in {**own.digests, **other.digests} if own.digests.get(name) != other.digests.get(name)]
        if names:
            found.append(f"model '{other.name}' is another there: {', '.join(names)} in {other.path}")
    return found


def _files(spec: ModelSpec) -> Files:
    if spec.backend == "gguf":
        return _file(spec)
    if spec.backend not in {info.name for info in BUILT_IN_BACKENDS}:  # only it knows what a reference means
        return Files(name=spec.name, path=spec.ref, is_there=True, digests={})
    folder = model_folder(spec.ref, spec.revision)
    if folder is None:
        missing = spec.ref if Path(spec.ref).is_absolute() else hub_cache() / f"models--{spec.ref.replace('/', '--')}"
        return Files(name=spec.name, path=str(missing), is_there=False, digests={})
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in _COMPARED
        if (folder / name).is_file()
    }
    return Files(name=spec.name, path=str(folder), is_there=True, digests=digests)


def _file(spec: ModelSpec) -> Files:
    try:
        path = locate(spec.ref, spec.revision).path
    except LoadError:
        return Files(name=spec.name, path=spec.ref, is_there=False, digests={})
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_HEADER_BYTES)).hexdigest()
    return Files(name=spec.name, path=str(path), is_there=True, digests={"its header": digest})
