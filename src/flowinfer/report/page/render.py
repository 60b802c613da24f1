"""Put a report into one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from flowinfer.paper.claims import PREFACE
from flowinfer.report.build import Report, Section
from flowinfer.report.page.texts import packed
from flowinfer.report.table import Entry, Number, Reached, Table, Text, pieces, shown, sort_value


@dataclass(frozen=True)
class Picture:
    """A figure in the page."""

    key: str
    title: str
    caption: str
    svg: Markup
    """Drawn by us: its texts are escaped already."""


@dataclass(frozen=True)
class View:
    """A section as the template sees it."""

    section: Section
    prefix: str
    """Of its ids, unique in the page."""
    figures: Sequence[Picture]


def render(report: Report, pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Return the page.

    Args:
        pictures: setup -> its figures.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_file("page.html.j2"))
    views = [
        View(section, f"g{index}-" if section.setup else "", pictures.get(section.setup, ()))
        for index, section in enumerate(report.sections, start=1)
    ]
    return template.render(
        report=report,
        views=views,
        cell=cell,
        side=_side,
        style=Markup(_file("page.css")),  # our own file
        script=Markup(_file("page.js")),
        texts=packed([section.evidence for section in report.sections]),
        version=_version(),
        preface=PREFACE,
    )


def cell(entry: Entry) -> Markup:
    """Return an entry as a table cell."""
    value = sort_value(entry)
    sorted_by = "" if value is None else value
    if isinstance(entry, Text):
        inner = Markup('<span class="flow">{}</span>').format(entry.text) if entry.is_flow else escape(entry.text)
        if entry.target:
            inner = Markup('<a href="{}" title="show the questions that changed">{}</a>').format(entry.target, inner)
        return Markup('<td data-v="{}">{}</td>').format(sorted_by, inner)
    is_stack = isinstance(entry, Reached)
    mark = (" best" if is_stack else " marked") if entry.is_marked else ""
    hint = Markup(' title="{}"').format(shown(entry)) if is_stack else ""
    return Markup('<td class="num{}" data-v="{}"{}>{}</td>').format(mark, sorted_by, hint, _measured(entry))


def _side(table: Table, column: int) -> Markup:
    """Return the class of a heading: numbers stand on the right."""
    is_words = not table.rows or isinstance(table.rows[0][column], Text)
    return Markup("") if is_words else Markup(' class="num"')


def _measured(entry: Number | Reached) -> Markup:
    """Return a value, a bar that shows its interval, and below it in small letters what belongs to it."""
    first, *rest = pieces(entry)
    if isinstance(entry, Number) and not rest:
        return escape(first.text)
    value = entry.value if isinstance(entry, Number) else entry.accuracy
    parts = [Markup('<span class="value">{}</span>').format(first.text)]
    is_share = isinstance(entry, Reached) or entry.unit == "percent"
    if is_share and value is not None and entry.n and entry.low is not None and entry.high is not None:
        parts.append(_bar(value, entry.low, entry.high))
    for piece in rest:
        name = Markup(' class="{}"').format(piece.style) if piece.style in ("flow", "remark", "paper") else ""
        parts.append(Markup("<small{}>{}</small>").format(name, piece.text))
    return Markup("").join(parts)


def _bar(value: float, low: float, high: float) -> Markup:
    return Markup('<i class="ci" style="--l:{};--h:{};--p:{}"></i>').format(
        f"{100 * low:.1f}", f"{100 * high:.1f}", f"{100 * value:.1f}"
    )


def _version() -> str:
    try:
        return metadata.version("flowinfer")
    except metadata.PackageNotFoundError:
        return "of a source tree"


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
