"""Write a report's files into a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flowinfer.errors import UsageError
from flowinfer.report.build import Report, Section
from flowinfer.report.writers import data, markdown

FORMS = ("html", "md", "csv", "json", "latex")


def write(report: Report, folder: Path, forms: Sequence[str]) -> list[Path]:
    """Write the forms asked for; return the files, the most readable first.

    Raises:
        UsageError: the folder cannot be written.
    """
    makers: Mapping[str, Callable[[], Mapping[str, str]]] = {
        "md": lambda: {"report.md": markdown.write(report, {})},
        "csv": lambda: _tables(report, "csv", data.table_csv),
        "json": lambda: {"report.json": data.report_json(report)},
    }
    files: dict[str, str] = {}
    for form in FORMS:
        if form in forms and form in makers:
            files |= makers[form]()
    try:
        return [_put(folder / name, text) for name, text in files.items()]
    except OSError as error:
        raise UsageError(f"cannot write '{folder}': {(error.strerror or str(error)).lower()}", help="-o DIR") from error


def _tables(report: Report, suffix: str, made: Callable[..., str]) -> dict[str, str]:
    return {
        f"tables/{slug(section)}{table.key}.{suffix}": made(table)
        for section in report.sections
        for table in section.tables
    }


def slug(section: Section) -> str:
    """Return a beginning for the names of a section's files, "" where there is one section."""
    return re.sub(r"[^\w.=-]+", "_", section.setup) + "-" if section.setup else ""


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path
