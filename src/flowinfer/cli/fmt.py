"""flowinfer fmt: one canonical layout, comments kept."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer

from flowinfer.cli.inputs import flow_files, read_stdin, show_error, show_flow_error
from flowinfer.errors import FlowError, UnreadableFlow
from flowinfer.files import write_asked


def command(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help=".flow files, or folders of them; '-' formats standard input."),
    ],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if a file would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; show what would change.")] = False,
) -> None:
    """Rewrite flows in the canonical layout, with ASCII operators and punctuation."""
    from flowinfer.language.check import read_flow
    from flowinfer.language.formatting import format_text

    num_changed = num_refused = num_unread = 0
    for file in flow_files(files):
        is_stdin = file == "-"
        try:
            before = read_stdin() if is_stdin else read_flow(Path(file))
        except UnreadableFlow as error:
            show_error(error)
            num_unread += 1
            continue
        try:
            after = format_text(before, file="<stdin>" if is_stdin else file)
        except FlowError as error:
            show_flow_error(error)
            num_refused += 1
            continue
        if is_stdin and not (check or diff):
            sys.stdout.write(after)
            continue
        if before == after:
            continue
        num_changed += 1
        if diff:
            sys.stdout.writelines(
                difflib.unified_diff(before.splitlines(True), after.splitlines(True), file, f"{file} (formatted)")
            )
        elif check:
            print(f"would reformat {file}", file=sys.stderr)
        else:
            write_asked(Path(file), after.encode())
            print(f"reformatted {file}", file=sys.stderr)
    raise typer.Exit(2 if num_unread else 1 if num_refused or (num_changed and (check or diff)) else 0)
