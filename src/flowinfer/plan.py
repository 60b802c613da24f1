"""The plan: which decoding loops run, on which models and devices, in what order.

One step is one decoding loop over one source; a source is a member (one model) or a mixture of sources. A serial
stage is a mixture of one. The plan knows nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowinfer.spec import Decoding, ModelSpec, Role


@dataclass(frozen=True)
class Member:
    """One model inside a step."""

    node: str
    """Id of the flow's node."""
    model: str
    """Key into Plan.models."""
    role: Role
    template: str
    """Prompt template; its fields are question, choices and the keys of `fields`."""
    fields: Mapping[str, tuple[str, ...]]
    """Field -> ids of the steps whose text fills it (several: the answers of a `&` group, joined)."""
    weight: float = 1.0
    """Share among the sources of its mixture."""


@dataclass(frozen=True)
class Mixture:
    """Sources that write one text together."""

    group: str
    """Id of the flow's group."""
    fuse: str
    fuse_options: Mapping[str, Any]
    sources: tuple[Source, ...]
    weight: float = 1.0
    """Share among the sources of the mixture around it."""


Source = Member | Mixture


@dataclass(frozen=True)
class Step:
    """One decoding loop."""

    id: str
    """s1, s2, ... in an order in which every step follows those it reads."""
    title: str
    """As written in the flow, e.g. "(Yi | Qwen)"."""
    source: Source
    decoding: Decoding
    reads: tuple[str, ...] = ()
    """Ids of the steps whose text its prompts use."""
    label: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the flow returns: one step's text, or the majority among several."""

    kind: Literal["text", "vote"]
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Need:
    """What a model asks of a machine, read from its config; None where that is not known offline."""

    parameters: int | None
    weight_bytes: int | None
    kv_bytes_per_token: int | None
    download_bytes: int | None
    """0 when it is already on disk."""
    source: str
    """Where the figures come from."""


@dataclass(frozen=True)
class Placement:
    """Where a model lives and why."""

    device: str
    dtype: str
    why: str


@dataclass(frozen=True)
class Wave:
    """Steps that run while one set of models is resident, over the whole data set."""

    steps: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A flow made ready to run."""

    flow: str
    """Name of the flow."""
    steps: tuple[Step, ...]
    answer: Answer
    models: Mapping[str, ModelSpec]
    prompts: str
    """Name of the prompt set, which also says how several answers are joined."""
    needs: Mapping[str, Need] = field(default_factory=dict)
    placements: Mapping[str, Placement] = field(default_factory=dict)
    waves: tuple[Wave, ...] = ()

    def step(self, step_id: str) -> Step:
        """Return the step of that id."""
        return next(step for step in self.steps if step.id == step_id)


def members(source: Source) -> Iterator[Member]:
    """Yield the members of a source in order of appearance."""
    if isinstance(source, Member):
        yield source
    else:
        for inner in source.sources:
            yield from members(inner)
