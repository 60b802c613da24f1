"""flowinfer serve: every flow is a model of an OpenAI-compatible server."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowinfer.cli.exec import ReplicasOption, batch_size
from flowinfer.cli.inputs import (
    NiceOption,
    SetOption,
    ThreadsOption,
    ZooOption,
    complete_flow,
    flow_files,
    read_checked,
    settings,
)
from flowinfer.cli.keys import keys_in, keys_of_variable
from flowinfer.errors import FlowError, UsageError

if TYPE_CHECKING:
    from flowinfer.spec import Flow

_QUESTION = "Solve 3*x + 5 = 20 for x."
"""To try: the lab's models can answer it."""
_LEAST_KEY = 8
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that no other machine reaches."""


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]FILE...",
            help="Flows to serve, files or folders of them; each is a model under its name, else its file's.",
            autocompletion=complete_flow,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Open a run in the page: path, name, or latest; FILE may be left out."),
    ] = None,
    zoo: ZooOption = None,
    set_: SetOption = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = any that is free.")] = 8000,
    load: Annotated[
        Literal["all", "lazy"], typer.Option(help="Load models at the start, or each when it is first asked.")
    ] = "all",
    swap: Annotated[
        bool,
        typer.Option("--swap", help="Serve flows in turn whose models do not fit together; a change takes seconds."),
    ] = False,
    replicas: ReplicasOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS",
            help="Run the copies on the hosts of a Ray cluster, as many as have room if --replicas does not say.",
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="auto|N", help="Rows at once of each decoding loop.")] = "auto",
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most questions that wait or are being answered; more get 429.")
    ] = 512,
    max_queue_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most tokens that these may read and write, estimated.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 600.0,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest body of a request, such as 4MiB.")] = "4MiB",
    drain: Annotated[float, typer.Option(min=0.0, help="Seconds for what is under way when it is stopped.")] = 30.0,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Variable that holds the keys, separated by commas.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds the keys, one a line.")] = None,
    cors_origins: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A page's origin that may use the server in browsers.")
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write what is asked and answered to standard error.")
    ] = False,
    threads: ThreadsOption = None,
    nice: NiceOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.")] = False,
) -> None:
    """Serve flows as models for every OpenAI client."""
    from flowinfer.runs.finding import find_run

    size, rows = _bytes(max_body), batch_size(batch)
    keys = _keys(api_key_env, api_key_file)
    shown = None if run is None else find_run(run, Path("runs"))
    if not files and shown is None:
        raise UsageError("nothing to serve", help="name flow files, or a run with --run")
    copies = _copies(replicas, cluster, files or (), swap=swap)
    flows = checked_flows(files or (), zoo, set_)
    try:
        from flowinfer.serving.desk import Limits
        from flowinfer.serving.run import Settings, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise UsageError("serve needs packages that are not installed", help="pip install 'flowinfer[serve]'") from None
    if not keys and host not in LOOPBACK:
        _say(f"warning: anybody who reaches {host}:{port} can use this server; --api-key-env asks for a key")

    def ready(address: str, name: str | None) -> None:
        if not quiet:
            _say(_greeting(address, name, _shown_key(api_key_env, api_key_file)))

    limits = Limits(questions=max_queue, tokens=max_queue_tokens, seconds=timeout, body_bytes=size)
    origins = tuple(cors_origins or ())
    chosen = Settings(host, port, load, rows, "auto", limits, drain, keys, origins, swap, copies, cluster, shown)

    def say(message: str) -> None:
        if not quiet or message.startswith("warning: "):
            _say(message)

    serve(flows, chosen, say=say, on_ready=ready, log=_say if log_prompts else None)


def _copies(replicas: str | None, cluster: str | None, files: Sequence[str], *, swap: bool) -> int | Literal["auto"]:
    """Return how many copies of the flows' models there are to be.

    Raises:
        UsageError: that is no number, or there can be no copies.
    """
    wanted = batch_size(replicas or ("auto" if cluster else "1"), "--replicas")
    if wanted == 1 and cluster is None:
        return 1
    if swap:
        raise UsageError("--swap and --replicas do not go together: each replica has all models in memory at once")
    if not files:
        raise UsageError("--replicas and --cluster copy flows, and none is named", help="name flow files")
    return wanted


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def checked_flows(files: Sequence[str], zoo: str | None, set_: Sequence[str] | None) -> dict[str, Flow]:
    """Return the checked flows by the names of their models.

    Raises:
        UsageError: two have one name.
        FlowError: one is refused.
    """
    from flowinfer.spec import MODEL_NAMES, is_model_name

    found: dict[str, Flow] = {}
    for file in files:
        name, equals, path = file.partition("=")
        named = equals and not os.path.exists(file)
        for one, is_inside in flow_files([path if named else file]).items():
            flow = _checked(one, zoo, set_, may_state_none=is_inside)
            if flow is None:
                continue
            chosen = name if named else flow.model_name
            if not is_model_name(chosen):
                raise UsageError(f"{one} cannot be served as '{chosen}'", help=f"a model's name is {MODEL_NAMES}")
            if chosen in found:
                raise UsageError(f"two flows are named '{chosen}'", help=f"name one of them: other={one}")
            found[chosen] = flow
    return found


def _checked(file: str, zoo: str | None, set_: Sequence[str] | None, *, may_state_none: bool) -> Flow | None:
    """Return a checked flow; None where a file of a folder states none and is there to be imported."""
    try:
        return read_checked(file, None, zoo, settings(set_))
    except FlowError as error:
        if may_state_none and {diagnostic.code for diagnostic in error.diagnostics} == {"E0020"}:
            return None
        raise


def _keys(variable: str | None, file: Path | None) -> tuple[str, ...]:
    """Return the keys, and know them as secrets.

    Raises:
        UsageError: there are none where some were announced, or one is too short.
    """
    if variable is not None and file is not None:
        raise UsageError("--api-key-env and --api-key-file say the same", help="leave one of them out")
    if variable is not None:
        return keys_of_variable(variable, least=_LEAST_KEY)
    if file is None:
        return ()
    try:
        return keys_in(file.read_text("utf-8"), str(file), least=_LEAST_KEY)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file}: cannot be read: {error}") from error


def _bytes(text: str) -> int:
    """Return a size in bytes.

    Raises:
        UsageError: it is none.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "KiB": 1 << 10, "MiB": 1 << 20}
    digits = text.rstrip("BKMi")
    if not (
        digits.isascii() and digits.isdigit() and len(digits) < 10 and text[len(digits) :] in units and int(digits)
    ):
        raise UsageError(f"--max-body '{text}': expected a size such as 4MiB")
    return int(digits) * units[text[len(digits) :]]


def _greeting(address: str, model: str | None, key: str) -> str:
    """Return what to try first, to be pasted into a shell.

    Args:
        address: of the server.
        model: a name that it serves, if it serves any.
        key: a shell's word for a key; an empty one = none is asked for.
    """
    if model is None:
        return f"ready: {address}"
    header = f' -H "Authorization: Bearer {key}"' if key else ""
    name = json.dumps(model, ensure_ascii=False)
    messages = f'[{{"role": "user", "content": "{_QUESTION}"}}]'
    body = f'{{"model": {name}, "messages": {messages}}}'
    said = (
        f'import openai; client = openai.OpenAI(base_url="{address}/v1"); '
        f"answer = client.chat.completions.create(model={name}, messages={messages}); "
        "print(answer.choices[0].message.content)"
    )
    return (
        f"ready: {address} (a page to ask on)\n"
        f"curl {address}/v1/chat/completions -H 'Content-Type: application/json'{header} -d {shlex.quote(body)}\n"
        f'OPENAI_API_KEY="{key or "none"}" python -c {shlex.quote(said)}'
    )


def _shown_key(variable: str | None, file: Path | None) -> str:
    """Return a shell's word for the first of the keys, which is not shown itself."""
    if variable is not None:
        return f"${{{variable}%%,*}}"
    return f"$(head -n 1 {shlex.quote(str(file))})" if file is not None else ""
