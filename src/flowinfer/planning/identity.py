"""Sources in an order that does not depend on how a group was written: permuting a group changes no bit of its text.

The engine sums a group's sources in an order of its own, so `(A | B)` and `(B | A)` are one computation; here they get
one description, and the order of members that goes with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowinfer.planning.plan import Member, Source

Describe = Callable[[Member], Mapping[str, Any]]
"""What decides a member's part of the text, as plain data; its weight is added."""


@dataclass(frozen=True)
class Canonical:
    """A source without the order of its siblings."""

    description: Mapping[str, Any]
    nodes: tuple[str, ...]
    """Ids of its members' nodes in the canonical order."""


def canonical(source: Source, describe: Describe) -> Canonical:
    """Describe a source so that permuted groups are described alike."""
    if isinstance(source, Member):
        return Canonical({**describe(source), "weight": source.weight}, (source.node,))
    inner = sorted((canonical(one, describe) for one in source.sources), key=lambda one: as_text(one.description))
    description: dict[str, Any] = {
        "fuse": source.fuse,
        "fuse_options": dict(source.fuse_options),
        "weight": source.weight,
        "sources": [one.description for one in inner],
    }
    if source.least is not None:  # its text may have been finished by fewer heads
        description["least"] = source.least
    if any(isinstance(value, str) and value for value in source.fuse_options.values()):  # may name a branch
        names = {one.node: one.model for one in _direct(source.sources)}
        description["names"] = [names.get(one.nodes[0]) if len(one.nodes) == 1 else None for one in inner]
    return Canonical(description, tuple(node for one in inner for node in one.nodes))


def as_text(description: Mapping[str, Any]) -> str:
    """Return a description as canonical JSON."""
    return json.dumps(description, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _direct(sources: tuple[Source, ...]) -> list[Member]:
    return [one for one in sources if isinstance(one, Member)]
