"""Files of a published folder by their split: `val/law_val.csv`, `test-00000-of-00001.parquet`, `Train.jsonl`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowinfer.errors import DataError

EXAMPLES = ":dev"
"""Ends a data set's name where `--data NAME:dev=PATH` says what its examples are taken from."""

_WORDS = {"train": "train", "dev": "dev", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_DEPTH = 3


def files_of(
    folder: Path, split: str, patterns: Sequence[str], inside: str | None, *, is_strict: bool = False
) -> list[Path]:
    """Return a folder's files of one split, in the order of their names; none where it has none.

    Those that say so count, in it or up to two folders below; else those in it that name no split; else, where all
    are of one other split, these.

    Args:
        patterns: what their names look like.
        inside: beginning of the name of a folder or file; where some lie below it or are called so, only these count.
        is_strict: take only files that say so.
    Raises:
        DataError: they are of several forms.
    """
    found = [path for depth in range(_DEPTH) for path in _at(folder, depth, patterns)]
    if inside is not None:
        found = [path for path in found if _is_inside(path.relative_to(folder), inside)] or found
    above = split_of(Path(folder.name)) if folder.name.lower() in _WORDS else None
    named = {path: split_of(path.relative_to(folder)) or above for path in found}
    chosen = [path for path in found if named[path] == split]
    if not chosen and not is_strict:
        here = [path for path in found if path.parent == folder]
        chosen = [path for path in here if named[path] is None]
        if not chosen and len({named[path] for path in found}) == 1:
            chosen = found
    endings = sorted({path.suffix for path in chosen})
    if len(endings) > 1:
        raise DataError(f"{folder}: holds {' and '.join(endings)} files", help="give one file, or a folder of one form")
    return sorted(chosen)


def _at(folder: Path, depth: int, patterns: Sequence[str]) -> Iterator[Path]:
    """Yield the files so many folders deep whose names look so, each once."""
    seen = set()
    for pattern in patterns:
        for path in sorted(folder.glob("*/" * depth + pattern)):
            if path not in seen and path.is_file():
                seen.add(path)
                yield path


def _is_inside(path: Path, beginning: str) -> bool:
    return any(part.casefold().startswith(beginning.casefold()) for part in path.parts)


def split_of(path: Path) -> str | None:
    """Return the split that a file's name says, else that of a folder above it; None where none does."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = [_WORDS[word] for word in re.split(r"[\W_]+", part.lower()) if word in _WORDS]
        if words:
            return words[-1]
    return None


def topic(path: Path) -> str:
    """Return what a file's name says beside its split and part; where it says nothing else, what its folder's says."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        bare = re.sub(r"-\d+-of-\d+$", "", part)
        rest = re.sub(rf"(?:^|[_-])(?:{'|'.join(_WORDS)})$", "", bare, flags=re.I)
        if rest and not rest.isdecimal():
            return rest
    return path.stem
