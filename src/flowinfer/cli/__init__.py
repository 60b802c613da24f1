"""The command line: one light module per command; heavy imports happen inside the commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from flowinfer.cli import (
    chat,
    check,
    cluster,
    compare,
    datasets,
    doctor,
    exec,
    explain,
    fmt,
    graph,
    head,
    init,
    lab,
    models,
    plan,
    profile,
    recommend,
    report,
    route,
    runs,
    score,
    serve,
    show,
    sweep,
    together,
    tune,
)
from flowinfer.cli.inputs import show_error, show_flow_error
from flowinfer.errors import FlowError, FlowInferError, ReaderGone

app = typer.Typer(
    name="flowinfer",
    help="Wire language models in series and in parallel; measure what it gains and what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """A command whose help shows types in a user's words: not `<list[str]>`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # click's or typer's own, by version
        """Write the options into the formatter."""
        write = formatter.write_dl

        def write_plainly(rows: Sequence[tuple[str, str]], *arguments: Any, **options: Any) -> None:
            write([(re.sub(r" <list\[.*?\]>", "", term), text) for term, text in rows], *arguments, **options)

        formatter.write_dl = write_plainly
        super().format_options(ctx, formatter)


_MINUS = re.compile(r"--?[\d\s]|-[^-].*\s", re.DOTALL)
"""How a text begins that a minus begins and that is no option; click takes it for a text behind a space."""
_NAMES = {"together": "run"}
"""Of commands that are not called as their modules."""
_COMMANDS = (
    together,
    *(init, check, fmt, explain, graph, plan, exec, chat, serve, head, profile, score, runs, show),
    *(sweep, report, compare, recommend, tune, route, models, datasets, cluster, doctor),
)
for module in _COMMANDS:
    name = module.__name__.rpartition(".")[2]
    app.command(name=_NAMES.get(name, name), cls=_Command)(module.command)

app.command(name="lab", hidden=True, context_settings={"ignore_unknown_options": True})(lab.command)


def _version(is_wanted: bool) -> None:
    if is_wanted:
        from flowinfer import __version__
        from flowinfer.backends.versions import banner

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
    try:
        app(args=_understood(list(sys.argv[1:] if arguments is None else arguments)), prog_name="flowinfer")
    except FlowError as error:
        show_flow_error(error)
        sys.exit(error.exit_code)
    except ReaderGone:
        sys.exit(0)
    except FlowInferError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _understood(arguments: list[str]) -> list[str]:
    """Let `--resume` stand alone, which then means the latest run or sweep, and a question to `run` begin with '-'."""
    completed: list[str] = []
    asks = arguments[:1] == ["run"]
    for index, argument in enumerate(arguments):
        completed.append(f" {argument}" if asks and _MINUS.match(argument) else argument)
        is_last = index == len(arguments) - 1
        if argument == "--resume" and (is_last or arguments[index + 1].startswith("-")):
            completed.append("latest")
    return completed
