"""flowinfer datasets: which there are, and in what forms they are read."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def command(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List data sets: what they ask, where they come from and how to point to local files."""
    from flowinfer.registry import load, tasks
    from flowinfer.tasks.sources import Task

    found = [one for one in (load(info) for info in tasks().values()) if isinstance(one, Task)]
    docs = {name: info.doc for name, info in tasks().items()}
    if json_:
        told = [{"name": one.name, "doc": docs[one.name], **_plain(one)} for one in found]
        print(json.dumps(told, ensure_ascii=False, indent=1))
        return
    for one in found:
        print(f"{one.name}  {docs[one.name]}")
        if one.about is not None:
            about = one.about
            sizes = ", ".join(f"{split} {size:,}" for split, size in about.splits.items())
            shots = f"--few-shot from {about.examples}" if about.examples else "no examples of its own"
            print(f"    asks:  {about.asks}, {about.kind}, {about.language}; splits: {sizes}; {shots}")
            print(f"    from:  {about.origin}; {about.licence}")
        print(f"    hub:   {one.hub}")
        print(f"    local: --data {one.name}=PATH: {one.local_forms}")
    print("the zoo lab, without --data: the package's 1,000 items of gsm8k, ceval, mathematics; 100 if nothing is said")
    print("FILE.jsonl  any other: one {question, answer, id?, choices?, kind?, subject?} per line")
    print("    kind names the judge: gsm8k, ceval, mathematics or exact; inferred where absent")
    print(
        "--few-shot N takes examples from --data NAME:dev=PATH where that is given, of FILE.jsonl from FILE.dev.jsonl"
    )


def _plain(task: object) -> dict[str, object]:
    from flowinfer.tasks.sources import Task

    assert isinstance(task, Task), "only these are listed"
    said: dict[str, object] = {"hub": task.hub, "local_forms": task.local_forms}
    return said | ({} if task.about is None else asdict(task.about))
