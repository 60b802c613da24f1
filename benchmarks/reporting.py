"""One table per benchmark: printed row by row as it grows, whole at the end, as Markdown and as JSON."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import typed
from measure import Missed

Cell = str | int | float | Missed | None


class Report:
    """A table with its set-up and notes.

    Args:
        title: what is measured.
        setup: everything that a reader needs to run it again.
        columns: titles of the columns.
    """

    def __init__(self, title: str, setup: dict[str, Any], columns: list[str]) -> None:
        self.title = title
        self.setup = setup
        self.columns = columns
        self._rows: list[list[Cell]] = []
        self._notes: list[str] = []
        self._missed: dict[str, list[str]] = {}
        """Why a figure is missing -> the rows that lack it."""
        print(f"# {title}", flush=True)
        print(", ".join(f"{key} {value}" for key, value in setup.items()), flush=True)
        print(self._line(columns), flush=True)

    def add(self, *cells: Cell) -> None:
        """Add and print a row; the reasons of missing figures become notes."""
        for column, cell in zip(self.columns, cells, strict=True):
            if isinstance(cell, Missed):
                self._missed.setdefault(f"{column}: {cell.reason}", []).append(self._label(cells))
        self._rows.append(list(cells))
        print(self._line([_text(cell) for cell in cells]), flush=True)

    def note(self, text: str) -> None:
        """Add a remark below the table."""
        if text not in self._notes:
            self._notes.append(text)

    def markdown(self) -> str:
        """Return title, set-up, table and notes."""
        setup = "; ".join(f"{key}: {value}" for key, value in self.setup.items())
        table = [self._line(self.columns), "|" + "---|" * len(self.columns)]
        table += [self._line([_text(cell) for cell in row]) for row in self._rows]
        missed = [f"'-' in {reason} ({', '.join(dict.fromkeys(rows))})" for reason, rows in self._missed.items()]
        notes = [f"- {note}" for note in (*self._notes, *missed)]
        return "\n".join([f"## {self.title}", "", setup, "", *table, "", *notes, ""])

    def finish(self, arguments: argparse.Namespace, *others: Report) -> None:
        """Print this table, and others of the same run, whole; write the files that were asked for."""
        reports = (self, *others)
        text = "\n".join(report.markdown() for report in reports)
        print("\n" + text, flush=True)
        if arguments.markdown:
            arguments.markdown.write_text(text, encoding="utf-8")
        if arguments.json:
            data = [report.data() for report in reports]
            arguments.json.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def data(self) -> dict[str, Any]:
        """Return the table as plain data; a missing figure is {"missed": reason}."""
        rows = [[{"missed": c.reason} if isinstance(c, Missed) else c for c in row] for row in self._rows]
        return {"title": self.title, "setup": self.setup, "columns": self.columns, "rows": rows, "notes": self._notes}

    def _label(self, cells: tuple[Cell, ...]) -> str:
        return " ".join(_text(cell) for cell in cells[:3] if not isinstance(cell, Missed | float))

    @staticmethod
    def _line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def ratio(value: float | Missed, base: float | Missed) -> float | Missed | None:
    """Return value / base where both are there."""
    if isinstance(value, Missed) or isinstance(base, Missed):
        return None
    return value / base


def scaled(value: float | Missed, factor: float) -> float | Missed:
    """Return value x factor where it is there."""
    return value if isinstance(value, Missed) else value * factor


def options(description: str, sizes: Sequence[str] = ("full", "tiny")) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have; without a GPU the last size is the default."""
    parser = argparse.ArgumentParser(description=description)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", type=typed.device, default="cuda:0" if has_gpu else "cpu")
    parser.add_argument("--size", choices=sizes, default=sizes[0] if has_gpu else sizes[-1])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16" if has_gpu else "float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=220.0, help="begin no further row after this time")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    return parser


def setup_of(device: str, dtype: str, **more: Any) -> dict[str, Any]:
    """Return device, versions, dtype and further facts."""
    is_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": name, **versions, "python": platform.python_version(), "dtype": dtype, **more}


def _text(cell: Cell) -> str:
    if cell is None or isinstance(cell, Missed):
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)
