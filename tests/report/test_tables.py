"""Layouts are filled by the names of their columns, which users' names must not meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flowinfer.output.layout import Column, Layout
from flowinfer.paper.tables import TABLES
from flowinfer.report.cells import Cells
from flowinfer.report.gather import gather
from flowinfer.report.table import shown
from flowinfer.report.tables import OWN, fill
from tests.report.sweeps import questions, write_run


def _cells(tmp_path: Path, *names: str) -> Cells:
    """Return cells of single models under other names: the first is always wrong, the others always right."""
    asked = questions("gsm8k", 4)
    runs = [write_run(tmp_path, flow, asked, rule=lambda flow, _: flow != "Qwen") for flow in ("Qwen", "Yi")]
    found = gather([str(run) for run in runs])
    wirings = tuple(replace(one, name=name) for one, name in zip(found.wirings, names, strict=True))
    return Cells(replace(found, wirings=wirings))


def test_models_named_as_a_column_keep_their_own_numbers(tmp_path: Path) -> None:
    table = fill(TABLES[0], _cells(tmp_path, "baseline", "task"))
    (row,) = table.rows
    assert [column.title for column in table.columns] == ["task", "baseline", "task", "mean of singles"]
    assert [shown(entry).split()[0] for entry in row] == ["gsm8k", "0.0", "100.0", "50.0"]


def test_a_data_set_named_as_a_column_keeps_its_own_numbers(tmp_path: Path) -> None:
    cells = _cells(tmp_path, "Qwen", "Yi")
    (dataset,) = cells.evidence.datasets
    named = Cells(replace(cells.evidence, datasets=(replace(dataset, label="path"),)))
    table = fill(OWN[0], named)
    assert [[shown(entry).split()[0] for entry in row] for row in table.rows] == [
        ["single", "Qwen", "0.0"],
        ["single", "Yi", "100.0"],
    ]


def test_a_column_for_which_no_row_has_a_value_is_left_out(tmp_path: Path) -> None:
    layout = Layout(
        "t", "T", "", rows="paths", columns=(Column("path", "path", "flow"), Column("ties", "ties", "count"))
    )
    table = fill(layout, _cells(tmp_path, "a", "b"))
    assert [column.key for column in table.columns] == ["path"]
    assert not table.has_numbers  # names alone say nothing
