"""Ollama's store: names, their manifests, and the blobs that these name.

    manifests-v2/ollama.com/library/NAME/TAG         a link to a blob: a manifest, or a list of some, one a format
    manifests/registry.ollama.ai/library/NAME/TAG    a manifest
    blobs/sha256-...                                 weights, templates, manifests

Both layouts are read, and what is in both is meant as it stands in the newer one, where that can be read. Names are the
same in upper and lower case, as they are to Ollama.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowinfer.errors import LoadError, UnreadableFile
from flowinfer.files import read_text
from flowinfer.stores.stored import WORD, NotHere, Stored, barred, is_barred, listed

OLLAMA = "ollama:"
_LAYOUTS = ("manifests-v2", "manifests")
_REGISTRY, _LIBRARY, _LATEST = "registry.ollama.ai", "library", "latest"
"""What a name that does not say so means."""
_ALSO_REGISTRY = "ollama.com"
"""The registry, as the newer layout calls it."""
_LIST = "application/vnd.ollama.manifest.list.v2+json"
_RUNNERS = ("ollama", "llamacpp")
"""What computes GGUF files, in a list of manifests; the weights of others are of other formats."""
_KIND = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_TEXT_BYTES = 10_000_000
"""Of a manifest or a template."""
_AGAIN = "pull the model again"


class Name(NamedTuple):
    """What names a model; folders and the file of its manifest."""

    host: str
    owner: str
    model: str
    tag: str

    def folded(self) -> Name:
        """Return what is equal for two spellings of one name."""
        return Name(*map(str.casefold, self))

    def __str__(self) -> str:
        """Return it as `ollama list` shows it."""
        before = [self.host, self.owner] if self.host != _REGISTRY else [self.owner] if self.owner != _LIBRARY else []
        return f"{'/'.join([*before, self.model])}:{self.tag}"


def folders(environment: Mapping[str, str]) -> list[Path]:
    """Return where Ollama may keep its models."""
    if named := environment.get("OLLAMA_MODELS"):
        return [Path(named).expanduser()]
    return [Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]


def manifests(folder: Path) -> dict[Name, Path]:
    """Return the manifests of one store."""
    found: dict[Name, Path] = {}
    for root in (folder / layout for layout in _LAYOUTS):
        for path in sorted(root.glob("*/*/*/*")):
            if os.path.isfile(path) and not path.name.startswith("."):  # no link to what has gone
                found.setdefault(_named(*path.relative_to(root).parts), path)
    return found


def closed(folder: Path) -> list[Path]:
    """Return what of a store is another user's, and cannot be looked into."""
    return [folder / layout for layout in _LAYOUTS if is_barred(folder / layout)]


def find(text: str) -> Stored:
    """Return the file of a model.

    Args:
        text: [[HOST/]OWNER/]NAME[:TAG]
    Raises:
        NotHere: no store has it: says which ones were looked into, what is there, and the cure.
        LoadError: it is no name, or what the store says of it is damaged.
    """
    name = _read(text)
    tried = folders(os.environ)
    stores = [folder for folder in tried if any(os.path.isdir(folder / layout) for layout in _LAYOUTS)]
    names: list[str] = []
    for store in stores:
        there = manifests(store)
        alike = (path for own, path in there.items() if own.folded() == name.folded())
        if manifest := there.get(name) or next(alike, None):
            return _stored(manifest, store / "blobs", text)
        names += map(str, sorted(there))
    for folder in tried:
        if closed(folder):
            cure = f"let its owner say: chmod -R a+rX {folder}"
            raise LoadError(f"'{OLLAMA}{text}': {barred(folder)}", help=cure)
    if not stores:
        raise NotHere(
            f"'{OLLAMA}{text}': no store of Ollama's at {' or '.join(map(str, tried))}",
            help="OLLAMA_MODELS=FOLDER names it where it is elsewhere",
        )
    where = " or ".join(map(str, stores))
    raise NotHere(f"'{OLLAMA}{text}' is not in {where}: {listed(names)}", help=f"ollama pull {text}")


def _read(text: str) -> Name:
    address = re.sub("^https?://", "", text)
    path, colon, tag = address.rpartition(":")
    if not colon or "/" in tag:
        path, tag = address, _LATEST
    words = path.split("/")
    parts = (*(_REGISTRY, _LIBRARY)[: max(0, 3 - len(words))], *words, tag)
    if len(parts) != 4 or not all(WORD.fullmatch(word) for word in (*parts[0].split(":", 1), *parts[1:])):
        raise LoadError(f"'{OLLAMA}{text}' names no model", help="ollama:NAME[:TAG], as `ollama list` shows it")
    return _named(*parts)


def _named(host: str, owner: str, model: str, tag: str) -> Name:
    is_registry = host.casefold() in (_REGISTRY, _ALSO_REGISTRY)
    return Name(_REGISTRY if is_registry else host, owner, model, tag)


def _stored(manifest: Path, blobs: Path, text: str) -> Stored:
    """Return what a manifest says of a model."""
    data = _chosen(_json(manifest), blobs)
    found: dict[str, list[Path]] = {}
    for layer in _objects(data, "layers"):
        kind, blob = layer.get("mediaType"), _blob(layer, blobs)
        if isinstance(kind, str) and kind.startswith(_KIND) and blob:
            found.setdefault(kind.removeprefix(_KIND), []).append(blob)
    again = f"ollama pull {text}"
    if len(found.get("model", ())) != 1:
        is_other = "tensor" in found or data.get("mediaType") == _LIST
        has = "is kept in parts of another format" if is_other else "has no one file of weights"
        raise LoadError(f"'{OLLAMA}{text}' {has}: {manifest}", help=again)
    if "adapter" in found:
        raise LoadError(f"'{OLLAMA}{text}' has an adapter, which would not be applied", help="take its base model")
    (path,) = found["model"]
    if not os.path.isfile(path):
        raise NotHere(f"'{OLLAMA}{text}': {path} is missing; its manifest names it", help=again)
    template, system = (_text(found[key][0]) if key in found else None for key in ("template", "system"))
    stops = _json(found["params"][0]).get("stop") if "params" in found else None
    stops = stops if isinstance(stops, list) else [stops]
    return Stored(path, template, system, tuple(stop for stop in stops if isinstance(stop, str)))


def _chosen(data: dict[str, Any], blobs: Path) -> dict[str, Any]:
    """Return the manifest of GGUF weights where there is a list of manifests, which stand there or in blobs."""
    if data.get("mediaType") != _LIST:
        return data
    by_runner = {str(one.get("runner")).casefold(): one for one in reversed(_objects(data, "manifests"))}
    one = next((by_runner[runner] for runner in _RUNNERS if runner in by_runner), data)
    blob = _blob(one, blobs)
    return _json(blob) if blob else one


def _objects(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = data.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _blob(entry: Mapping[str, Any], blobs: Path) -> Path | None:
    """Return where that is kept which an entry names; None where it has no digest."""
    digest = entry.get("digest")
    return blobs / digest.replace(":", "-") if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def _text(path: Path) -> str:
    try:
        return read_text(path, most_bytes=_MOST_TEXT_BYTES)
    except UnreadableFile as error:
        raise LoadError(error.message, help=_AGAIN) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is no JSON", help=_AGAIN) from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} is no JSON object", help=_AGAIN)
    return found
