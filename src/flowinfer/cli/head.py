"""flowinfer head: one model as a head for flows on other hosts."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from flowinfer.cli.inputs import MODELS, ZooOption, checked_text
from flowinfer.cli.keys import keys_of_variable
from flowinfer.cli.serve import LOOPBACK
from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowinfer.backends.base import Session, TokenModel
    from flowinfer.planning.plan import Plan
    from flowinfer.remote.server import HeadServer

_LEAST_KEY = 16


def command(
    model: Annotated[str, typer.Argument(help="Name of the zoo's, a folder, a hub id, a .gguf file or ollama:NAME.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address to listen at; port 0 = any that is free.")
    ] = "127.0.0.1:7070",
    key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Variable that holds the key which clients must know.")
    ] = None,
    zoo: ZooOption = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda:N, for a model that is no name of the zoo's.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; a GGUF file has its own.")] = "auto",
    rows: Annotated[int, typer.Option(min=1, max=4096, help="Most rows of a client's decoding loop.")] = 64,
    direct: Annotated[
        bool,
        typer.Option(
            "--direct", help="Send whole distributions by NCCL (GPUs) or gloo (CPUs): clients reach more ports."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.")] = False,
) -> None:
    """Load a model and let flows elsewhere use it as a head: device="HOST:PORT" in their model's block."""
    from flowinfer.language.joined import FORMS, is_model
    from flowinfer.language.nearness import near_or_all
    from flowinfer.machine import this_machine
    from flowinfer.planning.placement import ready
    from flowinfer.registry import backends
    from flowinfer.remote.server import HeadServer
    from flowinfer.remote.wire import parted, shown_place
    from flowinfer.spec import place_help
    from flowinfer.zoo import select_zoo

    place = parted(listen)
    if place is None:
        hint = place_help(listen) or "127.0.0.1:7070, for one"
        raise UsageError(f"--listen {listen}: expected HOST:PORT", help=hint)
    host, port = place
    key = b"" if key_env is None else _key(key_env)
    if not key and host not in LOOPBACK:
        raise UsageError(
            f"who reaches {host}:{port} could use this head, and nobody would have to show a key",
            help="--key-env VARIABLE names the variable that holds one",
        )
    names = select_zoo(explicit=zoo).models
    if model not in names and os.path.isfile(model) and not is_model(model):
        told = "a flow's file; a head is one model" if model.endswith(".flow") else "a file, and no model's"
        raise UsageError(f"'{model}' is {told}", help=FORMS)
    if model not in names and "/" not in model and not is_model(model):
        hint = near_or_all(model, list(names), "the zoo has")
        raise UsageError(f"no model '{model}': neither a name of the zoo nor a folder, file or hub id", help=hint)
    if model in names and (device, dtype) != ("auto", "auto"):
        raise UsageError(
            f"--device and --dtype say how a folder or hub id is loaded, and '{model}' is a name of the zoo's",
            help="say it in the zoo: --zoo FILE.toml",
        )
    text = model if model in names else _declared(model, device, dtype)
    checked = checked_text(text, MODELS, Path(), zoo, None)
    say = _silent if quiet else _say
    server = HeadServer(key, say=say)
    at = shown_place(*_taken(server, host, port))
    try:
        plan = ready(checked, this_machine())
        (name,) = plan.models
        if backends()[plan.models[name].backend].is_elsewhere:
            raise UsageError(f"'{name}' lies elsewhere itself", help="serve it where its weights are")
        say(f"loading '{name}'; who comes to {at} waits")
        _serve(server, plan, rows, is_direct=direct, ready=lambda: _tell(plan, at, key_env, say))
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.close()


def _taken(server: HeadServer, host: str, port: int) -> tuple[str, int]:
    """Let a server take its address; return it.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        return server.listen(host, port)
    except UnicodeError:  # a label of the name that is empty or too long
        raise UsageError(f"cannot listen at {host}:{port}: '{host}' is no name of a host") from None
    except OSError as error:
        is_of_system = error.errno is not None and error.errno > 0  # that of a name that nobody knows is not
        told = os.strerror(error.errno or 0) if is_of_system else error.strerror or str(error)
        raise UsageError(f"cannot listen at {host}:{port}: {told.lower()}", help="another port, or 0") from None


def _serve(server: HeadServer, plan: Plan, rows: int, *, is_direct: bool, ready: Callable[[], None]) -> None:
    """Load a plan's one model and answer by it until an interrupt comes."""
    door = threading.Thread(target=server.serve, daemon=True)
    door.start()  # who comes while torch is imported is told to wait, too
    from flowinfer.engine.base import Observer
    from flowinfer.engine.models import ModelPool
    from flowinfer.remote.head import Head

    pool, (name,) = ModelPool(), plan.models
    try:
        loaded = cast("TokenModel", pool.get(plan, name, Observer()))
        opened = _packed(plan, loaded, rows)
        server.hold(Head(loaded, plan.models[name].ref, rows=rows, open_session=opened, is_direct=is_direct))
        ready()
        door.join()
    finally:
        server.close()
        pool.close()


def _tell(plan: Plan, at: str, key_env: str | None, say: Callable[[str], None]) -> None:
    """Say that the head is ready, and how a flow names it."""
    from flowinfer.language.texts import quote

    _say(f"ready: {at}")
    (name,) = plan.models
    held = f' api_key_env="{key_env}"' if key_env else ""
    shown = name if name.isidentifier() else quote(name)
    say(f'a flow uses it so: model {shown} = "{os.path.basename(plan.models[name].ref)}" {{ device="{at}"{held} }}')


def _declared(model: str, device: str, dtype: str) -> str:
    """Return the text of a flow that is one model, with what is said of it."""
    from flowinfer.language.joined import is_model, meant, short_name

    is_nowhere = model.startswith((".", "/", "~")) and not os.path.exists(os.path.expanduser(model))
    ref, is_gguf = meant(model) if is_nowhere or is_model(model) else (model, False)
    said = {"backend": "gguf" if is_gguf else "auto", "device": json.dumps(device), "dtype": dtype}
    options = " ".join(f"{option}={value}" for option, value in said.items() if value.strip('"') != "auto")
    name = json.dumps(short_name(model))
    return f"model {name} = {json.dumps(ref)} {{ {options} }}\n{name}"


def _packed(plan: Plan, model: TokenModel, rows: int) -> Callable[[], Session] | None:
    """Return what opens sessions over packed tokens, where the model has them; None = its own sessions serve.

    Each takes of a GPU's memory what its rows need, and leaves a fifth of what is free where that is less.
    """
    from flowinfer.engine.decoding import free_cached
    from flowinfer.engine.loops.packing import runners_of, session_maker

    if model.device.type == "cpu" and not model.is_exact:
        return None
    runners = runners_of([model])
    if isinstance(runners, str):
        return None

    def opened() -> Session:
        if model.device.type == "cuda":
            free_cached()  # what other clients have left counts as free
        return session_maker(plan.steps[0], [model], runners, rows)()[0]

    return opened


def _key(variable: str) -> bytes:
    """Return the key that a variable holds.

    Raises:
        UsageError: it holds none, a short one, or several.
    """
    cure = f"export {variable}=\"$(python -c 'import secrets; print(secrets.token_urlsafe(32))')\""
    key, *more = keys_of_variable(variable, least=_LEAST_KEY, help=cure)
    if more:
        raise UsageError(f"the environment variable {variable} holds several keys, and a head has one", help=cure)
    return key.encode()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _silent(message: str) -> None:
    pass
