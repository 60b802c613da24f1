"""What a data set is made of, and how its files are read: whole texts, JSON lines, complaints with file and line.

Lines are split on "\\n" only: model texts and web texts hold U+2028 and other characters that look like line ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowinfer import files
from flowinfer.errors import DataError
from flowinfer.machine import hub_problem
from flowinfer.results import Question


@dataclass(frozen=True)
class Task:
    """A data set by name: where its questions come from."""

    name: str
    read: Callable[[Path], Sequence[Question]]
    """Reads a local file or folder in one of the data set's own forms."""
    fetch: Callable[[], Sequence[Question]]
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
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise malformed(path, number, f"not JSON: {reason}", "write one JSON object per line") from None
    if not isinstance(value, dict):
        raise malformed(
            path, number, "not a JSON object", 'write one object per line: {"question": ..., "answer": ...}'
        )
    return JsonLine(path, number, value)


def json_array(path: Path) -> Iterator[JsonLine]:
    """Yield the objects of a file that holds one JSON array.

    Raises:
        DataError: the file is not a JSON array of objects.
    """
    text = read_text(path)
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise malformed(path, line, "not JSON", "give a JSON array of objects, or JSON lines as .jsonl") from None
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
