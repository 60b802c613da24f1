"""Models that other programs keep on this machine: which file a reference means. Nothing is asked of a network.

    model.gguf, folder/            a file, or the folder of one model's
    ollama:NAME[:TAG]              Ollama's store ($OLLAMA_MODELS)
    hf:OWNER/REPO/FILE.gguf        the hub cache

`fetch` alone downloads, what `hf:` names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from flowinfer.errors import LoadError
from flowinfer.machine import hub_cache, hub_problem, hub_snapshot, is_hub_offline
from flowinfer.stores import ollama
from flowinfer.stores.gguf import SUFFIX, Gguf, part_names
from flowinfer.stores.ollama import OLLAMA
from flowinfer.stores.stored import WORD, NotHere, Stored, listed

HUB = "hf:"
_RELATIVE = "paths are relative to the file that names them"


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
        return ollama.find(ref.removeprefix(OLLAMA))
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
            f"'{repository}' is in the hub cache without '{name}': {listed(there)}", help=_download(repository, name)
        )
    return path


def _of_hub(ref: str) -> tuple[str, str]:
    """Return the repository and the file that a reference names; the file may be left out."""
    owner, _, rest = ref.removeprefix(HUB).partition("/")
    repository, _, name = rest.partition("/")
    words = [owner, repository, *(name.split("/") if name else [])]
    if not all(WORD.fullmatch(word) for word in words) or (name and not name.endswith(SUFFIX)):
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
    raise LoadError(f"'{named}' holds several models: {listed(there)}", help="name one of the files")
