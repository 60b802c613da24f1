"""What several commands take: a flow from a file, an expression or standard input; NAME=VALUE pairs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowinfer.errors import Diagnostic, FlowError, FlowInferError, LoadError, UnreadableFlow, UsageError
from flowinfer.files import MOST_FLOW_BYTES

if TYPE_CHECKING:
    from flowinfer.spec import Flow


MODELS = "<models>"
"""Name in messages of a flow that is made of models."""


def complete_flow(incomplete: str) -> list[str]:
    """Return the flow files, folders and packaged pipelines whose names begin so, for the shell."""
    from flowinfer.language.examples import known

    head, _, _ = incomplete.rpartition("/")
    found = sorted(Path(head or ("/" if incomplete.startswith("/") else ".")).glob("*"))
    files = [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix == ".flow"]
    return [name for name in (*files, *known()) if name.startswith(incomplete)]


FlowFile = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]",
        help="A .flow file, a packaged pipeline's name, or MODEL+MODEL (see run); '-' reads standard input.",
        autocompletion=complete_flow,
    ),
]
Expression = Annotated[
    str | None,
    typer.Option("-e", "--expression", metavar="FLOW", help="The flow itself, e.g. 'Qwen -> (Yi | Ds)'."),
]
ZooOption = Annotated[str | None, typer.Option("--zoo", metavar="NAME|FILE", help="Where model names come from.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a param of the flow, or an option of its defaults."),
]


def _use_threads(count: int | None) -> int | None:
    if count is not None:
        from flowinfer.machine import use_threads

        use_threads(count)
    return count


def _be_nice(is_wanted: bool) -> bool:
    if is_wanted:
        from flowinfer.machine import be_nice

        be_nice()
    return is_wanted


ThreadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", callback=_use_threads, help="Processors to compute with; else all.")
]
NiceOption = Annotated[
    bool, typer.Option("--nice", callback=_be_nice, help="Let other programs go first; use half of the processors.")
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        "--prompts", metavar="SET", help="Words to ask with: paper (Chinese), paper-table2, en, plain or none."
    ),
]


def read_input(file: str | None, expression: str | None) -> tuple[str, str, Path]:
    """Return text, name for messages, and folder of a flow.

    Raises:
        UsageError: neither or both were given, or the file cannot be read.
    """
    from flowinfer.language.check import read_flow
    from flowinfer.language.examples import located
    from flowinfer.language.joined import flow_of, models_in

    if (file is None) == (expression is None):
        raise UsageError("give a .flow file, or the flow itself with -e", help="flowinfer check -e 'A -> (B | C)'")
    if expression is not None:
        _refuse_bytes("-e", expression)
        return expression, "<expression>", Path()
    assert file is not None, "one of the two was given"
    if file == "-":
        return read_stdin(), "<stdin>", Path()
    if models := models_in(file):
        return flow_of(models), MODELS, Path()
    path = located(file)
    return read_flow(path), str(path), path.parent


def flow_files(named: Sequence[str]) -> dict[str, bool]:
    """Return the files that some names mean, each once, a folder for all .flow files in and below it; models stay.

    Returns:
        Name -> whether it was found in a folder.
    Raises:
        UsageError: a folder holds none.
    """
    from flowinfer.language.joined import models_in

    found: dict[str, bool] = {}
    for name in named:
        if not os.path.isdir(name) or models_in(name):
            found[name] = False
            continue
        inside = sorted(str(path) for path in Path(name).rglob("*.flow") if os.path.isfile(path))
        if not inside:
            raise UsageError(f"no .flow files in '{name}'")
        found |= {path: True for path in inside if path not in found}
    return found


def read_stdin() -> str:
    """Return standard input as UTF-8 text, whatever the locale.

    Raises:
        UnreadableFlow: it cannot be read, is not UTF-8, or too large.
    """
    try:
        data = sys.stdin.buffer.read(MOST_FLOW_BYTES + 1)
        if len(data) > MOST_FLOW_BYTES:
            raise UnreadableFlow(f"<stdin>: larger than {MOST_FLOW_BYTES / 1e6:g} MB")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFlow(f"<stdin>: not UTF-8 at byte {error.start}", help="pipe it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise UnreadableFlow(f"<stdin>: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_checked(
    file: str | None,
    expression: str | None,
    zoo: str | None,
    overrides: Mapping[str, str] | None,
) -> Flow:
    """Return the checked flow and print its warnings on standard error.

    Raises:
        FlowError: with all errors.
        UsageError: see `read_input` and `check`.
    """
    return checked_text(*read_input(file, expression), zoo, overrides)


def checked_text(text: str, name: str, folder: Path, zoo: str | None, overrides: Mapping[str, str] | None) -> Flow:
    """Return the checked flow of a text and print its warnings; see `read_checked`.

    Args:
        name: of the text in messages.
        folder: that its imports are relative to.
    """
    from flowinfer.language.check import check

    flow = check(text, file=name, zoo=zoo, overrides=overrides, base=folder)
    if name == MODELS and (missing := [warning for warning in flow.warnings if warning.code == "W0101"]):
        raise LoadError(missing[0].message, help=missing[0].help)  # nobody has written this text
    warn(flow.warnings)
    return flow


def settings(set_: Sequence[str] | None, prompts: str | None = None) -> dict[str, str] | None:
    """Return what --set and --prompts say, None if nothing.

    Raises:
        UsageError: a --set has no '=', there is no such prompt set, or both name one.
    """
    if prompts is None:
        return None if set_ is None else pairs("--set", set_)
    from flowinfer.language.nearness import near_or_all
    from flowinfer.language.prompts import PROMPT_SETS

    found = pairs("--set", set_)
    if "prompts" in found:
        raise UsageError("--prompts and --set prompts=... say the same", help="leave one of them out")
    if prompts not in PROMPT_SETS:
        cure = near_or_all(prompts, PROMPT_SETS, "prompt sets")
        raise UsageError(f"--prompts '{prompts}': unknown prompt set", help=cure)
    return found | {"prompts": prompts}


def show_flow_error(error: FlowError) -> None:
    """Print a refused flow's diagnostics on standard error, and how many are left out."""
    from flowinfer.language.diagnostics import print_diagnostics

    print_diagnostics(error.diagnostics)
    show_untold(error.num_untold)


def show_untold(number: int) -> None:
    """Say on standard error how many errors are not shown."""
    if number:
        print(f"... and {number} more error{'s' if number > 1 else ''}", file=sys.stderr)


def show_error(error: FlowInferError) -> None:
    """Print an error and its cure on standard error."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.help:
        print(f"  = help: {error.help}", file=sys.stderr)


def warn(warnings: Sequence[Diagnostic]) -> None:
    """Print warnings on standard error; what a data set must have is told where it is loaded."""
    if told := [warning for warning in warnings if warning.code != "W0302"]:
        from flowinfer.language.diagnostics import print_diagnostics

        print_diagnostics(told)


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Split NAME=VALUE texts.

    Raises:
        UsageError: one has no '='.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if option != "--data":  # a path may be any bytes
            _refuse_bytes(option, text)
        if not equals or not name.strip():
            raise UsageError(f"{option} '{text}': expected NAME=VALUE")
        found[name.strip()] = value
    return found


def whole_number(option: str, text: str, *, or_else: str = "") -> int:
    """Return a number that counts something.

    Raises:
        UsageError: it is none, or more than there can be.
    """
    if re.fullmatch("[0-9]{1,6}", text) and int(text) >= 1:
        return int(text)
    shown = text if len(text) <= 40 else text[:36] + " ..."
    raise UsageError(f"{option} '{shown}': expected {or_else}a whole number from 1 to 999999")


def _refuse_bytes(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{option}: not UTF-8 at character {error.start + 1}") from error
