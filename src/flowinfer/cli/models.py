"""flowinfer models: zoos and their models, and those that other programs keep here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowinfer.cli.inputs import ZooOption

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowinfer.spec import ModelSpec
    from flowinfer.stores.listing import LocalModel

_KNOCK_SECONDS = 3.0
"""How long an endpoint may take to say that it is there."""


def command(
    zoo: ZooOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List models by zoo: what each name means, whether it is here (an endpoint: answers), how large it is.

    Without --zoo also those of Ollama, LM Studio, llama.cpp and the hub cache on this machine: `run` takes their names.
    """
    from flowinfer.registry import zoos
    from flowinfer.stores.listing import local_models
    from flowinfer.zoo import load_zoo, select_zoo

    chosen = select_zoo(explicit=zoo)
    named = [chosen] if zoo else [load_zoo(name) for name in zoos()]
    rows = [_row(one.name, spec) for one in named for spec in one.models.values()]
    local = [] if zoo else list(local_models())
    if json_:
        said = {"default": chosen.name, "why": chosen.why, "models": rows, "local": [asdict(one) for one in local]}
        print(json.dumps(said, ensure_ascii=False, indent=1))
        return
    from rich.table import Table

    from flowinfer.output.console import PlainConsole

    here = _knocked(spec for one in named for spec in one.models.values())
    table = Table()
    for name in ("zoo", "name", "means", "parameters", "weights", "here"):
        table.add_column(name, overflow="fold")
    for row in rows:
        figures = (row["parameters_shown"], row["weights_shown"], here.get(row["name"], row["here"]))
        table.add_row(row["zoo"], row["name"], _short(row["ref"]), *figures)
    PlainConsole().print(table)
    print(f"used by default: {chosen.name} ({chosen.why})")
    for row in rows:
        if row["problem"]:
            print(f"note: {row['name']}: {row['problem']}")
    if chosen.note:
        print(f"note: {chosen.note}")
    if not zoo:
        _show_local(local)


def _show_local(local: Sequence[LocalModel]) -> None:
    from rich.table import Table

    from flowinfer.output.console import PlainConsole

    if not local:
        print("no models of Ollama, LM Studio, llama.cpp or the hub cache here")
        return
    table = Table()
    for name in ("on this machine", "size", "weights", "parameters", "context", "chat template"):
        table.add_column(name, overflow="fold")
    for one in (one for one in local if not one.problem):
        context = f"{one.context_length:,}" if one.context_length else "?"
        count = f"{one.parameters / 1e6:,.1f} M" if one.parameters else "?"
        table.add_row(_short(one.ref), _size(one.num_bytes), one.stored, count, context, one.template or "none")
    PlainConsole().print(table)
    print("to ask them: flowinfer run MODEL... QUESTION")
    for one in (one for one in local if one.problem):
        print(f"note: {_short(one.ref)}: {one.problem}")


def _knocked(specs: Iterable[ModelSpec]) -> dict[str, str]:
    """Return by name whether endpoints answer; each is asked once, all at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    remote = [spec for spec in specs if spec.backend == "openai"]
    if not remote:
        return {}
    from flowinfer.backends.reaching import knock

    first = {(spec.address, spec.api_key_env): spec for spec in remote}
    with ThreadPoolExecutor(len(first)) as threads:
        found = dict(zip(first, threads.map(lambda spec: knock(spec, _KNOCK_SECONDS), first.values()), strict=True))
    return {spec.name: found[spec.address, spec.api_key_env] for spec in remote}


def _short(ref: str) -> str:
    """Name what ships with the package by its place there, and the user's own folders from home."""
    for folder, shown in ((Path(__file__).parents[2], ""), (Path.home(), "~/")):
        if Path(ref).is_relative_to(folder):
            return shown + Path(ref).relative_to(folder).as_posix()
    return ref


def _size(size: int | None) -> str:
    return "?" if not size else f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _row(zoo: str, spec: Any) -> dict[str, Any]:  # a ModelSpec
    from flowinfer.errors import LoadError
    from flowinfer.planning.needs import need_of
    from flowinfer.planning.plan import Need
    from flowinfer.zoo import damage

    problem = None
    try:
        if fault := damage(spec):
            raise fault
        need = need_of(spec)
    except LoadError as error:
        need, problem = Need(None, None, None, None, ""), error.message
    size = need.weight_bytes
    return {
        "zoo": zoo,
        "name": spec.name,
        "ref": spec.ref,
        "backend": spec.backend,
        "parameters": need.parameters,
        "parameters_shown": "?" if need.parameters is None else f"{need.parameters / 1e6:,.1f} M",
        "weight_bytes": size,
        "weights_shown": _size(size),
        "here": "damaged" if problem else "yes" if need.download_bytes == 0 else "no",
        "problem": problem,
    }
