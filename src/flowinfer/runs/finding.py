"""Runs and sweeps by the names that users give them: a path, a name, the beginning of one, or `latest`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rapidfuzz.distance import OSA

from flowinfer.errors import DataError, UsageError
from flowinfer.output.shell import command, option
from flowinfer.runs.store import RunInfo, info

_LEAST_PART = 2
"""Characters that a part of a name has at least."""
_LETTERS_A_SLIP = 12
"""Characters in which one may be wrong."""


def list_runs(root: Path) -> list[RunInfo]:
    """Return the runs under a folder, newest first."""
    if not root.is_dir():
        return []
    try:
        inside = list(root.iterdir())
    except OSError as error:
        raise UsageError(f"cannot read '{root}': {error.strerror}", help="--out FOLDER names another folder") from error
    found = []
    for folder in sorted((path for path in inside if os.path.isfile(path / "run.json")), reverse=True):
        with suppress(DataError):  # a run that was killed while its folder was being made
            found.append(info(folder))
    return sorted(found, key=lambda run: str(run.data.get("started", "")), reverse=True)


def find_run(named: str, root: Path) -> Path:
    """Return the run folder that a path, a name, a unique beginning of one, or `latest` means.

    Raises:
        UsageError: none or several.
    """
    if os.path.isfile(Path(named) / "run.json"):
        return Path(named)
    if os.path.isfile(Path(named) / "sweep.json"):
        folder = Path(named) / "runs"
        raise UsageError(
            f"'{named}' is a sweep, not a run",
            help=f"`{command('runs', options=option('--out', folder))}` lists its runs",
        )
    known = [run.path for run in list_runs(root)]
    return one_of(named, known, root, "run", "`flowinfer runs` lists runs; --out names their folder")


def one_of(named: str, known: Sequence[Path], root: Path, kind: str, cure: str) -> Path:
    """Return the folder under a root, of those known, newest first, that a name, a beginning or `latest` means.

    Raises:
        UsageError: none or several.
    """
    if named != "latest":
        missing = f"no {kind} '{named}' in '{root}'"
        return named_folder(named, known, kinds=f"{kind}s", missing=missing, cure=cure)
    if not known:
        raise UsageError(f"no {kind}s in '{root}'", help="--out FOLDER names another folder")
    return known[0]


def named_folder(named: str, known: Sequence[Path], *, kinds: str, missing: str, cure: str) -> Path:
    """Return the one of some folders that a name, or a unique beginning of one, means.

    Args:
        kinds: what the folders are, in the message that a name means several.
        missing: the message that it means none.
        cure: its help where no name is near.
    Raises:
        UsageError: none or several.
    """
    matching = [one for one in known if one.name == named] or [one for one in known if one.name.startswith(named)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = ", ".join(one.name for one in matching[:4])
        raise UsageError(f"'{named}' means {len(matching)} {kinds}: {listed}", help="give more of the name")
    near = _near(named, [one.name for one in known])
    raise UsageError(missing, help=f"did you mean '{near}'?" if near else cure)


def _near(named: str, known: Sequence[str]) -> str | None:
    """Return the folder's name that a name may have meant: one that it is a part of, or begins with a slip of it.

    Names of unrelated runs have most of a date in common, so that being alike says nothing.
    """
    if len(named) < _LEAST_PART:
        return None
    if part := next((name for name in known if named in name), None):
        return part
    slips = {name: OSA.distance(named, name[: len(named)]) for name in known}
    nearest = min(slips, key=slips.__getitem__, default=None)
    return nearest if nearest is not None and slips[nearest] <= max(1, len(named) // _LETTERS_A_SLIP) else None
