"""flowinfer chat: a conversation with a flow in the terminal."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from flowinfer.cli.elsewhere import server_of
from flowinfer.cli.inputs import (
    Expression,
    FlowFile,
    NiceOption,
    PromptsOption,
    SetOption,
    ThreadsOption,
    ZooOption,
    read_checked,
    settings,
)
from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowinfer.serving.partner import Partner
    from flowinfer.spec import Flow


def command(
    file: FlowFile = None,
    expression: Expression = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the system says: {system} in prompts.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Talk to a running server (flowinfer serve); FILE is then the flow's name there.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="With --url: variable that holds the server's key.")
    ] = None,
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
    threads: ThreadsOption = None,
    nice: NiceOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only answers and what is wrong.")] = False,
) -> None:
    """Talk with a flow: /help tells how; piped, each line is a question."""
    from flowinfer.cli.chatting import Chat

    def say(message: str) -> None:
        if not quiet:
            print(message, file=sys.stderr, flush=True)

    server = server_of(url, file, api_key_env)
    if server is None:
        if api_key_env is not None:
            raise UsageError("--api-key-env says how to reach a server", help="--url http://host:8000")
        partner, notes = _here(file, expression, zoo, settings(set_, prompts), say, quiet=quiet)
    else:
        if any(given is not None for given in (expression, zoo, set_, prompts)):
            cure = "leave them out, or chat without --url"
            raise UsageError("-e, --zoo, --set and --prompts are the server's own with --url", help=cure)
        from flowinfer.serving.there import There

        partner, notes = There(server), ()
    is_typed = sys.stdin.isatty()
    chat = Chat(partner, {} if system is None else {"system": system}, is_typed=is_typed)
    if is_typed and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_answer)
    if is_typed:
        notes = (*notes, f"talking with {partner.flow}; /help tells what one can say, Ctrl-D leaves")
    for note in notes:
        say(note)
    try:
        num_failed = chat.run()
    finally:
        partner.close()
    if num_failed and not is_typed:
        raise typer.Exit(4)


def _here(
    file: str | None,
    expression: str | None,
    zoo: str | None,
    overrides: Mapping[str, str] | None,
    say: Callable[[str], None],
    *,
    quiet: bool,
) -> tuple[Partner, tuple[str, ...]]:
    """Return an engine in this process with a flow's models loaded, and what is to be known of it."""
    if file == "-":
        raise UsageError("standard input cannot be both the flow and the questions", help="give the flow with -e")
    flow = read_checked(file, expression, zoo, overrides)

    def find(name: str) -> Flow:
        return read_checked(name, None, zoo, overrides)

    from flowinfer.cli.exec import read_ahead

    read_ahead(flow)
    from flowinfer.runs.live import waiting_shown
    from flowinfer.serving.here import Here

    with nullcontext() if quiet else waiting_shown():
        partner = Here(flow, find, say)
    return partner, tuple(filter(None, (flow.words, flow.zoo_note and f"note: {flow.zoo_note}")))


def _end_answer(number: int, frame: object) -> NoReturn:
    from flowinfer.cli.chatting import AnswerEnded

    raise AnswerEnded
