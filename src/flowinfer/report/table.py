"""Tables as data: columns with units, and entries that every writer can show in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowinfer.output.layout import Column, Unit
from flowinfer.paper.numbers import Published

NOTHING = "-"
"""Shown where there is no number."""
Value = str | float | int | None
Style = Literal["text", "flow", "value", "interval", "seconds", "remark", "paper"]


@dataclass(frozen=True)
class Text:
    """Words."""

    text: str
    is_flow: bool = False
    """A flow's text, set in a typewriter face."""
    target: str | None = None
    """Place in the page that tells more."""


@dataclass(frozen=True)
class Number:
    """One number, with its interval where it has one."""

    value: float | None
    unit: Unit
    low: float | None = None
    high: float | None = None
    n: int | None = None
    is_marked: bool = False
    """Best of its column, or significant."""


@dataclass(frozen=True)
class Reached:
    """An accuracy with its 95 % interval, what it cost, and which path reached it: a cell of the paper's tables."""

    accuracy: float | None
    low: float = 0.0
    high: float = 1.0
    n: int = 0
    seconds: float | None = None
    path: str | None = None
    remark: str | None = None
    """What of it is missing, e.g. 3 of 20 questions."""
    is_marked: bool = False
    paper: Published | None = None
    """The paper's cell, of other hardware and other prompts."""


Entry = Text | Number | Reached
NOWHERE = Reached(None)
"""Where nothing was measured."""


@dataclass(frozen=True)
class Table:
    """A table with what a reader must know about it."""

    key: str
    """Name of its files."""
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    is_long: bool = False
    """Many rows of one kind: worth a filter."""

    @property
    def has_numbers(self) -> bool:
        """Whether it says anything: it has a number that is not a count, or words only."""
        entries = [entry for row in self.rows for entry in row if not isinstance(entry, Text)]
        says = (isinstance(one, Reached) or one.unit != "count" for one in entries if sort_value(one) is not None)
        return bool(self.rows) and len(self.columns) > 1 and (not entries or any(says))


@dataclass(frozen=True)
class Piece:
    """A part of an entry that is shown in one style."""

    style: Style
    text: str


def entry_of(column: Column, value: Entry | Value) -> Entry:
    """Return a row's value as its column shows it: of a cell the accuracy with its interval, or only the seconds."""
    match value:
        case Text() | Number():
            return value
        case Reached() if column.unit == "cell":
            return value
        case Reached(None) if column.unit == "percent":
            return Number(None, "percent")
        case Reached() if column.unit == "percent":
            return Number(value.accuracy, "percent", value.low, value.high, value.n)
        case Reached():
            return Number(value.seconds, column.unit)
        case str():
            return Text(value, is_flow=column.unit == "flow")
        case None if column.unit == "cell":
            return NOWHERE
        case None:
            return Number(None, column.unit)
    return Number(value, column.unit, is_marked=column.level is not None and value < column.level)


def pieces(entry: Entry) -> list[Piece]:
    """Return what is shown of an entry, the most important first."""
    match entry:
        case Text():
            return [Piece("flow" if entry.is_flow else "text", entry.text)]
        case Number():
            return _number_pieces(entry)
    paper = f"(paper {100 * entry.paper.accuracy:.1f}, {entry.paper.seconds:.2f} s)" if entry.paper else ""
    if entry.accuracy is None:
        found = [Piece("value", NOTHING), Piece("paper", paper)]
    else:
        found = [
            Piece("value", quantity(entry.accuracy, "percent")),
            Piece("interval", f"[{100 * entry.low:.1f}, {100 * entry.high:.1f}] n={entry.n}" if entry.n else ""),
            Piece("seconds", f"{quantity(entry.seconds, 'seconds')} s"),
            Piece("flow", entry.path or ""),
            Piece("remark", entry.remark or ""),
            Piece("paper", paper),
        ]
    return [piece for piece in found if piece.text]


def _number_pieces(entry: Number) -> list[Piece]:
    ends = [] if entry.low is None else [f"[{quantity(entry.low, entry.unit)}, {quantity(entry.high, entry.unit)}]"]
    if entry.n is not None:
        ends.append(f"n={entry.n}")
    found = [Piece("value", quantity(entry.value, entry.unit))]
    return [*found, Piece("interval", " ".join(ends))] if ends and entry.value is not None else found


def shown(entry: Entry) -> str:
    """Return an entry as plain text on one line."""
    return " ".join(piece.text for piece in pieces(entry))


def quantity(value: float | None, unit: Unit) -> str:
    """Return a value with the digits of its unit."""
    if value is None:
        return NOTHING
    match unit:
        case "percent":
            return f"{100 * value:.1f}"
        case "points":
            return f"{100 * value:+.1f}"
        case "seconds":
            return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
        case "ms":
            return f"{value:.2f}" if value >= 1 else f"{value:.2g}"
        case "p":
            return "<0.001" if value < 0.001 else f"{value:.3f}"
        case "mean":
            return f"{value:.2f}"
        case "cost":
            return f"{value:.4g}"
        case "count":
            return f"{value:.0f}"
    return f"{value:.2f}"


def sort_value(entry: Entry) -> float | str | None:
    """Return what a table is sorted by."""
    match entry:
        case Text(text):
            return text
        case Number(value):
            return value
    return entry.accuracy


def raw_rows(table: Table) -> list[dict[str, Value]]:
    """Return rows as named raw values, as CSV and JSON hold them; shares between 0 and 1."""
    return [
        {name: value for column, entry in zip(table.columns, row, strict=True) for name, value in _raw(column, entry)}
        for row in table.rows
    ]


def _raw(column: Column, entry: Entry) -> list[tuple[str, Value]]:
    match entry:
        case Text(text):
            return [(column.key, text)]
        case Number():
            ends = [("_low", entry.low), ("_high", entry.high), ("_n", entry.n)]
            return [(column.key, entry.value), *((column.key + end, v) for end, v in ends if v is not None)]
    is_known = entry.accuracy is not None and entry.n > 0
    always: dict[str, Value] = {
        "accuracy": entry.accuracy,
        "low": entry.low if is_known else None,
        "high": entry.high if is_known else None,
        "n": entry.n,
        "seconds": entry.seconds,
    }
    paper = entry.paper
    some: dict[str, Value] = {
        "path": entry.path,
        "remark": entry.remark,
        "paper_accuracy": paper.accuracy if paper else None,
        "paper_seconds": paper.seconds if paper else None,
    }
    found = always | {name: value for name, value in some.items() if value is not None}
    return [(f"{column.key}_{name}", value) for name, value in found.items()]
