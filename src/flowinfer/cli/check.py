"""flowinfer check: all errors of a flow at once, without models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flowinfer.cli.inputs import (
    Expression,
    SetOption,
    ZooOption,
    complete_flow,
    flow_files,
    pairs,
    read_input,
    show_error,
    show_untold,
)
from flowinfer.errors import Diagnostic, FlowError, UnreadableFlow, UsageError

_FORMS = ("full", "concise", "github")


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help=".flow files, folders of them, or packaged pipelines' names; '-' is standard input.",
            autocompletion=complete_flow,
        ),
    ] = None,
    expression: Expression = None,
    zoo: ZooOption = None,
    set_: SetOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the diagnostics as a JSON list.")] = False,
    output_format: Annotated[str, typer.Option(help="full, concise or github.")] = "full",
) -> None:
    """Check flows: every error and warning, sorted by place. Exit 1 if there are errors."""
    from flowinfer.language.diagnostics import print_diagnostics, to_json

    if output_format not in _FORMS:
        raise UsageError(f"--output-format '{output_format}'", help=f"one of: {', '.join(_FORMS)}")
    if not files and expression is None:
        raise UsageError("give .flow files, or a flow with -e", help="flowinfer check -e 'A -> (B | C)'")
    named: list[tuple[str | None, str | None, bool]] = [
        (file, None, is_inside) for file, is_inside in flow_files(files or ()).items()
    ]
    if expression is not None:
        named.append((None, expression, False))
    found: list[Diagnostic] = []
    num_refused = num_unread = num_untold = 0
    for file, text, is_inside in named:
        try:
            found += _check(file, text, zoo, pairs("--set", set_))
        except UnreadableFlow as error:
            show_error(error)
            num_unread += 1
        except FlowError as error:
            states_none = {diagnostic.code for diagnostic in error.diagnostics} == {"E0020"}
            if is_inside and states_none:
                continue  # it is there to be imported
            found += error.diagnostics
            num_untold += error.num_untold
            num_refused += 1
    if json_:
        print(json.dumps([to_json(diagnostic) for diagnostic in found], ensure_ascii=False, indent=1))
    else:
        print_diagnostics(found, output_format, file=sys.stdout)
        show_untold(num_untold)
        _sum_up(len(named) - num_unread, num_refused, num_unread)
    raise typer.Exit(2 if num_unread else 1 if num_refused else 0)


def _check(
    file: str | None, expression: str | None, zoo: str | None, overrides: dict[str, str]
) -> tuple[Diagnostic, ...]:
    from flowinfer.language.check import check

    text, name, folder = read_input(file, expression)
    return check(text, file=name, zoo=zoo, overrides=overrides, base=Path(folder)).warnings


def _sum_up(count: int, refused: int, unread: int) -> None:
    flows = "1 flow" if count == 1 else f"{count} flows"
    bad = [f"{number} {what}" for number, what in ((refused, "refused"), (unread, "not read")) if number]
    print(f"{flows} checked, {', '.join(bad) or 'all good'}", file=sys.stderr)
