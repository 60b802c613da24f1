"""Unions of large vocabularies, kept on disk: they take longer to make than to read."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from flowinfer.fusion.selfcheck import cache_folder
from flowinfer.fusion.vocab import HeadVocabulary

Keys = tuple[bytes, ...]
_VERSION = 1


def path_of(heads: Sequence[HeadVocabulary]) -> Path:
    """Return where the union of some heads' vocabularies is kept."""
    parts = [f"{head.tokens.fingerprint}/{sorted(head.eos_ids)}/{head.num_columns}" for head in heads]
    name = hashlib.sha256(f"v{_VERSION} {parts}".encode()).hexdigest()
    return cache_folder() / "vocabularies" / f"{name}.npz"


def read(path: Path, num_heads: int) -> tuple[Keys, list[NDArray[np.int64]]] | None:
    """Read what `write` wrote, or return None where it is not there or damaged: it is built again then."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            ends, blob = stored["ends"].tolist(), stored["blob"].tobytes()
            slots = [stored[f"slots{k}"] for k in range(num_heads)]
        starts = [0, *ends[:-1]]
        return tuple(blob[a:b] for a, b in zip(starts, ends, strict=True)), slots
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None


def write(path: Path, keys: Keys, slots: Sequence[NDArray[np.int64]]) -> None:
    """Keep the keys of a union and each head's slots by id; a folder that takes nothing costs time, nothing else."""
    partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            partial,
            ends=np.cumsum([len(key) for key in keys]),
            blob=np.frombuffer(b"".join(keys), dtype=np.uint8),
            **{f"slots{k}": slot_of for k, slot_of in enumerate(slots)},  # type: ignore[arg-type]  # stub of savez
        )
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
