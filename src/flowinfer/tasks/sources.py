"""What a data set is made of, and how its files are read: whole texts, JSON lines, complaints with file and line.

Lines are split on "\\n" only: model texts and web texts hold U+2028 and other characters that look like line ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowinfer import files
from flowinfer.errors import DataError
from flowinfer.machine import hub_problem
from flowinfer.results import Question


@dataclass(frozen=True)
class Item:
    """A question, and where it stands."""

    question: Question
    place: str
    """For messages: file:line, or a data set and an id."""
    is_open: bool = False
    """Whether its answer may be an option's letter, text or index."""
    is_inferred: bool = False
    """Whether nobody named its judge: what the answer looks like did."""

    def answered(self, reference: str) -> Item:
        """Return it with another reference."""
        return replace(self, question=self.question.model_copy(update={"reference": reference}), is_open=False)


@dataclass(frozen=True)
class Task:
    """A data set by name: where its questions come from."""

    name: str
    read: Callable[[Path], Sequence[Question | Item]]
    """Reads a local file or folder in one of the data set's own forms; items say where they stand."""
    fetch: Callable[[], Sequence[Question | Item]]
    """Loads it from the Hugging Face hub; raises DataError where that is impossible."""
    hub: str
    """What `fetch` loads, for people."""
    local_forms: str
    """What `read` accepts, for people."""


@dataclass(frozen=True)
class JsonLine:
    """One JSON object of a file."""

    path: Path
    line: int
    """1-based line (an item's number in a JSON array)."""
    fields: Mapping[str, object]

    def item(self, question: Question, *, is_open: bool = False, is_inferred: bool = False) -> Item:
        """Return a question that was made of it, with its place."""
        return Item(question, f"{self.path}:{self.line}", is_open, is_inferred)

    def complain(self, what: str, cure: str) -> DataError:
        """Build the error that tells where the item stands."""
        return malformed(self.path, self.line, what, cure)

    def text(self, *names: str) -> str:
        """Return the first of these fields that is there, as text.

        Raises:
            DataError: none is there, or it is not a text or number.
        """
        for name in names:
            if name in self.fields:
                value = self.fields[name]
                if isinstance(value, bool):
                    return str(value)
                if isinstance(value, float) and not math.isfinite(value):
                    raise self.complain(f"field '{name}' is too large a number", f'write it as a text: "{name}": "..."')
                if isinstance(value, (str, int, float)):
                    return str(value)
                raise self.complain(f"field '{name}' is not a text", f'write "{name}": "..."')
        wanted = " or ".join(f"'{name}'" for name in names)
        have = ", ".join(f"'{name}'" for name in self.fields) or "none"
        raise self.complain(f"missing field {wanted}", f"the item's fields are: {have}")

    def optional(self, name: str) -> str | None:
        """Return a field as text, None where it is absent or null."""
        return None if self.fields.get(name) is None else self.text(name)


def malformed(path: Path, line: int, what: str, cure: str) -> DataError:
    """Build the error for one place of a data file."""
    return DataError(f"{path}:{line}: {what}", help=cure)


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text without its byte-order mark, CRLF turned into "\\n".

    Raises:
        UnreadableFile: it cannot be read, or is not UTF-8.
    """
    return files.read_text(path).replace("\r\n", "\n")


def json_lines(path: Path) -> Iterator[JsonLine]:
    """Yield the objects of a JSON-lines file; blank lines are skipped.

    Raises:
        DataError: a line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield _object(path, number, line)


def _object(path: Path, number: int, line: str) -> JsonLine:
    value = _json(path, number, line, "write one JSON object per line")
    if not isinstance(value, dict):
        raise malformed(
            path, number, "not a JSON object", 'write one object per line: {"question": ..., "answer": ...}'
        )
    return JsonLine(path, number, value)


def _json(path: Path, number: int | None, text: str, cure: str) -> object:
    """Read JSON.

    Args:
        number: the line that the text is; None: it is the whole file.
    Raises:
        DataError: it is none, or holds what no JSON has (NaN), or what no reader takes (numbers without end, depth).
    """

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is no number of JSON's")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        reason, line = f"{error.msg} at column {error.colno}", error.lineno
    except RecursionError:
        reason, line = "too deep", 1
    except ValueError as error:  # NaN, or more digits than Python reads
        reason, line = str(error).partition(":")[0].partition(";")[0], 1
    raise malformed(path, number or line, f"not JSON: {reason}", cure)


def json_array(path: Path) -> Iterator[JsonLine]:
    """Yield the objects of a file that holds one JSON array.

    Raises:
        DataError: the file is not a JSON array of objects.
    """
    values = _json(path, None, read_text(path), "give a JSON array of objects, or JSON lines as .jsonl")
    if not isinstance(values, list):
        raise malformed(path, 1, "not a JSON array", "give a JSON array of objects, or JSON lines as .jsonl")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise malformed(path, number, f"item {number} is not an object", "every item must be an object")
        yield JsonLine(path, number, value)


def fetch_split(repository: str, config: str | None, split: str, *, cure: str) -> list[Mapping[str, object]]:
    """Load one split of a hub data set through `datasets`.

    Raises:
        DataError: it cannot be loaded (offline, gated, missing), with the local alternative `cure`.
    """
    if problem := hub_problem():
        raise DataError(f"cannot load '{repository}': the hub cannot be reached: {problem}", help=cure)
    import datasets  # late: takes seconds

    try:
        rows = datasets.load_dataset(repository, config, split=split)
        return [dict(row) for row in rows]
    except Exception as error:  # the hub, the network and the cache fail in dozens of ways; all mean: not there
        name = repository if config is None else f"{repository} ({config})"
        reason = (str(error).strip().split("\n") or [""])[0] or type(error).__name__
        raise DataError(f"cannot load '{name}' from the Hugging Face hub: {reason}", help=cure) from error
