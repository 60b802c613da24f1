"""What stores have in common: a model that is found, and what is said of one that is not."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowinfer.errors import LoadError

WORD = re.compile(r"[A-Za-z0-9_][\w.-]*")
"""A part of a name: one that is no path, and no option of a command."""
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


def listed(names: Sequence[str]) -> str:
    """Return what is told of what is there."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"there are {', '.join(names[:_MOST_NAMED])}{more}" if names else "there are none"
