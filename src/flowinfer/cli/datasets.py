"""flowinfer datasets: which there are, and in what forms they are read."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List data sets: where they come from and how to point to local files."""
    from flowinfer.registry import load, tasks
    from flowinfer.tasks.sources import Task

    found = [one for one in (load(info) for info in tasks().values()) if isinstance(one, Task)]
    if json_:
        keys = ("name", "hub", "local_forms")
        print(json.dumps([{key: getattr(one, key) for key in keys} for one in found], ensure_ascii=False, indent=1))
        return
    for one in found:
        print(f"{one.name}  {tasks()[one.name].doc}")
        print(f"    hub:   {one.hub}")
        print(f"    local: --data {one.name}=PATH: {one.local_forms}")
    print("with the zoo lab and no --data: the package's 1,000 items of that form, 100 of them if nothing is said")
    print("FILE.jsonl  any other: one {question, answer, id?, choices?, kind?, subject?} per line")
    print("    kind names the judge: gsm8k, ceval, mathematics or exact; inferred where absent")
