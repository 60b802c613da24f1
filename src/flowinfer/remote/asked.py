"""What a head may be asked, as data that is checked before anything is done, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from flowinfer.backends.base import Turn

_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1 << 22)]
_Row = Annotated[int, Field(ge=0)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Question(_Asked):
    ended: list[Annotated[int, Field(ge=0)]] = []
    """Sessions that nobody asks of any more."""


class Vocabulary(_Question):
    """The bytes of all tokens; answered in the body, see `packed_pieces`."""

    ask: Literal["vocabulary"] = "vocabulary"
    stop_tokens: list[str] = []


class Tokenizer(_Question):
    """The tokenizer as JSON, for contexts that are encoded anew; an empty body where there is none."""

    ask: Literal["tokenizer"] = "tokenizer"


class Render(_Question):
    """A prompt as the model reads it."""

    ask: Literal["render"] = "render"
    text: str
    prefill: str = ""
    turns: list[Turn] = []


class Echo(_Question):
    """Answer with so many bytes at once: to measure the way."""

    ask: Literal["echo"] = "echo"
    size: Annotated[int, Field(ge=0, le=1 << 20)]


class Direct(_Question):
    """Make a group of two (`remote.direct`); both begin it behind the answer."""

    ask: Literal["direct"] = "direct"


class Add(_Asked):
    """Read the prompts of new rows."""

    do: Literal["add"] = "add"
    rows: list[_Row]
    """What the client calls them."""
    prompts: list[_Ids]


class Feed(_Asked):
    """Append ids to rows."""

    do: Literal["feed"] = "feed"
    chunks: list[tuple[_Row, _Ids]]


class Rollback(_Asked):
    """Forget a row's last ids."""

    do: Literal["rollback"] = "rollback"
    row: _Row
    count: Annotated[int, Field(ge=0)]


class Remove(_Asked):
    """End rows."""

    do: Literal["remove"] = "remove"
    rows: list[_Row]


class LeaveOut(_Asked):
    """Count no column that writes nothing, in all candidates of the session."""

    do: Literal["leave_out"] = "leave_out"
    columns: list[_Row]


class _Whole(_Asked):
    is_direct: bool = False
    """Whether logits are to go by the group of two; the answer then announces them."""


class _Answered(_Whole):
    best: Annotated[int, Field(ge=0)] = 0
    """How many candidates of each distribution are wanted; 0 = its logits."""
    number: Annotated[int, Field(ge=0)] = 0
    """What `Fetch` calls the answer by; the last `KEPT` are kept."""


class Logits(_Answered):
    """Answer with rows' logits, (R, V_k)."""

    do: Literal["logits"] = "logits"
    rows: list[_Row]


class Verify(_Answered):
    """Append segments and answer with the logits behind each, (S, V_k)."""

    do: Literal["verify"] = "verify"
    segments: list[tuple[_Row, list[Annotated[_Ids, Field(min_length=1)]]]]


class Fetch(_Whole):
    """Answer with the logits behind some texts of an answer that gave candidates, (R, V_k)."""

    do: Literal["fetch"] = "fetch"
    number: Annotated[int, Field(ge=0)]
    at: list[_Row]


Deed = Annotated[Add | Feed | Rollback | Remove | LeaveOut | Logits | Verify | Fetch, Field(discriminator="do")]


class Work(_Question):
    """Do some things to a session's rows, in order; at most the last of them is answered with logits."""

    ask: Literal["work"] = "work"
    session: Annotated[int, Field(ge=0)]
    deeds: list[Deed]


Question = Annotated[Vocabulary | Tokenizer | Render | Echo | Direct | Work, Field(discriminator="ask")]
KEPT = 2
"""Answers of a session whose logits are kept: those behind old rows and behind new ones."""
QUESTION: TypeAdapter[Question] = TypeAdapter(Question)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
"""What logits may be, as they are told of."""


class _Told(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class About(_Told):
    """What a head says of itself when the key has been shown."""

    version: str
    """Of its flowinfer."""
    name: str
    ref: str
    max_positions: Annotated[int, Field(ge=1)]
    is_exact: bool
    vocabulary: str
    """Fingerprint of its tokens' bytes."""
    columns: Annotated[int, Field(ge=1, le=1 << 24)]
    """V_k: of its logits."""
    tokenizer: str
    """Fingerprint of its tokenizer; "" where it has none that can be sent."""
    notes: list[str]
    rows: Annotated[int, Field(ge=1)]
    """Most rows of a session."""
    direct: Literal["", "nccl", "gloo"]
    """What whole distributions may go by, beside the connection."""
    gpu: str
    """What its GPU is called everywhere; "" where it has none."""


class Rendered(_Told):
    """A prompt as the head reads it."""

    text: str
    ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1 << 22)]
    opens_thinking: bool = False
    opener: str = ""


@dataclass(frozen=True)
class Answer:
    """What a head answers: a message, and what goes beside the connection."""

    head: dict[str, Any]
    body: bytes | bytearray | memoryview = b""
    beside: Tensor | None = None
    """Logits, where they were asked for so."""


def shape_of(found: object) -> tuple[int, int] | None:
    """Return the shape of a table that a message tells of, None where it is none."""
    if not isinstance(found, list) or len(found) != 2 or not all(type(one) is int and one >= 0 for one in found):
        return None
    return found[0], found[1]


def packed_pieces(pieces: tuple[bytes | None, ...]) -> bytes:
    """Return the bytes of all ids as one text: for each its length + 1 (0 = none) in 4 bytes, then all of them."""
    lengths = b"".join((0 if piece is None else len(piece) + 1).to_bytes(4, "little") for piece in pieces)
    return lengths + b"".join(piece for piece in pieces if piece)


def unpacked_pieces(body: bytes, count: int) -> tuple[bytes | None, ...]:
    """Read what `packed_pieces` wrote.

    Raises:
        ValueError: it has not.
    """
    if not 0 <= 4 * count <= len(body):
        raise ValueError("there are fewer pieces than it says")
    at, found = 4 * count, list[bytes | None]()
    for k in range(count):
        length = int.from_bytes(body[4 * k : 4 * k + 4], "little") - 1
        found.append(None if length < 0 else bytes(body[at : at + length]))
        at += max(length, 0)
    if at != len(body):
        raise ValueError("the pieces do not fill their message")
    return tuple(found)
