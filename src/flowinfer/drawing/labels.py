"""What every drawing shares: the recursion over a flow, and what stands on its boxes and edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from flowinfer.planning.graph import condition
from flowinfer.spec import Branch, Choice, Decoding, Flow, Node, Parallel, Part, Series

T = TypeVar("T")


class Painter(Protocol[T]):
    """Draws the parts of a flow."""

    def box(self, title: str, detail: str = "", part: str = "") -> T:
        """Return the question, the answer, or a model with its part in the flow; `part` is the id of its node."""

    def series(self, parts: Sequence[T]) -> T:
        """Return parts after one another."""

    def group(self, group: Parallel, parts: Sequence[T], title: str) -> T:
        """Return a group's branches beside each other, between a fork and what gathers them."""


def draw(flow: Flow, painter: Painter[T]) -> T:
    """Draw a flow from its question to its answer."""
    return painter.series([painter.box("question"), *_stages(flow.root, painter, True), painter.box("answer")])


def _stages(part: Part, painter: Painter[T], is_end: bool) -> list[T]:
    stages = part.stages if isinstance(part, Series) else (part,)
    return [_part(stage, painter, is_end and stage is stages[-1]) for stage in stages]


def _part(part: Part, painter: Painter[T], is_end: bool) -> T:
    match part:
        case Node():
            detail = part.prompt_name or part.role
            return painter.box(part.model.name, f"{detail} as {part.label}" if part.label else detail, part.id)
        case Series():
            return painter.series(_stages(part, painter, is_end))
        case Parallel():
            parts = [painter.series(_stages(branch.part, painter, is_end)) for branch in part.branches]
            return painter.group(part, parts, _title(part, is_end))
        case Choice(kind="repeat" | "samples"):
            label = f" as {part.label}" if part.label else ""
            return painter.series(
                [*_stages(part.tries[0], painter, is_end), painter.box(condition(part) + label, part=part.id)]
            )
        case Choice():
            label = f" as {part.label}" if part.label else ""
            branches = tuple(Branch(one, 1 / len(part.tries)) for one in part.tries)
            group = Parallel(part.id, "answers", branches, Decoding.model_construct(), part.span)
            parts = [painter.series(_stages(one, painter, is_end)) for one in part.tries]
            return painter.group(group, parts, condition(part) + label)


def _title(group: Parallel, is_end: bool) -> str:
    """Return what gathers a group: what a `|` group does to its heads, the vote at the end, or answers."""
    label = f" as {group.label}" if group.label else ""
    least = f", {group.quorum.least} of {len(group.branches)}" if group.quorum else ""
    if group.kind == "answers":
        return f"vote{least}" if is_end else f"answers{least}{label}"
    options = group.decoding.fuse_options
    shown = ", ".join(f"{key}={value}" for key, value in options.items() if value not in ("", None))
    return f"⊕ {group.decoding.fuse}" + (f" {shown}" if shown else "") + least + label


def weight_text(group: Parallel, branch: Branch) -> str:
    """Return a branch's share, where weights were written."""
    return f"{branch.weight:.3g}" if group.is_weighted else ""
