"""What a server and its replicas say to each other, in the lines of a run's replicas: `runs.replicas.wire`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from flowinfer.backends.base import Turn
from flowinfer.engine.decoders import LoopState
from flowinfer.engine.loops.choice import Engine
from flowinfer.results import Question
from flowinfer.runs.replicas.wire import Failed, Notice
from flowinfer.serving.happenings import Happening


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class Serve(_Message):
    """To a replica, first: what it serves."""

    kind: Literal["serve"] = "serve"
    plans: Mapping[str, dict[str, Any]]
    """By the name of a flow; see `runs.replicas.wire.plan_data`."""
    batch: int | Literal["auto"]
    engine: Engine
    loads_at_once: bool
    cpu_bytes: int
    """What of the host's memory its keys and values may count with."""


class Put(_Message):
    """To a replica: a question; see `serving.flows.Asking` and `Service.submit`."""

    kind: Literal["put"] = "put"
    number: int
    flow: str
    question: str
    turns: tuple[Turn, ...]
    everywhere: Mapping[str, int | float] | None
    finally_: Mapping[str, int | tuple[str, ...]] | None
    item: Question | None
    wants_tokens: bool
    num_tops: int


class Withdraw(_Message):
    """To a replica: a question that is wanted no more."""

    kind: Literal["withdraw"] = "withdraw"
    number: int


class Standing(_Message):
    """From a replica, whenever it has changed: how far its models are, and how full its loops."""

    kind: Literal["standing"] = "standing"
    told: Mapping[str, Any]
    """See `Service.told`."""
    context_lengths: Mapping[str, int | None]
    """By flow."""
    loops: tuple[LoopState, ...]


class Happened(_Message):
    """From a replica: what has happened to its questions since it last said so, in order."""

    kind: Literal["happened"] = "happened"
    events: tuple[tuple[int, Annotated[Happening, Field(discriminator="kind")]], ...]
    """By number of the question."""


class Bug(_Message):
    """From a replica: the traceback of a bug of ours, after which it goes on."""

    kind: Literal["bug"] = "bug"
    traceback: str


Said = Annotated[Standing | Happened | Notice | Bug | Failed, Field(discriminator="kind")]
"""From a replica."""
_ASKED: TypeAdapter[Serve | Put | Withdraw] = TypeAdapter(
    Annotated[Serve | Put | Withdraw, Field(discriminator="kind")]
)
_SAID: TypeAdapter[Said] = TypeAdapter(Said)


def line_of(message: BaseModel) -> bytes:
    """Return a message as a line: tokens by the thousand are in it, which pydantic alone writes in half the time."""
    return message.model_dump_json().encode() + b"\n"


def asked(line: bytes) -> Serve | Put | Withdraw:
    """Read what a server says.

    Raises:
        ValueError: it is none of the messages.
    """
    return _ASKED.validate_json(line)


def said(line: bytes) -> Said:
    """Read what a replica says.

    Raises:
        ValueError: it is none of the messages.
    """
    return _SAID.validate_json(line)
