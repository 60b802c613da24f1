"""What a run and its replicas say to each other: lines of JSON, checked on arrival; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flowinfer.planning.plan import Plan
from flowinfer.results import Question, Record
from flowinfer.runs.store import read_record
from flowinfer.tasks.answers.turns import NextQuestion

T = TypeVar("T")


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Start(_Message):
    """To a replica, first: what it is a copy of."""

    kind: Literal["start"] = "start"
    plans: tuple[dict[str, Any], ...]
    """See `plan_data`."""
    batch: int | Literal["auto"]
    engine: Literal["auto", "packed", "reference"]
    cache: str | None
    """Folder of finished steps; None: none is kept."""
    runs: tuple[tuple[int, int, str], ...]
    """Of each plan and data set, the run that finished steps are kept for."""
    breaks_steps: bool
    """Whether what breaks a loop breaks its steps and nothing else, as in a sweep."""
    cpu_bytes: int
    """What of the host's memory its keys and values may count with."""


class Ask(_Message):
    """To a replica: a question."""

    kind: Literal["ask"] = "ask"
    number: int
    question: Question
    plans: tuple[int, ...]
    """That it is asked of, by index."""
    dataset: int


class Ready(_Message):
    """From a replica, first: it takes questions."""

    kind: Literal["ready"] = "ready"


class Done(_Message):
    """From a replica: a question is answered under one of its plans, and judged."""

    kind: Literal["done"] = "done"
    number: int
    plan: int
    steps: tuple[tuple[str, bool], ...]
    """Shared steps of the question that have ended since it last said so, and whether each was decoded just now."""
    broken: Mapping[str, str]
    """Those of the plan's that can run for no question, and why."""
    goes_on: NextQuestion | None = None
    """See `runs.run_on.goes_on`."""


class Tokens(_Message):
    """From a replica, now and then: so many tokens more, be it none."""

    kind: Literal["tokens"] = "tokens"
    count: int


class Notice(_Message):
    """From a replica: what its user should know."""

    kind: Literal["notice"] = "notice"
    text: str


class Loading(_Message):
    """From a replica: a model is about to be loaded, or is ready."""

    kind: Literal["loading"] = "loading"
    name: str
    device: str = ""
    seconds: float | None = None
    """None: about to be."""


class Failed(_Message):
    """From a replica, last: why it can do nothing more."""

    kind: Literal["failed"] = "failed"
    error: str
    """The error's class in `flowinfer.errors`; empty: a bug, with its traceback."""
    message: str
    help: str | None = None


@dataclass(frozen=True)
class Reply:
    """From a replica: that a question is answered, and the answer."""

    done: Done
    line: bytes
    """The record as a run's folder keeps it."""
    record: Record


_Said = Annotated[Ready | Done | Tokens | Notice | Loading | Failed, Field(discriminator="kind")]
Said = Ready | Reply | Tokens | Notice | Loading | Failed
"""From a replica."""
_ASKED: TypeAdapter[Start | Ask] = TypeAdapter(Annotated[Start | Ask, Field(discriminator="kind")])
_SAID: TypeAdapter[Ready | Done | Tokens | Notice | Loading | Failed] = TypeAdapter(_Said)
_PLAN = TypeAdapter(Plan)  # its parts' names mean what they mean in this file with pydantic 2.7: have none of them here


def line_of(message: BaseModel | Reply) -> bytes:
    """Return a message as a line; half of a surrogate pair, which a question may hold, is escaped.

    An answer's record stands as it is kept behind a tab, which JSON has only escaped.
    """
    if isinstance(message, Reply):
        return line_of(message.done)[:-1] + b"\t" + message.line
    try:
        return message.model_dump_json().encode() + b"\n"
    except ValueError:  # it has such a half
        return json.dumps(message.model_dump(mode="json"), separators=(",", ":")).encode("ascii") + b"\n"


def asked(line: bytes) -> Start | Ask:
    """Read what a run says.

    Raises:
        ValueError: it is none of the messages.
    """
    return _read(_ASKED, line)


def said(line: bytes) -> Said:
    """Read what a replica says.

    Raises:
        ValueError: it is none of the messages.
    """
    head, _, record = line.partition(b"\t")
    message = _read(_SAID, head)
    return Reply(message, record, read_record(record)) if isinstance(message, Done) else message


def _read(kinds: TypeAdapter[T], line: bytes) -> T:
    try:
        return kinds.validate_json(line)
    except ValidationError:  # half of a surrogate pair is no JSON for pydantic
        return kinds.validate_python(json.loads(line))


def plan_data(plan: Plan, num_replicas: int) -> dict[str, Any]:
    """Return a plan as plain data, whole, for one of so many replicas.

    What `planning.plain.to_json` leaves out for readers is in it: addresses as they are connected to. The requests that
    an endpoint takes at once are shared out.
    """
    models = {
        name: spec.model_dump() | {"base_url": spec.address, "parallel": max(1, spec.parallel // num_replicas)}
        for name, spec in plan.models.items()
    }
    steps = [asdict(replace(step, decoding=None)) | {"decoding": step.decoding.model_dump()} for step in plan.steps]  # type: ignore[arg-type]  # put in beside it
    return asdict(replace(plan, models={}, steps=())) | {"models": models, "steps": steps}


def read_plans(data: Sequence[Mapping[str, Any]]) -> list[Plan]:
    """Return the plans that `plan_data` was given."""
    return [_PLAN.validate_python(one) for one in data]
