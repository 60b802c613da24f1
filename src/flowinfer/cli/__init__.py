"""The command line: one light module per command; heavy imports happen inside the commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from flowinfer.cli import (
    check,
    compare,
    datasets,
    doctor,
    exec,
    explain,
    fmt,
    graph,
    init,
    lab,
    models,
    plan,
    profile,
    recommend,
    report,
    runs,
    score,
    show,
    sweep,
)
from flowinfer.cli.inputs import show_error
from flowinfer.errors import FlowError, FlowInferError

app = typer.Typer(
    name="flowinfer",
    help="Wire language models in series and in parallel; measure what it gains and what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS = (
    *(init, check, fmt, explain, graph, plan, exec, profile, score, runs, show),
    *(sweep, report, compare, recommend, models, datasets, doctor),
)
for module in _COMMANDS:
    app.command(name=module.__name__.rpartition(".")[2])(module.command)

app.add_typer(lab.app, name="lab")


def _version(is_wanted: bool) -> None:
    if is_wanted:
        from flowinfer import __version__
        from flowinfer.versions import banner

        print(banner(__version__))
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Show the versions of flowinfer, torch, transformers and Python, and exit.",
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and turn users' mistakes into messages and exit codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no message may fail for want of a character
    try:
        app(args=_with_defaults(list(sys.argv[1:] if arguments is None else arguments)), prog_name="flowinfer")
    except FlowError as error:
        from flowinfer.diagnostics import print_diagnostics

        print_diagnostics(error.diagnostics)
        sys.exit(error.exit_code)
    except FlowInferError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


def _with_defaults(arguments: list[str]) -> list[str]:
    """Let `--resume` stand alone: it then means the latest run or sweep."""
    completed: list[str] = []
    for index, argument in enumerate(arguments):
        completed.append(argument)
        is_last = index == len(arguments) - 1
        if argument == "--resume" and (is_last or arguments[index + 1].startswith("-")):
            completed.append("latest")
    return completed
