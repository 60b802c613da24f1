"""Tables as data: columns with units, and entries that every writer can show in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Unit = Literal["percent", "points", "seconds", "ms", "p", "count", "plain", "times"]
"""percent: a share shown in %; points: a difference of shares in points; p: a p-value; times: a ratio."""

NOTHING = "-"
"""Shown where there is no number."""


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
    paper: tuple[float, float] | None = None
    """The paper's accuracy (0 to 1) and seconds, of other hardware and other prompts."""


Entry = Text | Number | Reached


@dataclass(frozen=True)
class Column:
    """A column."""

    key: str
    """For CSV and JSON."""
    title: str
    is_command: bool = False
    """To be typed into a terminal: of no use in a paper."""


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


def shown(entry: Entry) -> str:
    """Return an entry as plain text on one line."""
    match entry:
        case Text(text):
            return text
        case Number():
            return shown_number(entry)
        case Reached():
            return " ".join(part for part in reached_parts(entry) if part)


def reached_parts(entry: Reached) -> list[str]:
    """Return accuracy, interval with n, seconds, path, remark and the paper's, each as text or ""."""
    if entry.accuracy is None:
        return [NOTHING, "", "", "", "", _paper(entry)]
    return [
        f"{100 * entry.accuracy:.1f}",
        f"[{100 * entry.low:.1f}, {100 * entry.high:.1f}] n={entry.n}" if entry.n else "",
        f"{quantity(entry.seconds, 'seconds')} s" if entry.seconds is not None else f"{NOTHING} s",
        entry.path or "",
        entry.remark or "",
        _paper(entry),
    ]


def shown_number(entry: Number) -> str:
    """Return a number with its interval as plain text."""
    if entry.value is None:
        return NOTHING
    text = quantity(entry.value, entry.unit)
    if entry.low is not None and entry.high is not None:
        text += f" [{quantity(entry.low, entry.unit)}, {quantity(entry.high, entry.unit)}]"
    return text + (f" n={entry.n}" if entry.n is not None else "")


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
        case "count":
            return f"{value:.0f}"
        case "times":
            return f"{value:.2f}"
        case "plain":
            return f"{value:.2f}"


def sort_value(entry: Entry) -> float | str | None:
    """Return what a table is sorted by."""
    match entry:
        case Text(text):
            return text
        case Number(value):
            return value
        case Reached(accuracy):
            return accuracy


def fields(column: Column, entry: Entry) -> list[tuple[str, str | float | int | None]]:
    """Return an entry as named raw values, as CSV and JSON hold them; shares between 0 and 1."""
    match entry:
        case Text(text):
            return [(column.key, text)]
        case Number(value, _, low, high, n):
            found: list[tuple[str, str | float | int | None]] = [(column.key, value)]
            if low is not None or high is not None:
                found += [(f"{column.key}_low", low), (f"{column.key}_high", high)]
            return found + ([(f"{column.key}_n", n)] if n is not None else [])
        case Reached():
            return _reached_fields(column.key, entry)


def _reached_fields(key: str, entry: Reached) -> list[tuple[str, str | float | int | None]]:
    known = entry.accuracy is not None
    values: list[tuple[str, str | float | int | None]] = [
        (f"{key}_accuracy", entry.accuracy),
        (f"{key}_low", entry.low if known and entry.n else None),
        (f"{key}_high", entry.high if known and entry.n else None),
        (f"{key}_n", entry.n),
        (f"{key}_seconds", entry.seconds),
    ]
    if entry.path is not None:
        values.append((f"{key}_path", entry.path))
    if entry.remark is not None:
        values.append((f"{key}_remark", entry.remark))
    if entry.paper is not None:
        values += [(f"{key}_paper_accuracy", entry.paper[0]), (f"{key}_paper_seconds", entry.paper[1])]
    return values


def _paper(entry: Reached) -> str:
    return f"(paper {100 * entry.paper[0]:.1f}, {entry.paper[1]:.2f} s)" if entry.paper else ""


def has_numbers(table: Table) -> bool:
    """Whether a table says anything: it has rows, and a number in them that is not a count, or words only."""
    entries = [entry for row in table.rows for entry in row if not isinstance(entry, Text)]
    return bool(table.rows) and (not entries or any(_says_something(entry) for entry in entries))


def _says_something(entry: Number | Reached) -> bool:
    if isinstance(entry, Reached):
        return entry.accuracy is not None
    return entry.value is not None and entry.unit != "count"


def marked_best(entries: Sequence[Reached]) -> list[Reached]:
    """Mark the highest accuracy; equals are all marked, a lone one is not."""
    known = [entry.accuracy for entry in entries if entry.accuracy is not None]
    if len(known) < 2:
        return list(entries)
    top = max(known)
    return [Reached(**{**vars(entry), "is_marked": entry.accuracy == top}) for entry in entries]
