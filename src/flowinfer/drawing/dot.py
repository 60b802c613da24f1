"""Graphviz DOT text of a flow."""

from __future__ import annotations

from flowinfer.planning.graph import build
from flowinfer.spec import Flow


def render(flow: Flow) -> str:
    """Return a digraph; ids are our own, labels are quoted and escaped."""
    graph = build(flow)
    ids = {name: f"v{index}" for index, name in enumerate(graph.nodes)}
    lines = [
        f"digraph {_quoted(flow.name)} {{",
        "    rankdir=LR;",
        '    node [shape=box, style=rounded, fontname="sans-serif"];',
    ]
    for name, data in graph.nodes(data=True):
        label = data["title"] + (f"\n{data['role']}" if "role" in data else "")
        shape = {"model": "box", "fuse": "circle"}.get(data["kind"], "plaintext")
        lines.append(f"    {ids[name]} [label={_quoted(label)}, shape={shape}];")
    for start, end, data in graph.edges(data=True):
        style = f' [style=dashed, label="{data["weight"]:.3g}"]' if data["kind"] == "tokens" else ""
        lines.append(f"    {ids[start]} -> {ids[end]}{style};")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
