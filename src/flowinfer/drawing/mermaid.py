"""Mermaid text of a flow."""

from __future__ import annotations

from flowinfer.planning.graph import build
from flowinfer.spec import Flow


def render(flow: Flow) -> str:
    """Return a flowchart; ids are our own, labels are quoted and escaped."""
    graph = build(flow)
    ids = {name: f"v{index}" for index, name in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for name, data in graph.nodes(data=True):
        role = f"<br/><small>{data['role']}</small>" if "role" in data else ""
        label = f'"{_escaped(data["title"])}{role}"'
        opening, closing = {"model": ("[", "]"), "fuse": ("((", "))")}.get(data["kind"], ("([", "])"))
        lines.append(f"    {ids[name]}{opening}{label}{closing}")
    for start, end, data in graph.edges(data=True):
        if data["kind"] == "tokens":
            lines.append(f'    {ids[start]} -. "{data["weight"]:.3g}" .-> {ids[end]}')
        else:
            lines.append(f"    {ids[start]} --> {ids[end]}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Escape what would end or change a quoted label."""
    marks = {"&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "#": "#35;", "`": "#96;", "\\": "#92;"}
    return "".join(marks.get(character, character) for character in text)
