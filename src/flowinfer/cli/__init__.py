"""The command line: one light module per command; heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from flowinfer.errors import FlowError, FlowInferError

app = typer.Typer(
    name="flowinfer",
    help="Wire language models in series and in parallel; measure what it gains and costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Each command module registers itself on `app` when imported.


def run() -> NoReturn:
    """Run the command line and turn users' mistakes into messages and exit codes."""
    try:
        app()
    except FlowError as error:
        from flowinfer.diagnostics import print_diagnostics

        print_diagnostics(error.diagnostics)
        sys.exit(error.exit_code)
    except FlowInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.help:
            print(f"  = help: {error.help}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
