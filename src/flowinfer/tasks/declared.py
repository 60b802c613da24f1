"""Data sets that `datasets.toml` declares: which files hold them, and how their rows become questions."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks import generic, options, splits
from flowinfer.tasks.rows import FORMS, rows
from flowinfer.tasks.sources import About, Item, Row, Task, fetch_split, read_text
from flowinfer.tasks.subjects import NAMES

_FILE = Path(__file__).parent / "datasets.toml"
_KINDS = {"gsm8k": "a number", "ceval": "one letter", "mathematics": "a value"}


class Hub(BaseModel):
    """Where a data set is on the Hugging Face hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: str
    config: str | tuple[str, ...] | None = None
    """Of several configurations all, one after another; `subjects`: one for each of its named subjects."""
    revision: str | None = None


class Declaration(BaseModel):
    """One table of `datasets.toml`. Of several names of a column the first that a row has counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    doc: str
    kind: Literal["gsm8k", "ceval", "mathematics"]
    """Judge."""
    language: Literal["en", "zh"]
    licence: str
    origin: str
    splits: Mapping[str, int]
    """Questions by split, as published."""
    asks: str
    """The split whose questions are asked."""
    examples: str | None = None
    """The split that examples are taken from."""
    local: str
    """What is read from a local path, for people."""
    forms: tuple[Literal["jsonl", "json", "csv", "parquet", "txt"], ...]
    """Kinds of files, the one that a file without a known ending has first."""
    files: str = "*"
    """What names of files in a folder look like, without their endings."""
    inside: str | None = None
    """Beginning of the folder's name that holds it, where others lie beside it."""
    within: tuple[str, ...] = ()
    """Field of a JSON file whose array it is."""
    csv_header: tuple[str, ...] = ()
    """Columns of csv files whose first line names none."""
    hub: Hub | None = None
    question: tuple[str, ...]
    context: tuple[str, ...] = ()
    """A text that stands above the question."""
    answer: tuple[str, ...]
    solution: tuple[str, ...] = ()
    """The worked answer; where there is no answer, its last box is it."""
    choices: tuple[str, ...] = ()
    """Options as a list; else columns named A, B, ..."""
    choices_in_question: bool = False
    """Whether the options may stand in the question's text."""
    id: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    by_subject: bool = False
    """Whether items and examples go by subject, which is the file's name where no column says it."""
    names: Literal["ceval", "cmmlu"] | None = None
    """Table of the subjects' names."""
    header: str | None = None
    """Line above every question; field: subject."""
    answer_index: Literal[0, 1] | None = None
    """What an answer counts from that is an option's index."""
    integers: tuple[int, int] | None = None
    """The least and the largest answer."""
    own_items: bool = False
    """Whether JSON rows without columns of its own are items as in own data."""


def task(name: str, declared: Declaration) -> Task:
    """Return a declared data set, ready to be read."""
    reader = _Reader(name, declared)
    return Task(
        name,
        reader.read,
        reader.fetch,
        reader.hub,
        reader.local,
        reader.examples if declared.examples else None,
        declared.by_subject,
        About(
            language={"en": "English", "zh": "Chinese"}[declared.language],
            kind=_KINDS[declared.kind],
            licence=declared.licence,
            origin=declared.origin,
            splits=declared.splits,
            asks=declared.asks,
            examples=declared.examples,
        ),
    )


def declarations() -> Mapping[str, Declaration]:
    """Return what `datasets.toml` declares, by name."""
    return {
        name: Declaration.model_validate(table)
        for name, table in tomllib.loads(_FILE.read_text(encoding="utf-8")).items()
    }


class _Reader:
    """Reads one data set."""

    def __init__(self, name: str, declared: Declaration) -> None:
        self._name, self._declared = name, declared
        self.local = declared.local
        where = declared.hub
        self.hub = f"{where.repository} ({declared.asks})" if where else "not there"
        """What is loaded from the hub, for people."""

    @property
    def _cure(self) -> str:
        return f"without network: --data {self._name}=PATH, {self.local}"

    def read(self, path: Path) -> Sequence[Item]:
        """Read the questions that are asked: a file, or a folder's files of their split.

        Raises:
            DataError: nothing to read, or a row is malformed.
        """
        files = [path]
        if path.is_dir():
            files = splits.files_of(path, self._declared.asks, self._patterns(), self._declared.inside)
            if not files:
                named = ", ".join(f"*.{form}" for form in self._declared.forms)
                raise DataError(f"{path}: no {self._name} files ({named})", help=f"give {self.local}")
        return self._items(files, path)

    def examples(self, path: Path | None) -> Sequence[Item]:
        """Read the split of examples: beside the questions' file or folder, or from the hub.

        Raises:
            DataError: it is not there, or a row is malformed.
        """
        split = self._declared.examples
        assert split is not None, "asked of data sets that have one only"
        if path is None:
            return self._fetched(split)
        for folder in [path] if path.is_dir() else [path.parent, path.parent.parent]:
            files = splits.files_of(folder, split, self._patterns(), self._declared.inside, is_strict=True)
            if files:
                return self._items(files, folder)
        cure = f"--data {self._name}{splits.EXAMPLES}=PATH names the file or folder of them"
        raise DataError(f"{path}: no files of the split '{split}' beside it to take examples from", help=cure)

    def fetch(self) -> Sequence[Item]:
        """Load the questions that are asked from the hub."""
        return self._fetched(self._declared.asks)

    def _patterns(self) -> list[str]:
        return [f"{self._declared.files}.{form}" for form in self._declared.forms]

    def _fetched(self, split: str) -> Sequence[Item]:
        hub = self._declared.hub
        if hub is None:
            raise DataError(f"'{self._name}' is not on the hub", help=f"--data {self._name}=PATH, {self.local}")
        configs = NAMES[self._declared.names] if hub.config == "subjects" and self._declared.names else hub.config
        found, counts = [], Counter[str]()
        for config in (configs,) if configs is None or isinstance(configs, str) else configs:
            place = Path(hub.repository if config is None else f"{hub.repository} ({config}, {split})")
            subject = str(config) if hub.config == "subjects" else ""
            prefix = str(config) if isinstance(hub.config, tuple) else ""
            loaded = fetch_split(hub.repository, config, split, cure=self._cure, revision=hub.revision)
            for number, fields in enumerate(loaded, start=1):
                found.append(self._item(Row(place, number, fields), subject, counts, self._names(None), prefix))
        return found

    def _items(self, files: Sequence[Path], path: Path) -> Sequence[Item]:
        found, counts, names = [], Counter[str](), self._names(path)
        stems = {file.stem for file in files}
        for file in files:
            subject = splits.topic(file)
            ending = file.suffix.lower().removeprefix(".")
            form = ending if ending in FORMS else self._declared.forms[0]
            for row in rows(file, form, header=self._declared.csv_header, within=self._declared.within):
                if self._is_own(row, form):
                    found.append(generic.question_of(row, kind=self._declared.kind, number=counts.total()))
                    counts[""] += 1
                else:
                    prefix = file.stem if 1 < len(files) == len(stems) else ""
                    found.append(self._item(row, subject, counts, names, prefix))
        if not found:
            raise DataError(f"{path}: no questions", help=f"give {self.local}")
        return found

    def _is_own(self, row: Row, form: str) -> bool:
        """Return whether a row is an item as own data hold them."""
        is_json = self._declared.own_items and form in ("json", "jsonl")
        return is_json and not {"A", "B"} <= row.fields.keys() and "problem" not in row.fields

    def _names(self, path: Path | None) -> Mapping[str, str]:
        """Return the subjects' names, from a subject_mapping.json at or above the path where there is one."""
        names = NAMES.get(self._declared.names or "", {})
        base = path if path is None or path.is_dir() else path.parent
        for folder in () if base is None or not names else (base, base.parent):
            file = folder / "subject_mapping.json"
            if file.is_file():
                try:
                    value = json.loads(read_text(file))
                    return {**names, **{str(key): str(said[1]) for key, said in value.items()}}
                except (ValueError, AttributeError, LookupError, TypeError) as error:
                    cure = 'write {"law": ["Law", "法学", "Humanities"], ...}'
                    raise DataError(f"{file}: not a subject mapping", help=cure) from error
        return names

    def _item(self, row: Row, subject: str, counts: Counter[str], names: Mapping[str, str], prefix: str = "") -> Item:
        """Turn a row into a question.

        Args:
            subject: what the file's name says of it.
            counts: how many items each subject had so far, to number them.
            prefix: what begins the ids of items that are numbered by files.
        """
        declared = self._declared
        said = _optional(row, declared.subject) or (subject if declared.by_subject else None)
        group = said if declared.by_subject and said else prefix
        number = counts[group]
        counts[group] += 1
        own_id = _optional(row, declared.id)
        identifier = own_id or str(number)
        if group and (declared.by_subject or own_id is None):
            identifier = f"{group}/{identifier}"
        text, choices = self._asked(row)
        reference, unasked = self._reference(row, choices)
        shown = None if said is None else names.get(said, said.replace("_", " ") if declared.header else said)
        header = declared.header.format(subject=shown) if declared.header and shown else None
        if header is None and not declared.own_items:
            header = ""  # none, whatever its subject is called
        question = Question(
            id=identifier,
            question=text,
            reference=reference,
            kind=declared.kind,
            choices=choices,
            subject=shown,
            intro=header,
        )
        return Item(question, row.place, worked=_optional(row, declared.solution) or "", unasked=unasked)

    def _asked(self, row: Row) -> tuple[str, dict[str, str]]:
        """Return a row's question and its options by letter."""
        declared, choices = self._declared, dict[str, str]()
        if declared.kind == "ceval":
            text, choices = options.asked(row, declared.question, declared.choices)
            if not choices and declared.choices_in_question:
                text, choices = options.split(text)
        else:
            text = row.text(*declared.question)
        if not text.strip():
            raise row.complain("the question is empty", "write the question's text, or remove it")
        above = _optional(row, declared.context)
        return (f"{above}\n{text}" if above else text), choices

    def _reference(self, row: Row, choices: Mapping[str, str]) -> tuple[str, str | None]:
        """Return a row's answer as its judge reads it, and why none does."""
        declared = self._declared
        if declared.kind == "ceval":
            return options.letter(row, declared.answer, choices, declared.answer_index)
        if declared.solution and not any(name in row.fields for name in declared.answer):
            return _boxed(row, declared.solution), None
        answer = row.text(*declared.answer).strip()
        if declared.kind == "gsm8k":
            answer = answer.rpartition("####")[2].strip()
        if declared.integers:
            least, most = declared.integers
            if not answer.isascii() or not answer.isdecimal() or not least <= int(answer) <= most:
                raise row.complain(
                    f"the answer is '{answer[:40]}', not an integer from {least} to {most}", "correct it"
                )
            answer = str(int(answer))
        return answer, None


def _optional(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of some fields that has a value, None where none has."""
    return next((row.text(name) for name in names if row.fields.get(name) not in (None, "")), None)


def _boxed(row: Row, names: Sequence[str]) -> str:
    """Return the last box of a worked answer, as MATH's own files give theirs."""
    from flowinfer.tasks.answers.anchors import last_box

    box = last_box(row.text(*names, "answer"))
    if box is None:
        raise row.complain("no 'answer', and no \\boxed{...} in 'solution'", "give each item an answer")
    return box


TASKS = SimpleNamespace(**{name: task(name, declared) for name, declared in declarations().items()})
"""The data sets as attributes, for `registry.load`."""
