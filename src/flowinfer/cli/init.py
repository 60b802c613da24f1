"""flowinfer init: write the packaged pipelines into a folder, to try and to change."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to; made if it is not there.")] = Path(
        "pipelines"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write example pipelines into a folder. Files that are there stay as they are."""
    from flowinfer.language import examples

    written = examples.write(folder, replacing=force)
    for path in written:
        print(f"wrote {path}")
    for source in examples.files():
        if folder / source.name not in written:
            print(f"kept {folder / source.name}, which is there (--force writes the packaged '{source.stem}' over it)")
    file = shlex.quote(str(folder / "s2p.flow"))
    print("try:")
    print(f"  flowinfer graph {file}")
    print(f"  flowinfer exec {file} --dataset ceval --limit 20")
