"""What a data set is made of, and how its files are read: whole texts, JSON lines, complaints with file and line.

Lines are split on "\\n" only: model texts and web texts hold U+2028 and other characters that look like line ends.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowinfer import files, registry
from flowinfer.errors import DataError, UsageError
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
    worked: str = ""
    """The way to its answer and the answer, where the data set shows one."""
    unasked: str | None = None
    """Why no judge of ours reads its answer, so that it is left out."""

    def answered(self, reference: str) -> Item:
        """Return it with another reference."""
        return replace(self, question=self.question.model_copy(update={"reference": reference}), is_open=False)


@dataclass(frozen=True)
class About:
    """What a data set is, for people."""

    language: str
    kind: str
    """What its answers are, in words."""
    licence: str
    origin: str
    splits: Mapping[str, int]
    """Questions by split."""
    asks: str
    """The split whose questions are asked."""
    examples: str | None
    """The split that `--few-shot` takes examples from."""


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
    examples: Callable[[Path | None], Sequence[Question | Item]] | None = None
    """Reads the split of examples, beside the questions' file or folder, or from the hub; None: has none."""
    by_subject: bool = False
    """Whether a question's examples are the first of its own subject, not some of all."""
    about: About | None = None
    """What `flowinfer datasets` tells of it."""


def task_named(name: str) -> Task | None:
    """Return a data set that is known by name.

    Raises:
        UsageError: a package registered something else by it.
    """
    known = registry.tasks()
    if name not in known:
        return None
    task = registry.load(known[name])
    if not isinstance(task, Task):
        raise UsageError(f"task '{name}' is not a flowinfer.tasks.sources.Task", help="update its package")
    return task


def placed(found: Sequence[Question | Item], source: str) -> tuple[Item, ...]:
    """Give questions that do not say where they stand a place by their id."""
    return tuple(one if isinstance(one, Item) else Item(one, f"{source}, question '{one.id}'") for one in found)


def draw(seed: int, identifier: str) -> bytes:
    """Return a question's place in the random order of a seed: the same on every machine and Python version."""
    return hashlib.sha256(f"{seed}\n{identifier}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Row:
    """One item of a file, as it stands there."""

    path: Path
    line: int
    """1-based line (an item's number in a JSON array or a table without lines)."""
    fields: Mapping[str, object]

    @property
    def place(self) -> str:
        """Return where it stands, for messages."""
        return f"{self.path}:{self.line}"

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


def json_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON-lines file; blank lines are skipped.

    Raises:
        DataError: a line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield _object(path, number, line)


def _object(path: Path, number: int, line: str) -> Row:
    value = _json(path, number, line, "write one JSON object per line")
    if not isinstance(value, dict):
        raise malformed(
            path, number, "not a JSON object", 'write one object per line: {"question": ..., "answer": ...}'
        )
    return Row(path, number, value)


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


def json_items(path: Path, within: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the objects of a JSON file: of an array, of an array in a field, of lines, or the one that it holds.

    Args:
        within: names of the field whose array is meant, where the file is one object.
    Raises:
        DataError: it is no such file.
    """
    text = read_text(path)
    cure = "give a JSON array of objects, or JSON lines as .jsonl"
    if _is_lines(text):
        yield from json_lines(path)
        return
    value = _json(path, None, text, cure)
    if isinstance(value, dict):
        value = next((value[name] for name in within if name in value), [value])
    if not isinstance(value, list):
        raise malformed(path, 1, "not a JSON array", cure)
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise malformed(path, number, f"item {number} is not an object", "every item must be an object")
        yield Row(path, number, item)


def _is_lines(text: str) -> bool:
    """Return whether a text is several objects, one a line."""
    first, _, rest = text.strip().partition("\n")
    return first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def fetch_split(
    repository: str, config: str | None, split: str, *, cure: str, revision: str | None = None
) -> list[Mapping[str, object]]:
    """Load one split of a hub data set through `datasets`.

    Raises:
        DataError: it cannot be loaded (offline, gated, missing), with the local alternative `cure`.
    """
    if problem := hub_problem():
        raise DataError(f"cannot load '{repository}': the hub cannot be reached: {problem}", help=cure)
    import datasets  # late: takes seconds

    try:
        rows = datasets.load_dataset(repository, config, split=split, revision=revision)
        return [dict(row) for row in rows]
    except Exception as error:  # the hub, the network and the cache fail in dozens of ways; all mean: not there
        name = repository if config is None else f"{repository} ({config})"
        reason = (str(error).strip().split("\n") or [""])[0] or type(error).__name__
        raise DataError(f"cannot load '{name}' from the Hugging Face hub: {reason}", help=cure) from error
