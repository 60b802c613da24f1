"""Rows of published files: csv, JSON, parquet and DeepMind's txt, each with the place where it stands."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flowinfer.errors import DataError
from flowinfer.tasks.sources import Row, json_items, json_lines, malformed, read_text

FORMS = ("jsonl", "json", "csv", "parquet", "txt")
"""Kinds of files that are read, by their endings."""


def rows(path: Path, form: str, *, header: Sequence[str] = (), within: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the items of a file.

    Args:
        form: one of `FORMS`.
        header: columns of a csv file whose first line may name none.
        within: names of the field of a JSON file whose array is meant.
    Raises:
        DataError: the file is none of that form; says where.
    """
    match form:
        case "jsonl":
            return json_lines(path)
        case "json":
            return json_items(path, within)
        case "csv":
            return _csv(path, header)
        case "parquet":
            return _parquet(path)
        case _:
            return _pairs(path)


def _csv(path: Path, header: Sequence[str]) -> Iterator[Row]:
    """Yield the lines of a csv file as its first line names their cells."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    lines = []
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise malformed(path, reader.line_num + 1, f"not CSV: {error}", "quote texts that hold quotes") from error
    if not lines:
        return
    names = [name.strip() for name in lines[0][1]]
    if header and len(names) == len(header) and header[0] not in names:
        names = list(header)
    else:
        lines = lines[1:]
    for line, cells in lines:
        if len(cells) != len(names) and not (len(cells) > len(names) and not any(cells[len(names) :])):
            amount = "few" if len(cells) < len(names) else "many"
            raise malformed(path, line, f"too {amount} columns", "quote texts that hold commas or quotes")
        yield Row(path, line, dict(zip(names, cells, strict=False)))


def _parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, counted from 1."""
    from pyarrow import ArrowException, parquet  # late: comes with `datasets`

    try:
        values: list[Mapping[str, object]] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: not a parquet file: {reason}", help="download it again") from error
    for number, fields in enumerate(values, start=1):
        yield Row(path, number, fields)


def _pairs(path: Path) -> Iterator[Row]:
    """Yield a DeepMind module's pairs of lines, question and answer; ids are "module/number"."""
    lines = read_text(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) % 2:
        raise malformed(path, len(lines), "a question without an answer line", "write questions and answers in turn")
    for index in range(0, len(lines), 2):
        for offset in (0, 1):
            if not lines[index + offset].strip():
                raise malformed(path, index + offset + 1, "empty line", "write questions and answers in turn")
        said = {"problem": lines[index], "answer": lines[index + 1].strip(), "subject": path.stem}
        yield Row(path, index + 2, said | {"id": f"{path.stem}/{index // 2}"})
