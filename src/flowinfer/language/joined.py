"""A flow made of models as a command names them, without a file: one answers alone, several write one text together.

ollama:qwen3:4b+ollama:llama3.2  ->  ("qwen3:4b" | "llama3.2"), both declared, asked as it stands
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Container, Sequence
from pathlib import Path

from flowinfer.errors import UsageError
from flowinfer.language.nearness import did_you_mean
from flowinfer.language.texts import quote
from flowinfer.machine import has_weights, hub_snapshot
from flowinfer.stores.gguf import SUFFIX
from flowinfer.stores.ollama import OLLAMA
from flowinfer.stores.refs import HUB, gguf_files, is_stored
from flowinfer.stores.stored import barred, is_barred

AND = "+"
"""Joins models into one word."""


def is_model(word: str) -> bool:
    """Return whether a word names a model itself: of a store, a GGUF file, or a model's folder."""
    return is_stored(word) or word.endswith(SUFFIX) or _is_folder(word)


def models_in(word: str, zoo: Container[str] = ()) -> list[str]:
    """Return the models that a word of a command joins; none where it names something else, such as a flow's file.

    Args:
        word: as it was typed.
        zoo: names that are models too.
    Raises:
        UsageError: only some parts of it are models.
    """
    parts = [word] if word in zoo or os.path.exists(word) else word.split(AND)
    known = [part for part in parts if part in zoo or is_model(part)]
    if known and len(known) < len(parts):
        wrong = next(part for part in parts if part not in known)
        raise UsageError(f"'{wrong}' in '{word}' is no model", help=FORMS)
    return known


FORMS = f"models are ollama:NAME, hf:OWNER/REPO or hf:OWNER/REPO/FILE{SUFFIX}, a {SUFFIX} file or a model's folder"


def flow_of(models: Sequence[str], zoo: Container[str] = ()) -> str:
    """Return the text of the flow that some models are.

    Args:
        models: at least one; one that is named twice is two heads.
        zoo: names that need no declaration.
    Raises:
        UsageError: one cannot be named in a flow, or is no name of the hub's.
    """
    names = {model: model for model in models if model in zoo}
    for model in dict.fromkeys(models):
        if model not in names:
            names[model] = _unlike(short_name(model), names.values())
    declared = [_declared(name, model) for model, name in names.items() if model not in zoo]
    heads = " | ".join(quote(names[model]) for model in models)
    whole = quote(AND.join(names[model] for model in models)[:100])
    lines = [*declared, f'defaults {{ name={whole}, prompts="none" }}', f"({heads})" if len(models) > 1 else heads]
    return "\n".join(lines) + "\n"


def _declared(name: str, model: str) -> str:
    ref, is_gguf = meant(model)
    return f"model {quote(name)} = {quote(ref)}" + (" { backend=gguf }" if is_gguf else "")


def meant(model: str) -> tuple[str, bool]:
    """Return a model's reference, and whether it is a GGUF file; else it is a folder or hub id for transformers.

    Raises:
        UsageError: it is no name of the hub's, or a path with nothing there.
    """
    ref = model if is_stored(model) else os.path.abspath(Path(model).expanduser())
    if not ref.isprintable():
        raise UsageError(f"'{ref}' holds characters that nobody can see", help="give it another name")
    if model.startswith(HUB) and not model.endswith(SUFFIX):
        repository = model.removeprefix(HUB)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise UsageError(f"'{model}' names no model of the hub", help=FORMS)
        snapshot = hub_snapshot(repository)
        is_gguf = snapshot is not None and not has_weights(snapshot) and bool(gguf_files(snapshot))
        return (model, True) if is_gguf else (repository, False)
    if is_stored(model):
        return model, True
    if not os.path.exists(ref):
        told = f"'{model}' is a link to nothing" if os.path.islink(ref) else f"no file or folder '{model}'"
        raise UsageError(told, help=_cure(model, ref))
    return ref, not os.path.isfile(os.path.join(ref, "config.json"))


def _cure(model: str, path: str) -> str:
    """Return what may have been meant by a path with nothing there: another file, or one of the hub's."""
    folder, name = os.path.split(path)
    if is_barred(Path(folder)):
        return barred(Path(folder))
    there = sorted(one.name for one in Path(folder).glob(f"*{SUFFIX}") if os.path.exists(one))
    if near := did_you_mean(name, there, prefix=model.removesuffix(name)):
        return near
    is_hub = re.fullmatch(rf"[\w-][\w.-]*/[\w.-]+/.+{re.escape(SUFFIX)}", model)
    return f"{HUB}{model} names a file of the hub" if is_hub else "`flowinfer models` lists what is on this machine"


def _is_folder(word: str) -> bool:
    """Return whether a word names a folder of one model's files, not of flows."""
    if not os.path.isdir(word):
        return False
    folder = Path(word)
    return os.path.isfile(folder / "config.json") or (any(folder.glob(f"*{SUFFIX}")) and not any(folder.glob("*.flow")))


def short_name(model: str) -> str:
    """Return what to call a model."""
    name = model.removeprefix(OLLAMA).removeprefix(HUB).rstrip("/").rpartition("/")[2]
    name = re.sub(r"-\d{5}-of-\d{5}$", "", name.removesuffix(SUFFIX)) or Path(model).resolve().name
    return "".join(one for one in name if one.isprintable()) or "model"


def _unlike(name: str, others: Collection[str]) -> str:
    """Return a name, numbered where others have it."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in others else next(one for one in numbered if one not in others)
