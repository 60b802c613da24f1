"""Write a report's files into a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from flowinfer.errors import UsageError
from flowinfer.files import write_whole
from flowinfer.report.build import Report, Section
from flowinfer.report.table import Table

if TYPE_CHECKING:
    from flowinfer.report.figures.style import Drawing

FORMS = ("html", "md", "csv", "json", "latex")
_DRAWN = ("html", "md", "latex")
"""Forms that show figures."""

Files = dict[str, bytes]
"""Name in the folder -> content."""


class Figures:
    """The drawings of every section, as files."""

    def __init__(self, report: Report) -> None:
        from flowinfer.report.figures.draw import figures
        from flowinfer.report.figures.fonts import legible
        from flowinfer.report.figures.style import files

        self.drawn: dict[str, list[Drawing]] = {section.setup: figures(section.evidence) for section in report.sections}
        self.files: Files = {}
        self.notes: dict[str, None] = {}
        """Names that no font here can write, each told once."""
        for section in report.sections:
            lettering = legible(section.evidence)[1]
            if lettering.stand_ins:
                names = ", ".join(name for _, name in lettering.stand_ins)
                self.notes[f"no font here writes {names}: figures show stand-ins ({lettering.cure})"] = None
            for drawing in self.drawn[section.setup]:
                for suffix, content in files(drawing).items():
                    self.files[f"{self.stem(section, drawing)}.{suffix}"] = content

    @staticmethod
    def stem(section: Section, drawing: Drawing) -> str:
        """Return the name of a drawing's files, without their suffix."""
        return f"figures/{slug(section)}{drawing.key}"

    def svg(self, section: Section, drawing: Drawing) -> str:
        """Return a drawing as SVG."""
        return self.files[f"{self.stem(section, drawing)}.svg"].decode()


def write(
    report: Report, folder: Path, forms: Sequence[str], *, on_note: Callable[[str], object] | None = None
) -> list[Path]:
    """Write the forms asked for; return the files, the most readable first.

    Args:
        on_note: told of what figures cannot show.
    Raises:
        UsageError: the folder cannot be written.
    """
    figures = Figures(report) if set(forms) & set(_DRAWN) else None
    if figures and on_note:
        for note in figures.notes:
            on_note(note)
    makers: Mapping[str, Callable[[], Files]] = {
        "html": lambda: _html(report, figures),
        "md": lambda: _markdown(report, figures),
        "csv": lambda: _csv(report),
        "json": lambda: _json(report),
        "latex": lambda: _latex(report, figures),
    }
    files: Files = {}
    for form in FORMS:
        if form in forms:
            files |= makers[form]()
    files |= figures.files if figures else {}
    try:
        return [_put(folder / name, content) for name, content in files.items()]
    except OSError as error:
        raise UsageError(f"cannot write '{folder}': {(error.strerror or str(error)).lower()}", help="-o DIR") from error


def slug(section: Section) -> str:
    """Return a beginning for the names of a section's files, "" where there is one section."""
    return re.sub(r"[^\w.=-]+", "_", section.setup) + "-" if section.setup else ""


def _html(report: Report, figures: Figures | None) -> Files:
    from markupsafe import Markup

    from flowinfer.report.figures.style import for_page
    from flowinfer.report.page.render import Picture, render

    assert figures, "drawn for this form"
    pictures: dict[str, list[Picture]] = {}
    numbers = count(1)
    for section in report.sections:
        for drawing in figures.drawn[section.setup]:
            svg = for_page(figures.svg(section, drawing), drawing, f"f{next(numbers)}-")
            picture = Picture(drawing.key, drawing.title, drawing.caption, Markup(svg))
            pictures.setdefault(section.setup, []).append(picture)
    return {"report.html": _bytes(render(report, pictures))}


def _markdown(report: Report, figures: Figures | None) -> Files:
    from flowinfer.report.writers import markdown

    assert figures, "drawn for this form"
    named = {
        section.setup: [(f"{figures.stem(section, d)}.svg", d.caption) for d in figures.drawn[section.setup]]
        for section in report.sections
    }
    return {"report.md": _bytes(markdown.write(report, named))}


def _csv(report: Report) -> Files:
    from flowinfer.report.writers import data

    return {name + ".csv": _bytes(data.table_csv(table)) for name, table in _tables(report).items()}


def _json(report: Report) -> Files:
    from flowinfer.report.writers import data

    return {"report.json": _bytes(data.report_json(report))}


def _latex(report: Report, figures: Figures | None) -> Files:
    from flowinfer.report.writers import latex

    tables = {f"{name}.tex": latex.table_tex(table, Path(name).name) for name, table in _tables(report).items()}
    assert figures, "drawn for this form"
    drawn = [
        (f"{figures.stem(section, drawing)}.pdf", drawing.caption)
        for section in report.sections
        for drawing in figures.drawn[section.setup]
    ]
    texts = {"report.tex": latex.document(report.title, tables, drawn), **tables}
    return {name: _bytes(text) for name, text in texts.items()}


def _tables(report: Report) -> dict[str, Table]:
    return {f"tables/{slug(section)}{table.key}": table for section in report.sections for table in section.tables}


def _bytes(text: str) -> bytes:
    """Encode; half a surrogate pair in a model's text becomes a replacement."""
    return text.encode("utf-8", errors="replace")


def _put(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path
