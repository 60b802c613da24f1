"""Items as lines of a file, in the forms in which the data sets themselves come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence

from flowinfer.errors import UsageError
from lab.items import Item, Kind

_FORMS = {"jsonl": None, "csv": "ceval", "txt": "mathematics"}


def lines(kind: Kind, items: Sequence[Item], form: str) -> Iterator[str]:
    """Return a file's lines: jsonl for all kinds, C-Eval's csv, or DeepMind's question line and answer line.

    Raises:
        UsageError: the kind has no such form.
    """
    if form not in _FORMS or _FORMS[form] not in (None, kind):
        suited = [f".{name}" for name, only in _FORMS.items() if only in (None, kind)]
        raise UsageError(f"{kind} items cannot be written as '.{form}'", help=f"use {' or '.join(suited)}")
    if form == "csv":
        yield from _csv(items)
    for index, item in enumerate(items):
        if form == "txt":
            yield from (item.question, item.reference)
        elif form == "jsonl":
            yield json.dumps(row(item, index) | {"solution": item.right.text}, ensure_ascii=False)


def row(item: Item, identifier: str | int) -> dict[str, object]:
    """Return an item as a line of a data set of one's own."""
    said: dict[str, object] = {"id": identifier, "question": item.question, "answer": item.reference}
    said |= {"kind": item.kind, "subject": item.subject}
    return said | ({"choices": dict(item.choices)} if item.choices else {})


def _csv(items: Sequence[Item]) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "question", "A", "B", "C", "D", "answer", "explanation"])
    for index, item in enumerate(items):
        writer.writerow([index, item.question, *item.choices.values(), item.reference, item.right.steps])
    yield from out.getvalue().removesuffix("\n").split("\n")
