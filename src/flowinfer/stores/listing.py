"""Which models are on this machine already: Ollama's store, folders of LM Studio and llama.cpp, the hub cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flowinfer.checkpoint import read_config, read_folder
from flowinfer.errors import FlowInferError, LoadError
from flowinfer.files import read_text
from flowinfer.machine import has_weights, hub_cache, hub_snapshot
from flowinfer.stores import ollama
from flowinfer.stores.gguf import read_gguf
from flowinfer.stores.ollama import OLLAMA
from flowinfer.stores.refs import HUB, gguf_files, locate
from flowinfer.stores.stored import barred, is_barred


@dataclass(frozen=True)
class LocalModel:
    """A model that is here."""

    ref: str
    """As commands name it."""
    store: str
    num_bytes: int = 0
    parameters: int | None = None
    stored: str = "?"
    """How its weights are: Q4_K_M, bfloat16, ..."""
    context_length: int | None = None
    template: str = ""
    """In what its chat template is written: jinja, or go (Ollama's own); "" = it has none."""
    problem: str | None = None
    """Why it cannot be used."""


def local_models(environment: Mapping[str, str] | None = None) -> Iterator[LocalModel]:
    """Yield the models of all stores; their headers are read, no weights.

    Args:
        environment: says where stores are; the process's by default.
    """
    environment = os.environ if environment is None else environment
    for folder in ollama.folders(environment):
        for closed in ollama.closed(folder):
            yield from _barred(closed, "Ollama")
        for name in sorted(ollama.manifests(folder)):
            yield _file(OLLAMA + str(name).removesuffix(":latest"), "Ollama")
    for store, folders in (("LM Studio", _lm_studio()), ("llama.cpp", _llama_cpp(environment))):
        for folder in folders:
            yield from _barred(folder, store)
            for path in gguf_files(folder):
                yield _file(str(path), store)
    yield from _barred(hub_cache(environment), "hub cache")
    for cached in sorted(hub_cache(environment).glob("models--*")):
        repository = cached.name.removeprefix("models--").replace("--", "/")
        snapshot = hub_snapshot(repository, environment)
        if snapshot is None or is_barred(snapshot):
            yield from _barred(snapshot or cached, "hub cache")
            continue
        for path in gguf_files(snapshot):
            yield _file(f"{HUB}{repository}/{path.relative_to(snapshot).as_posix()}", "hub cache")
        if has_weights(snapshot) and (snapshot / "config.json").is_file():
            yield _folder(f"{HUB}{repository}", snapshot)


def _barred(folder: Path, store: str) -> Iterator[LocalModel]:
    """Yield what is to be told of a folder that cannot be looked into; nothing of another."""
    if is_barred(folder):
        yield LocalModel(str(folder), store, problem=barred(folder))


def _lm_studio() -> list[Path]:
    home = Path("~").expanduser()
    pointer = home / ".lmstudio-home-pointer"
    with suppress(FlowInferError):
        return [Path(read_text(pointer, most_bytes=10_000).strip()) / "models"]
    return [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]


def _llama_cpp(environment: Mapping[str, str]) -> list[Path]:
    if named := environment.get("LLAMA_CACHE"):
        return [Path(named).expanduser()]
    usual = {"darwin": "~/Library/Caches", "win32": environment.get("LOCALAPPDATA", "~")}
    cache = usual.get(sys.platform) or environment.get("XDG_CACHE_HOME") or "~/.cache"
    return [Path(cache).expanduser() / "llama.cpp"]


def _file(ref: str, store: str) -> LocalModel:
    """Return what is to be told of a GGUF file."""
    try:
        found = locate(ref)
        header = read_gguf(found.path)
    except LoadError as error:
        return LocalModel(ref, store, problem=error.message)
    template = "jinja" if header.chat_template else "go" if found.template else ""
    return LocalModel(
        ref, store, header.num_bytes, header.num_parameters, header.quantization, header.context_length, template
    )


def _folder(ref: str, folder: Path) -> LocalModel:
    """Return what is to be told of a folder of transformers'."""
    try:
        held, config = read_folder(folder), read_config(folder) or {}
    except LoadError as error:
        return LocalModel(ref, "hub cache", problem=error.message)
    packed = config.get("quantization_config")
    stored = packed.get("quant_method") if isinstance(packed, dict) else config.get("dtype", config.get("torch_dtype"))
    longest = config.get("max_position_embeddings")
    return LocalModel(
        ref,
        "hub cache",
        held.num_bytes,
        None if packed else held.num_numbers,
        str(stored or "?"),
        longest if isinstance(longest, int) else None,
        "jinja" if _has_template(folder) else "",
    )


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    with suppress(FlowInferError):
        return '"chat_template"' in read_text(folder / "tokenizer_config.json")
    return False
