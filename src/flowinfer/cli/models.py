"""flowinfer models: zoos and their models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flowinfer.cli.inputs import ZooOption


def command(
    zoo: ZooOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List models by zoo: what each name means, whether it is here, how large it is."""
    from flowinfer.registry import zoos
    from flowinfer.zoo import load_zoo, select_zoo

    chosen = select_zoo(explicit=zoo)
    named = [chosen] if zoo else [load_zoo(name) for name in zoos()]
    rows = [_row(one.name, spec) for one in named for spec in one.models.values()]
    if json_:
        print(json.dumps({"default": chosen.name, "why": chosen.why, "models": rows}, ensure_ascii=False, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("zoo", "name", "means", "parameters", "weights", "here"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            row["zoo"], row["name"], _short(row["ref"]), row["parameters_shown"], row["weights_shown"], row["here"]
        )
    Console(soft_wrap=True, highlight=False).print(table)
    print(f"used by default: {chosen.name} ({chosen.why})")
    for row in rows:
        if row["problem"]:
            print(f"note: {row['name']}: {row['problem']}")
    if chosen.note:
        print(f"note: {chosen.note}")


def _short(ref: str) -> str:
    """Name what ships with the package by its place there, and the user's own folders from home."""
    for folder, shown in ((Path(__file__).parents[2], ""), (Path.home(), "~/")):
        if Path(ref).is_relative_to(folder):
            return shown + Path(ref).relative_to(folder).as_posix()
    return ref


def _row(zoo: str, spec: Any) -> dict[str, Any]:  # a ModelSpec
    from flowinfer.errors import LoadError
    from flowinfer.needs import need_of
    from flowinfer.plan import Need

    problem = None
    try:
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
        "weights_shown": "?" if not size else f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB",
        "here": "damaged" if problem else "yes" if need.download_bytes == 0 else "no",
        "problem": problem,
    }
