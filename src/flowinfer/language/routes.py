"""Routes: which of some flows was right about which questions, as a file, by which a choice group picks its member.

`flowinfer route` writes such a file, `pick="routes.json"` names it; `engine.routing` reads a question's likely best
member out of it. Here is its form and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowinfer.errors import DataError, UnreadableFile
from flowinfer.files import read_text
from flowinfer.spec import Routes

VERSION = 1
MOST_BYTES = 100_000_000
"""Largest file: some 300,000 questions. Twice as many take twice the memory, of which these take 6 GB."""
_Mean = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Border(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Outcome(_Border):
    """What one way to choose comes to on all questions, means of a question."""

    accuracy: _Share
    interval: tuple[_Share, _Share]
    """Wilson's, 95 %."""
    tokens: _Mean
    """Written by all steps."""
    calls: _Mean
    """Models that decode."""
    seconds: _Mean | None
    """None unless every question was timed alone: others wait for their batch."""
    cost: _Mean | None = None
    """In the money of the models' options; None where an answer has no price."""


class Member(_Border):
    """One of the flows, always taken."""

    flow: str
    """As written, without options."""
    identity: str
    """Digest of all that decides its texts; see `language.routing`."""
    outcome: Outcome


class DataSet(_Border):
    """Questions that the table was learned on."""

    name: str
    questions: int
    left_out: int
    """Questions that not every flow has a verdict on."""


class HeldOut(_Border):
    """What the table is worth on questions that had no part in it, beside what it has to beat."""

    folds: int
    route: Outcome
    picked: tuple[int, ...]
    """Of each member, how many questions it was picked for."""
    best: int
    """Index of the best single member, told in hindsight."""
    last: int
    """Index of the member that stands last."""
    oracle: Outcome
    """The cheapest right member of each question, as nobody can know."""
    gained: int
    """Questions that the route has right and the best single member wrong."""
    lost: int
    """The other way round."""
    p_value: float
    """Of McNemar's exact test between these two."""
    pays: bool
    """Whether the route is more accurate than the best single member, and that is not by chance (5 %)."""


class Example(_Border):
    """A question, and who was right about it."""

    question: str
    """As asked, with its choices."""
    right: Annotated[str, Field(pattern="^[01]+$")]
    """For each member 1 or 0."""


class Table(_Border):
    """A routes file."""

    version: int = VERSION
    rule: str
    """In words, for whoever reads the file."""
    neighbours: Annotated[int, Field(ge=1)]
    """How many of the most alike questions a score is of."""
    members: Annotated[tuple[Member, ...], Field(min_length=2)]
    learned_on: tuple[DataSet, ...]
    held_out: HeldOut
    examples: Annotated[tuple[Example, ...], Field(min_length=1)]

    @cached_property
    def digest(self) -> str:
        """Return a digest of the whole."""
        return hashlib.sha256(as_text(self).encode(errors="surrogatepass")).hexdigest()

    def ordered(self, name: str, order: Sequence[int]) -> Routes:
        """Return what a group needs whose members are these columns of the table."""
        columns = tuple("".join(example.right[column] for column in order) for example in self.examples)
        return Routes(
            name,
            self.digest,
            self.neighbours,
            tuple(self.members[column].flow for column in order),
            tuple(self.members[column].outcome.tokens for column in order),
            tuple(example.question for example in self.examples),
            columns,
        )


def read(path: Path, name: str) -> Table:
    """Read a routes file.

    Args:
        name: of the file in messages.
    Raises:
        DataError: it cannot be read, is none, or of another version.
    """
    again = "learn it again: flowinfer route RUNS -o FILE"
    data = _json(path, name)
    version = data.get("version") if isinstance(data, dict) else None
    if version is None:
        raise DataError(f"'{name}' is no routes file", help="flowinfer route RUNS -o FILE makes one")
    if version != VERSION:
        raise DataError(f"'{name}' is of another version of flowinfer, which writes {VERSION} now", help=again)
    try:
        table = Table.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"'{name}' is damaged at {place}: {first['msg'].lower()}", help=again) from error
    num_members, held = len(table.members), table.held_out
    for number, example in enumerate(table.examples):
        if len(example.right) != num_members:
            told = f"has {len(example.right)} marks for {num_members} members"
            raise DataError(f"'{name}' is damaged at examples.{number}: it {told}", help=again)
    if not (0 <= held.best < num_members and 0 <= held.last < num_members and len(held.picked) == num_members):
        raise DataError(f"'{name}' is damaged at held_out: it is of other members", help=again)
    return table


def _json(path: Path, name: str) -> Any:  # JSON
    try:
        return json.loads(read_text(path, most_bytes=MOST_BYTES, errors="surrogatepass"))
    except UnreadableFile as error:
        is_large = path.is_file() and path.stat().st_size > MOST_BYTES
        cure = "learn it from fewer questions" if is_large else f"looked for {path}"
        raise DataError(
            f"'{name}' cannot be read: {error.reason}", help=f"{cure}; flowinfer route RUNS -o FILE makes one"
        ) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
        raise DataError(f"'{name}' is no JSON, {where}", help="flowinfer route RUNS -o FILE makes one") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{name}' is no JSON", help="flowinfer route RUNS -o FILE makes one") from error


def as_text(table: Table) -> str:
    """Return a table as its file: readable, one example a line."""
    data = table.model_dump(mode="json")
    examples = [json.dumps(example, ensure_ascii=False) for example in data.pop("examples")]
    head = json.dumps(data, ensure_ascii=False, indent=1).removesuffix("\n}")
    return head + ',\n "examples": [\n  ' + ",\n  ".join(examples) + "\n ]\n}\n"
