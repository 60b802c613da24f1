"""How a table is laid out, as data: its rows by name, its columns with units, and what a reader must know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["text", "flow", "cell", "percent", "points", "seconds", "ms", "p", "count", "cost", "mean"]
"""cell: an accuracy with all that belongs to it; percent: a share shown in %; points: a difference of shares."""


@dataclass(frozen=True)
class Column:
    """A column, or one for each single, kind, place or model that is there, where `{single}` and so on stand in it."""

    key: str
    """For CSV and JSON."""
    title: str
    unit: Unit = "text"
    value: str = ""
    """Where rows have their value, if not under the key: names that users give could meet others."""
    level: float | None = None
    """Numbers below it are marked."""
    is_command: bool = False
    """To be typed into a terminal: of no use in a paper."""


@dataclass(frozen=True)
class Layout:
    """A table before its rows are filled in."""

    key: str
    """Name of its files."""
    title: str
    caption: str
    rows: str
    """What a row is."""
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Strategies or tests that it is about, all if none is named."""
    marks: Literal["none", "row", "column"] = "none"
    """Where the best accuracy is marked."""
    is_long: bool = False
    """Many rows of one kind: worth a filter."""
