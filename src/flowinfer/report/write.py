"""Write a report's files into a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from flowinfer.errors import UsageError
from flowinfer.files import write_whole
from flowinfer.report.build import Report, Section

if TYPE_CHECKING:
    from flowinfer.report.figures.style import Drawing

FORMS = ("html", "md", "csv", "json", "latex")
_DRAWN = {"html", "md", "latex"}
"""Forms that show figures."""

Files = dict[str, bytes]
"""Name in the folder -> content."""


@dataclass(frozen=True)
class _Figure:
    """A drawing with its files."""

    drawing: Drawing
    stem: str
    """Name of its files, without their suffix."""
    saved: Mapping[str, bytes]
    """Suffix -> content."""


Figures = Mapping[str, Sequence[_Figure]]
"""A section's setup -> its figures."""


def write(
    report: Report, folder: Path, forms: Sequence[str], *, on_note: Callable[[str], object] | None = None
) -> list[Path]:
    """Write the forms asked for; return the files, the most readable first.

    Args:
        on_note: told of what figures cannot show.
    Raises:
        UsageError: the folder cannot be written.
    """
    figures = _drawn(report, on_note or str) if _DRAWN & set(forms) else {}
    makers = {"html": _html, "md": _markdown, "csv": _csv, "json": _json, "latex": _latex}
    files = {
        name: content for form in FORMS if form in forms for name, content in makers[form](report, figures).items()
    }
    for figure in (figure for drawn in figures.values() for figure in drawn):
        files |= {f"{figure.stem}.{suffix}": content for suffix, content in figure.saved.items()}
    try:
        return [_put(folder / name, content) for name, content in files.items()]
    except OSError as error:
        raise UsageError(f"cannot write '{folder}': {(error.strerror or str(error)).lower()}", help="-o DIR") from error


def slug(section: Section) -> str:
    """Return a beginning for the names of a section's files, "" where there is one section."""
    return re.sub(r"[^\w.=-]+", "_", section.setup) + "-" if section.setup else ""


def _drawn(report: Report, on_note: Callable[[str], object]) -> Figures:
    from flowinfer.report.figures.draw import figures
    from flowinfer.report.figures.fonts import legible
    from flowinfer.report.figures.style import files

    notes: dict[str, None] = {}
    found = {}
    for section in report.sections:
        lettering = legible(section.evidence)[1]
        if lettering.stand_ins:
            names = ", ".join(name for _, name in lettering.stand_ins)
            notes[f"no font here writes {names}: figures show stand-ins ({lettering.cure})"] = None
        found[section.setup] = [
            _Figure(drawing, f"figures/{slug(section)}{drawing.key}", files(drawing))
            for drawing in figures(section.evidence)
        ]
    for note in notes:
        on_note(note)
    return found


def _html(report: Report, figures: Figures) -> Files:
    from markupsafe import Markup

    from flowinfer.report.figures.style import for_page
    from flowinfer.report.page.render import Picture, render

    numbers = count(1)
    pictures = {
        setup: [
            Picture(
                one.drawing.key,
                one.drawing.title,
                one.drawing.caption,
                Markup(for_page(one.saved["svg"].decode(), one.drawing, f"f{next(numbers)}-")),
            )
            for one in drawn
        ]
        for setup, drawn in figures.items()
    }
    return {"report.html": _bytes(render(report, pictures))}


def _markdown(report: Report, figures: Figures) -> Files:
    from flowinfer.report.writers import markdown

    named = {setup: [(f"{one.stem}.svg", one.drawing.caption) for one in drawn] for setup, drawn in figures.items()}
    return {"report.md": _bytes(markdown.write(report, named))}


def _csv(report: Report, figures: Figures) -> Files:
    from flowinfer.report.writers import data

    return {
        f"tables/{slug(s)}{table.key}.csv": _bytes(data.table_csv(table)) for s in report.sections for table in s.tables
    }


def _json(report: Report, figures: Figures) -> Files:
    from flowinfer.report.writers import data

    return {"report.json": _bytes(data.report_json(report))}


def _latex(report: Report, figures: Figures) -> Files:
    from flowinfer.report.writers import latex

    labels = {f"{slug(section)}{table.key}": table for section in report.sections for table in section.tables}
    tables = {f"tables/{label}.tex": latex.table_tex(table, label) for label, table in labels.items()}
    drawn = [(f"{one.stem}.pdf", one.drawing.caption) for found in figures.values() for one in found]
    texts = {"report.tex": latex.document(report.title, tables, drawn), **tables}
    return {name: _bytes(text) for name, text in texts.items()}


def _bytes(text: str) -> bytes:
    """Encode; half a surrogate pair in a model's text becomes a replacement."""
    return text.encode("utf-8", errors="replace")


def _put(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path
