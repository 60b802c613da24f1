"""What stands on the boxes and edges of a drawing."""

from __future__ import annotations

from dataclasses import dataclass

from flowinfer.spec import Branch, Node, Parallel


@dataclass(frozen=True)
class Label:
    """Two lines of a box: what it is, and its part in the flow."""

    title: str
    detail: str


def node_label(node: Node) -> Label:
    """Return a model's name, and its role or prompt and label."""
    detail = node.prompt_name or node.role
    return Label(node.model.name, f"{detail} as {node.label}" if node.label else detail)


def fuse_title(group: Parallel) -> str:
    """Return what a `|` group does to its heads' distributions."""
    options = group.decoding.fuse_options
    shown = ", ".join(f"{key}={value}" for key, value in options.items() if value not in ("", None))
    label = f" as {group.label}" if group.label else ""
    return f"⊕ {group.decoding.fuse}" + (f" {shown}" if shown else "") + label


def weight_text(group: Parallel, branch: Branch) -> str:
    """Return a branch's share, where weights were written."""
    return f"{branch.weight:.3g}" if group.is_weighted else ""


def join_title(group: Parallel, *, is_end: bool) -> str:
    """Return what gathers a `&` group: the vote at the end of a flow, else the answers."""
    return "vote" if is_end else f"answers as {group.label}" if group.label else "answers"
