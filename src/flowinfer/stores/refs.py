"""Models that other programs keep on this machine: which file a reference means. Nothing is asked of a network.

    model.gguf, folder/            a file, or the folder of one model's
    ollama:NAME[:TAG]              Ollama's store ($OLLAMA_MODELS)
    hf:OWNER/REPO/FILE.gguf        the hub cache

`fetch` alone downloads, what `hf:` names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowinfer.errors import LoadError, UnreadableFile
from flowinfer.files import read_text
from flowinfer.machine import hub_cache, hub_problem, hub_snapshot, is_hub_offline
from flowinfer.stores.gguf import SUFFIX, Gguf, part_names

OLLAMA, HUB = "ollama:", "hf:"
_REGISTRY, _LIBRARY = "registry.ollama.ai", "library"
"""Where a name of Ollama's comes from that does not say so."""
_WORD = re.compile(r"[A-Za-z0-9_][\w.-]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KIND = "application/vnd.ollama.image."
_MOST_TEXT_BYTES = 10_000_000
"""Of a manifest or a template."""
_RELATIVE = "paths are relative to the file that names them"
_MOST_NAMED = 8
"""Names in a message."""


@dataclass(frozen=True)
class Stored:
    """Where a model's file is, and what its store says of it besides."""

    path: Path
    """The file; where it is split, its first part."""
    template: str | None = None
    """Ollama's own prompt template, in Go's language."""
    system: str | None = None
    """What Ollama's store says that the system says."""
    stops: tuple[str, ...] = ()
    """Texts that end an answer, as Ollama's store says."""


class NotHere(LoadError):
    """What a reference names is not on this machine."""


def is_stored(ref: str) -> bool:
    """Return whether a reference names a model of another program's store."""
    return ref.startswith((OLLAMA, HUB))


def locate(ref: str, revision: str | None = None) -> Stored:
    """Return the file that a reference means; its header is not read.

    Args:
        ref: see above.
        revision: of a hub repository.
    Raises:
        NotHere: it is not on this machine: says where it was looked for, what is there, and the cure.
        LoadError: the reference means nothing, several files, or what is damaged.
    """
    if ref.startswith(OLLAMA):
        return _in_ollama(ref.removeprefix(OLLAMA))
    if ref.startswith(HUB):
        return Stored(_in_hub(ref, revision))
    path = Path(ref)
    if os.path.isdir(path):
        return Stored(_only_one(path, path))
    if not os.path.exists(path):
        cure = (
            f"{HUB}{ref}/FILE{SUFFIX} names a file of the hub" if re.fullmatch(r"[\w.-]+/[\w.-]+", ref) else _RELATIVE
        )
        raise NotHere(f"nothing at '{ref}'", help=cure)
    return Stored(path)


def fetch(ref: str, revision: str | None = None) -> Stored:
    """Return the file that a reference means, downloaded first where the hub has it and this machine does not.

    Raises:
        LoadError: see `locate`; or it cannot be downloaded.
    """
    try:
        return locate(ref, revision)
    except NotHere as error:
        absent = error
        if not ref.startswith(HUB):
            raise
        if problem := "HF_HUB_OFFLINE is set" if is_hub_offline() else hub_problem():
            raise NotHere(f"{absent.message}, and the hub cannot be reached: {problem}", help=absent.help) from None
    repository, name = _of_hub(ref)
    if not name:
        raise NotHere(absent.message, help=f"name the file that is meant: {HUB}{repository}/FILE{SUFFIX}")
    from huggingface_hub import hf_hub_download

    for part in part_names(name):
        try:
            hf_hub_download(repository, part, revision=revision)
        except Exception as error:  # of its many libraries
            problem, cure = _refused(error, repository, part, revision)
            raise LoadError(f"'{ref}' cannot be downloaded: {problem}", help=cure) from error
    return locate(ref, revision)


def refuse_missing_template(stored: Stored, file: Gguf, *, chat: str, system: str | None) -> None:
    """Refuse a file without a chat template where something needs one.

    Args:
        stored: what its store says.
        file: its header.
        chat: the model's option: off = it needs none.
        system: its option.
    Raises:
        LoadError: with the cure.
    """
    if file.chat_template is not None or chat == "off":
        return
    if stored.template is not None:
        raise LoadError(
            "the file has no chat template, only Ollama has one, in Go's language",
            help='declared in a flow or zoo with chat="off" it is sent plain prompts; or take it from elsewhere',
        )
    if system is not None:
        raise LoadError(
            "the file has no chat template, which the option 'system' needs",
            help="leave it out, or write the message into the prompt",
        )


def _refused(error: Exception, repository: str, name: str, revision: str | None) -> tuple[str, str]:
    """Return why the hub gives no file, and the cure."""
    from huggingface_hub import errors

    page = f"see its page on the hub, {repository}"
    match error:
        case errors.GatedRepoError():
            return (
                f"'{repository}' is for those only whom its owner lets in",
                f"ask there, then `hf auth login`: {page}",
            )
        case errors.RepositoryNotFoundError():
            return (
                f"the hub has no '{repository}', or not for everybody",
                "check its name; `hf auth login` if it is closed",
            )
        case errors.RevisionNotFoundError():
            return f"'{repository}' has no revision '{revision}'", page
        case errors.RemoteEntryNotFoundError():
            return f"'{repository}' has no file '{name}'", page
    return next(iter(str(error).strip().split("\n")), "") or type(error).__name__, page


def gguf_files(folder: Path) -> list[Path]:
    """Return the first or only file of every model in and below a folder, without what only reads pictures.

    Of a split model whose first file is missing, the first one that is there.
    """
    models: dict[Path, Path] = {}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        if os.path.isfile(path) and "mmproj" not in path.name.lower():
            models.setdefault(path.with_name(part_names(path.name)[0]), path)
    return list(models.values())


def ollama_folders(environment: Mapping[str, str]) -> list[Path]:
    """Return where Ollama may keep its models."""
    if named := environment.get("OLLAMA_MODELS"):
        return [Path(named).expanduser()]
    return [Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]


def ollama_names(folder: Path) -> Iterator[str]:
    """Yield what one store of Ollama's holds, as `ollama list` names it."""
    manifests = folder / "manifests"
    for path in sorted(manifests.glob("*/*/*/*")):
        host, owner, name, tag = path.relative_to(manifests).parts
        if os.path.isfile(path) and not path.name.startswith("."):
            before = [host, owner] if host != _REGISTRY else [owner] if owner != _LIBRARY else []
            yield f"{'/'.join([*before, name])}:{tag}"


def _in_ollama(name: str) -> Stored:
    parts = _ollama_parts(name)
    tried = ollama_folders(os.environ)
    folders = [folder for folder in tried if os.path.isdir(folder / "manifests")]
    for folder in folders:
        manifest = folder.joinpath("manifests", *parts)
        if os.path.isfile(manifest):
            return _of_manifest(manifest, folder / "blobs", name)
    for folder in tried:
        if is_barred(folder / "manifests"):
            cure = f"let its owner say: chmod -R a+rX {folder}"
            raise LoadError(f"'{OLLAMA}{name}': {barred(folder)}", help=cure)
    if not folders:
        raise NotHere(
            f"'{OLLAMA}{name}': no store of Ollama's at {' or '.join(map(str, tried))}",
            help="OLLAMA_MODELS=FOLDER names it where it is elsewhere",
        )
    there = [one for folder in folders for one in ollama_names(folder)]
    raise NotHere(
        f"'{OLLAMA}{name}' is not in {' or '.join(map(str, folders))}: {_listed(there)}",
        help=f"ollama pull {name}",
    )


def is_barred(folder: Path) -> bool:
    """Return whether a folder is there, as far as can be known, and nobody here may look into it."""
    try:
        os.listdir(folder)
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(folder, os.X_OK)


def barred(folder: Path) -> str:
    """Return what is told of such a folder."""
    return f"{folder} is another user's, and cannot be read"


def _ollama_parts(name: str) -> tuple[str, ...]:
    """Return the folders and the file that a name stands for: host, owner, model, tag."""
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, "latest"
    words = path.split("/")
    parts = (*(_REGISTRY, _LIBRARY)[: max(0, 3 - len(words))], *words, tag)
    if len(parts) != 4 or not all(_WORD.fullmatch(word) for word in (*parts[0].split(":", 1), *parts[1:])):
        raise LoadError(f"'{OLLAMA}{name}' names no model", help="ollama:NAME[:TAG], as `ollama list` shows it")
    return parts


def _of_manifest(manifest: Path, blobs: Path, name: str) -> Stored:
    """Return what a manifest of Ollama's says of a model."""
    data = _json(manifest)
    layers = data.get("layers")
    found: dict[str, list[Path]] = {}
    for layer in layers if isinstance(layers, list) else ():
        kind, digest = (layer.get(key) for key in ("mediaType", "digest")) if isinstance(layer, dict) else ("", "")
        if isinstance(kind, str) and kind.startswith(_KIND) and isinstance(digest, str) and _DIGEST.fullmatch(digest):
            found.setdefault(kind.removeprefix(_KIND), []).append(blobs / digest.replace(":", "-"))
    again = f"ollama pull {name}"
    if len(found.get("model", ())) != 1:
        has = "is kept in parts of another format" if "tensor" in found else "has no one file of weights"
        raise LoadError(f"'{OLLAMA}{name}' {has}: {manifest}", help=again)
    if "adapter" in found:
        raise LoadError(f"'{OLLAMA}{name}' has an adapter, which would not be applied", help="take its base model")
    (path,) = found["model"]
    if not os.path.isfile(path):
        raise NotHere(f"'{OLLAMA}{name}': {path} is missing; its manifest names it", help=again)
    template, system = (_text(found[key][0]) if key in found else None for key in ("template", "system"))
    stops = _json(found["params"][0]).get("stop") if "params" in found else None
    stops = stops if isinstance(stops, list) else [stops]
    return Stored(path, template, system, tuple(stop for stop in stops if isinstance(stop, str)))


def _in_hub(ref: str, revision: str | None) -> Path:
    repository, name = _of_hub(ref)
    snapshot = hub_snapshot(repository, revision=revision)
    if snapshot is None:
        raise NotHere(f"'{repository}' is not in the hub cache, {hub_cache()}", help=_download(repository, name))
    if not name:
        return _only_one(snapshot, ref)
    path = snapshot / name
    if not all(os.path.isfile(snapshot / part) for part in part_names(name)):
        there = [str(one.relative_to(snapshot)) for one in gguf_files(snapshot)]
        raise NotHere(
            f"'{repository}' is in the hub cache without '{name}': {_listed(there)}", help=_download(repository, name)
        )
    return path


def _of_hub(ref: str) -> tuple[str, str]:
    """Return the repository and the file that a reference names; the file may be left out."""
    owner, _, rest = ref.removeprefix(HUB).partition("/")
    repository, _, name = rest.partition("/")
    words = [owner, repository, *(name.split("/") if name else [])]
    if not all(_WORD.fullmatch(word) for word in words) or (name and not name.endswith(SUFFIX)):
        raise LoadError(f"'{ref}' names no file of the hub", help=f"{HUB}OWNER/REPO/FILE{SUFFIX}")
    return f"{owner}/{repository}", name


def _download(repository: str, name: str) -> str:
    return f"hf download {repository} {name or 'FILE' + SUFFIX}"


def _only_one(folder: Path, named: object) -> Path:
    found = gguf_files(folder)
    if len(found) == 1:
        return found[0]
    if not found:
        raise LoadError(f"no {SUFFIX} file in '{named}'", help="a folder of safetensors is read by backend=hf")
    there = [str(path.relative_to(folder)) for path in found]
    raise LoadError(f"'{named}' holds several models: {_listed(there)}", help="name one of the files")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"there are {', '.join(names[:_MOST_NAMED])}{more}" if names else "there are none"


def _text(path: Path) -> str:
    try:
        return read_text(path, most_bytes=_MOST_TEXT_BYTES)
    except UnreadableFile as error:
        raise LoadError(error.message, help="pull the model again") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is no JSON", help="pull the model again") from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} is no JSON object", help="pull the model again")
    return found
