"""The paper's ways to wire models, as flows: singles, series (SI), parallel (PI), and the two composites (S2P, P2S).

With three models these are the paper's 3 singles and 24 paths: every order in series and in parallel, one model before
a fused group of the rest (S2P), and a fused group before one model (P2S). Source: the paper's section 3 and table 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from flowinfer.spec import Flow, Node, Parallel, Part, Series

Strategy = Literal["single", "SI", "PI", "S2P", "P2S"]
STRATEGIES: tuple[Strategy, ...] = ("single", "SI", "PI", "S2P", "P2S")


@dataclass(frozen=True)
class Path:
    """One wiring."""

    strategy: Strategy
    models: tuple[str, ...]
    """In the order in which the flow names them."""
    flow: str
    """As one writes it in a .flow file."""


def paths(
    models: Sequence[str], strategies: Sequence[Strategy] = STRATEGIES, *, depth: int | None = None
) -> list[Path]:
    """List the wirings of models, singles first, in the order of the models given.

    Args:
        models: their names.
        strategies: only these.
        depth: how many of the models each path wires, all if not given; singles are always of one.

    Example: S2P of (A, B, C) begins with A -> (B | C), A -> (C | B), B -> (A | C).
    """
    length = len(models) if depth is None else depth
    return [path for strategy in STRATEGIES if strategy in strategies for path in _of(strategy, models, length)]


def strategy_of(flow: Flow) -> Path | None:
    """Return which of the paper's wirings a flow is, or None where it is another."""
    match flow.root:
        case Node():
            return Path("single", *_named([flow.root]))
        case Parallel(kind="fuse") if group := _nodes(flow.root):
            return Path("PI", *_named([group]))
        case Series(stages):
            return _of_series(stages)
    return None


def row_name(strategy: Strategy | None, models: Sequence[str]) -> str:
    """Return a path's row in the paper's tables: a-b-c, or c-[a-b] for the composites, alone before or behind."""
    match strategy:
        case "S2P":
            return f"{models[0]}-[{'-'.join(models[1:])}]"
        case "P2S":
            return f"{models[-1]}-[{'-'.join(models[:-1])}]"
    return "-".join(models)


def _of(strategy: Strategy, models: Sequence[str], depth: int) -> list[Path]:
    if strategy == "single":
        return [Path("single", (name,), name) for name in models]
    return [Path(strategy, order, _written(strategy, order)) for order in permutations(models, depth)]


def _written(strategy: Strategy, order: Sequence[str]) -> str:
    match strategy:
        case "PI":
            return f"({' | '.join(order)})"
        case "S2P":
            return f"{order[0]} -> ({' | '.join(order[1:])})"
        case "P2S":
            return f"({' | '.join(order[:-1])}) -> {order[-1]}"
    return " -> ".join(order)


def _of_series(stages: Sequence[Part]) -> Path | None:
    parts: list[Node | list[Node]] = []
    for stage in stages:
        part = stage if isinstance(stage, Node) else _nodes(stage)
        if part is None:
            return None
        parts.append(part)
    if all(isinstance(part, Node) for part in parts):
        return Path("SI", *_named(parts))
    if len(parts) != 2:
        return None
    if isinstance(parts[0], Node):
        return Path("S2P", *_named(parts))
    return Path("P2S", *_named(parts)) if isinstance(parts[1], Node) else None


def _nodes(part: Part) -> list[Node] | None:
    """Return the members of a plain fused group, or None."""
    if not isinstance(part, Parallel) or part.kind != "fuse":
        return None
    members = [branch.part for branch in part.branches]
    found = [member for member in members if isinstance(member, Node)]
    return found if len(found) == len(members) else None


def _named(parts: Sequence[Node | list[Node]]) -> tuple[tuple[str, ...], str]:
    names: list[str] = []
    written = []
    for part in parts:
        group = [node.model.name for node in ([part] if isinstance(part, Node) else part)]
        names += group
        written.append(group[0] if isinstance(part, Node) else f"({' | '.join(group)})")
    return tuple(names), " -> ".join(written)
