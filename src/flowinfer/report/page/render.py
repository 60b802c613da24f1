"""Put a report into one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from flowinfer.report.build import Report, Section
from flowinfer.report.claim import PREFACE
from flowinfer.report.page.texts import packed
from flowinfer.report.table import Entry, Number, Reached, Table, Text, quantity, reached_parts, shown, sort_value


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
    match entry:
        case Text(text, is_flow, target):
            inner = Markup('<span class="flow">{}</span>').format(text) if is_flow else escape(text)
            if target:
                inner = Markup('<a href="{}" title="show the questions that changed">{}</a>').format(target, inner)
            return Markup('<td data-v="{}">{}</td>').format(sorted_by, inner)
        case Number():
            marked = " marked" if entry.is_marked else ""
            return Markup('<td class="num{}" data-v="{}">{}</td>').format(marked, sorted_by, _number(entry))
        case Reached():
            best = " best" if entry.is_marked else ""
            hint = shown(entry)
            return Markup('<td class="num{}" data-v="{}" title="{}">{}</td>').format(
                best, sorted_by, hint, _reached(entry)
            )


def _side(table: Table, column: int) -> Markup:
    """Return the class of a heading: numbers stand on the right."""
    is_words = not table.rows or isinstance(table.rows[0][column], Text)
    return Markup("") if is_words else Markup(' class="num"')


def _number(entry: Number) -> Markup:
    if entry.value is None or entry.low is None or entry.high is None:
        return escape(shown(entry))
    interval = shown(Number(entry.value, entry.unit, entry.low, entry.high, entry.n)).partition(" ")[2]
    bar = _bar(entry.value, entry.low, entry.high) if entry.unit == "percent" else Markup("")
    return Markup('<span class="value">{}</span>{}<small>{}</small>').format(
        quantity(entry.value, entry.unit), bar, interval
    )


def _reached(entry: Reached) -> Markup:
    accuracy, interval, seconds, path, remark, paper = reached_parts(entry)
    parts = [Markup('<span class="value">{}</span>').format(accuracy)]
    if entry.accuracy is not None and entry.n:
        parts.append(_bar(entry.accuracy, entry.low, entry.high))
    parts += [Markup("<small>{}</small>").format(part) for part in (interval, seconds) if part]
    if path:
        parts.append(Markup('<small class="flow">{}</small>').format(path))
    if remark:
        parts.append(Markup('<small class="remark">{}</small>').format(remark))
    if paper:
        parts.append(Markup('<small class="paper">{}</small>').format(paper))
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
