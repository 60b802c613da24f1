"""flowinfer serve: every flow is a model of an OpenAI-compatible server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowinfer.cli.inputs import SetOption, ZooOption, complete_flow, flow_files, read_checked, settings
from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from flowinfer.spec import Flow

_LEAST_KEY = 8
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.")] = False,
) -> None:
    """Serve flows as models for every OpenAI client."""
    from flowinfer.cli.exec import batch_size
    from flowinfer.runs.finding import find_run

    size, rows = _bytes(max_body), batch_size(batch)
    keys = _keys(api_key_env, api_key_file)
    shown = None if run is None else find_run(run, Path("runs"))
    if not files and shown is None:
        raise UsageError("nothing to serve", help="name flow files, or a run with --run")
    flows = _flows(files or (), zoo, set_)
    try:
        from flowinfer.serving.desk import Limits
        from flowinfer.serving.run import Settings, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise UsageError("serve needs packages that are not installed", help="pip install 'flowinfer[serve]'") from None
    if not keys and host not in _LOOPBACK:
        _say(f"warning: anybody who reaches {host}:{port} can use this server; --api-key-env asks for a key")

    def ready(address: str) -> None:
        if not quiet:
            _say(_greeting(address, next(iter(flows), None), has_keys=bool(keys)))

    limits = Limits(questions=max_queue, tokens=max_queue_tokens, seconds=timeout, body_bytes=size)
    chosen = Settings(host, port, load, rows, "auto", limits, drain, keys, tuple(cors_origins or ()), run=shown)
    serve(flows, chosen, say=(lambda message: None) if quiet else _say, on_ready=ready)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _flows(files: Sequence[str], zoo: str | None, set_: Sequence[str] | None) -> dict[str, Flow]:
    """Return the checked flows by the names of their models.

    Raises:
        UsageError: two have one name.
        FlowError: one is refused.
    """
    found: dict[str, Flow] = {}
    for file in files:
        name, equals, path = file.partition("=")
        named = equals and not os.path.exists(file)
        for one in flow_files([path if named else file]):
            flow = read_checked(one, None, zoo, settings(set_))
            chosen = name if named else flow.name
            if chosen in found:
                raise UsageError(f"two flows are named '{chosen}'", help=f"name one of them: other={one}")
            found[chosen] = flow
    return found


def _keys(variable: str | None, file: Path | None) -> tuple[str, ...]:
    """Return the keys, and know them as secrets.

    Raises:
        UsageError: there are none where some were announced, or one is too short.
    """
    from flowinfer.output.secrets import learn

    if variable is not None and file is not None:
        raise UsageError("--api-key-env and --api-key-file say the same", help="leave one of them out")
    if variable is not None:
        place, text = f"the environment variable {variable}", os.environ.get(variable, "").replace(",", "\n")
    elif file is not None:
        try:
            place, text = str(file), file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--api-key-file {file}: cannot be read: {error}") from error
    else:
        return ()
    keys = tuple(key for key in map(str.strip, text.split("\n")) if key)
    for key in keys:
        learn(key)
    if not keys:
        raise UsageError(f"{place} holds no key")
    if any(len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UsageError(f"{place} holds a key that is none: at least {_LEAST_KEY} ASCII characters without spaces")
    return keys


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


def _greeting(address: str, model: str | None, *, has_keys: bool) -> str:
    """Return what to try first: the page, and a flow that is served."""
    if model is None:
        return f"ready: {address}"
    key, header = ("KEY", " -H 'Authorization: Bearer KEY'") if has_keys else ("NONE", "")
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "3 + 4 = ?"}}]}}'
    return (
        f"ready: {address}\n"
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'\n"
        f'  python: OpenAI(base_url="{address}/v1", api_key="{key}").chat.completions.create(model="{model}", '
        'messages=[{"role": "user", "content": "3 + 4 = ?"}])'
    )
