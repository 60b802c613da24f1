"""The pipelines that come with the package: found by name where no file has it, and written out by `flowinfer init`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from flowinfer.errors import DataError, UnreadableFlow


def folder() -> Path:
    """Return where they are, in the package or in a checkout."""
    inside = Path(__file__).parents[1] / "pipelines"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "pipelines"


def known() -> dict[str, Path]:
    """Return the packaged pipelines by name. Example: "s2p" -> .../pipelines/s2p.flow."""
    return {path.stem: path for path in sorted(folder().glob("*.flow"))}


def files() -> list[Path]:
    """Return the packaged pipelines and the tables that they pick by."""
    return sorted(path for kind in ("*.flow", "*.json") for path in folder().glob(kind))


def located(given: str) -> Path:
    """Return the file of that name, or the packaged pipeline of that name, which is told on standard error.

    Raises:
        UnreadableFlow: it is one word, and there is neither; others are for `read_flow` to refuse.
    """
    path = Path(given)
    is_name = path.name == given and path.suffix in ("", ".flow")
    if not is_name or os.path.lexists(path):  # also a link that leads nowhere
        return path
    packaged = known()
    if path.stem in packaged:
        told = f"note: no file '{given}' here: the packaged pipeline '{path.stem}' (`flowinfer init` writes it out)"
        print(told, file=sys.stderr)
        return packaged[path.stem]
    names = {name: name for name in packaged} | {one.stem: one.name for one in sorted(Path().glob("*.flow"))}
    near = get_close_matches(path.stem, names, n=1)
    if not near and not re.fullmatch(r"[\w.-]+", given):  # a flow itself, perhaps
        return path
    cure = f"did you mean '{names[near[0]]}'?" if near else f"packaged pipelines: {', '.join(packaged)}"
    raise UnreadableFlow(f"cannot read '{given}': no such file or directory", help=cure)


def write(to: Path, *, replacing: bool) -> Sequence[Path]:
    """Write the packaged pipelines into a folder and return those written.

    Args:
        to: the folder, made if need be.
        replacing: whether files that are there and differ are written over; else they are left.
    Raises:
        DataError: the folder cannot be written.
    """
    written = []
    try:
        to.mkdir(parents=True, exist_ok=True)
        for source in files():
            target, text = to / source.name, source.read_bytes()
            if replacing or not target.exists():
                target.write_bytes(text)
                written.append(target)
    except OSError as error:
        raise DataError(f"cannot write into '{to}': {(error.strerror or str(error)).lower()}") from error
    return written
