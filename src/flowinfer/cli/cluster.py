"""flowinfer cluster: the hosts of a Ray cluster, what would run where, and why not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowinfer.cli.exec import batch_size
from flowinfer.cli.inputs import Expression, FlowFile, PromptsOption, SetOption, ZooOption, read_checked, settings
from flowinfer.errors import FlowInferError

if TYPE_CHECKING:
    from flowinfer.planning.plan import Plan
    from flowinfer.runs.replicas.cluster import Node
    from flowinfer.runs.replicas.hosts import Spread
    from flowinfer.spec import Flow


def command(
    file: FlowFile = None,
    expression: Expression = None,
    cluster: Annotated[str, typer.Option(metavar="auto|ADDRESS", help="Which cluster.")] = "auto",
    replicas: Annotated[str, typer.Option(metavar="N|auto", help="Copies of the flow's plan.")] = "auto",
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the nodes of a Ray cluster; with a flow, where its copies would run. Exit 1 if a node cannot answer."""
    wanted = batch_size(replicas, "--replicas")
    is_asked = file is not None or expression is not None
    flow = read_checked(file, expression, zoo, settings(set_, prompts)) if is_asked else None
    from flowinfer.runs.replicas.cluster import nodes
    from flowinfer.zoos.toy import provide

    models = list(flow.models.values()) if flow else []
    provide(models)
    found = nodes(cluster, models)
    has_problems = any(node.is_refused for node in found)
    spread, plan, problem = None, None, None
    if flow is not None and not has_problems:
        try:
            spread, plan = _spread(flow, found, wanted)
        except FlowInferError as error:  # told after what there is
            problem = error
    if json_:
        print(json.dumps([_plain(node, spread) for node in found], ensure_ascii=False, indent=1))
    else:
        _print(found, spread, plan)
    if problem is not None:
        raise problem
    raise typer.Exit(1 if has_problems else 0)


def _spread(flow: Flow, found: Sequence[Node], wanted: Any) -> tuple[Spread, Plan]:
    from functools import partial

    from flowinfer.planning.placement import ready
    from flowinfer.runs.replicas.cluster import over

    return over(found, wanted, flow.models.values(), partial(ready, flow), lambda plan: len(plan.waves) == 1)


def _plain(node: Node, spread: Spread | None) -> dict[str, Any]:
    return {
        "node": node.name,
        "id": node.id,
        "cpus": node.cores,
        "gpus": node.num_gpus,
        "memory_bytes": node.memory,
        "versions": dict(node.look.versions) if node.look else None,
        "problems": list(node.problems),
        "replicas": [host.id for host in spread.hosts].count(node.id) if spread else None,
        "lacks": spread.left_out.get(node.id) if spread else None,
    }


def _print(found: Sequence[Node], spread: Spread | None, plan: Plan | None) -> None:
    from flowinfer.planning.placement import shown_bytes

    counts = Counter(host.id for host in spread.hosts) if spread else {}
    for node in found:
        parts = [f"{node.cores} CPU cores"]
        if node.look is not None:
            *gpus, _ = node.look.devices
            parts += [f"{gpu.title} with {shown_bytes(gpu.free_bytes)} free" for gpu in gpus[: node.num_gpus]]
            parts += [f"{shown_bytes(node.host.cpu.free_bytes)} of memory"]
            parts += [f"{name} {version}" for name, version in node.look.versions.items()]
        print(f"node {node.name} ({node.id[:8]}): {', '.join(parts)}")
        for problem in node.problems:
            print(f"  cannot answer: {problem}")
        if spread:
            why = spread.left_out.get(node.id)
            print(f"  replicas: {counts.get(node.id, 0)}" + (f" ({why})" if why else ""))
    if spread and plan:
        print(f"{len(spread.hosts)} replicas, each with {spread.num_gpus} GPUs and {spread.cores} CPU cores:")
        for name, placement in plan.placements.items():
            print(f"  {name} on {placement.where}")
