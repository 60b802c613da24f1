"""What several commands take: a flow from a file, an expression or standard input; NAME=VALUE pairs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowinfer.errors import Diagnostic, FlowInferError, UnreadableFlow, UsageError

if TYPE_CHECKING:
    from flowinfer.spec import Flow

FlowFile = Annotated[str | None, typer.Argument(metavar="[FILE]", help="A .flow file; '-' reads standard input.")]
Expression = Annotated[
    str | None,
    typer.Option("-e", "--expression", metavar="FLOW", help="The flow itself, e.g. 'Qwen -> (Yi | Ds)'."),
]
ZooOption = Annotated[str | None, typer.Option("--zoo", metavar="NAME|FILE", help="Where model names come from.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a param of the flow, or an option of its defaults."),
]

PromptsOption = Annotated[
    str | None,
    typer.Option("--prompts", metavar="SET", help="Words to ask with: paper (Chinese), paper-table2, en or plain."),
]


def read_input(file: str | None, expression: str | None) -> tuple[str, str, Path]:
    """Return text, name for messages, and folder of a flow.

    Raises:
        UsageError: neither or both were given, or the file cannot be read.
    """
    from flowinfer.check import read_flow

    if (file is None) == (expression is None):
        raise UsageError("give a .flow file, or the flow itself with -e", help="flowinfer check -e 'A -> (B | C)'")
    if expression is not None:
        return expression, "<expression>", Path()
    assert file is not None, "one of the two was given"
    if file == "-":
        return read_stdin(), "<stdin>", Path()
    return read_flow(Path(file)), file, Path(file).parent


def read_stdin() -> str:
    """Return standard input as UTF-8 text, whatever the locale.

    Raises:
        UnreadableFlow: it is not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFlow(f"<stdin>: not UTF-8 at byte {error.start}", help="pipe the flow as UTF-8") from error


def read_checked(
    file: str | None,
    expression: str | None,
    zoo: str | None,
    sets: Sequence[str] | None,
    prompts: str | None = None,
) -> Flow:
    """Return the checked flow and print its warnings on standard error.

    Raises:
        FlowError: with all errors.
        UsageError: see `read_input` and `pairs`.
    """
    from flowinfer.check import check

    text, name, folder = read_input(file, expression)
    overrides = pairs("--set", sets) | ({} if prompts is None else {"prompts": prompts})
    flow = check(text, file=name, zoo=zoo, overrides=overrides, base=folder)
    warn(flow.warnings)
    return flow


def show_error(error: FlowInferError) -> None:
    """Print an error and its cure on standard error."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.help:
        print(f"  = help: {error.help}", file=sys.stderr)


def warn(warnings: Sequence[Diagnostic]) -> None:
    """Print warnings on standard error."""
    if warnings:
        from flowinfer.diagnostics import print_diagnostics

        print_diagnostics(warnings)


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Split NAME=VALUE texts.

    Raises:
        UsageError: one has no '='.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{option} '{text}': expected NAME=VALUE")
        found[name.strip()] = value
    return found
