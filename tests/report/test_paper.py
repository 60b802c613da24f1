"""The paper's numbers agree with each other as our tables would compute them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from flowinfer.paper.numbers import numbers, published, row_of
from flowinfer.paper.paths import Strategy
from flowinfer.paper.tables import TABLES
from flowinfer.report.cells import Cells
from flowinfer.report.evidence import deviation
from flowinfer.report.gather import gather
from flowinfer.report.table import Reached
from flowinfer.report.tables import fill
from tests.report.sweeps import questions, write_run


@pytest.mark.parametrize(
    ("strategy", "accuracy", "seconds", "accuracy_deviation", "seconds_deviation"),
    [
        ("SI", 64.88, 67.58, 6.67, 11.18),
        ("PI", 68.17, 56.67, 0.69, 0.39),
        ("S2P", 65.78, 39.68, 11.45, 11.00),
        ("P2S", 69.89, 48.85, 6.28, 18.36),
    ],
)
def test_our_volatility_of_its_paths_is_its_table_8(
    strategy: str, accuracy: float, seconds: float, accuracy_deviation: float, seconds_deviation: float
) -> None:
    means = [cells["mean"] for row, cells in numbers().items() if row.startswith(f"{strategy} ")]
    accuracies, times = [100 * mean.accuracy for mean in means], [mean.seconds for mean in means]
    assert statistics.fmean(accuracies) == pytest.approx(accuracy, abs=0.02)
    assert statistics.fmean(times) == pytest.approx(seconds, abs=0.02)
    assert deviation(accuracies) == pytest.approx(accuracy_deviation, abs=0.02)
    assert deviation(times) == pytest.approx(seconds_deviation, abs=0.05)  # of means rounded before


@pytest.mark.parametrize("strategy", ["SI", "PI", "S2P", "P2S"])
def test_its_best_paths_in_table_4_are_in_tables_6_and_7(strategy: Strategy) -> None:
    for task in ("gsm8k", "ceval", "mathematics"):
        reached = [cells[task] for row, cells in numbers().items() if row.startswith(f"{strategy} ")]
        best = published(strategy, task)
        assert best in reached
        assert best and best.accuracy == max(cell.accuracy for cell in reached)


@pytest.mark.parametrize(
    ("strategy", "models", "accuracy"),
    [
        ("S2P", ("Qwen", "Yi", "Ds"), 0.79),  # Qwen -> (Yi | Ds) is Qwen-[Yi-Ds]
        ("P2S", ("Ds", "Qwen", "Yi"), 0.79),  # (Ds | Qwen) -> Yi is Yi-[Ds-Qwen]
        ("SI", ("Qwen", "Yi", "Ds"), 0.76),
        ("single", ("Yi",), 0.26),
    ],
)
def test_a_path_finds_its_cell(strategy: Strategy, models: tuple[str, ...], accuracy: float) -> None:
    cell = published(row_of(strategy, models), "gsm8k")
    assert cell is not None
    assert cell.accuracy == pytest.approx(accuracy)


def test_only_the_papers_tasks_and_models_stand_beside_its_numbers(tmp_path: Path) -> None:
    """Questions of one's own have a judge of the paper's too, and the mean of two singles is none of its means."""
    asked = questions("gsm8k", 4)
    runs = [write_run(tmp_path / "task", flow, asked) for flow in ("Qwen", "Yi", "Qwen -> Yi")]
    evidence = gather([str(run) for run in runs])
    table = fill(TABLES[0], Cells(evidence, "paper"))
    assert [isinstance(entry, Reached) and entry.paper is not None for entry in table.rows[0][1:]] == [
        *(True, True),  # the singles have its names
        *(False, False),  # mean and best are over other paths than its
    ]
    own = replace(evidence, datasets=tuple(replace(one, name="items.jsonl") for one in evidence.datasets))
    table = fill(TABLES[0], Cells(own, "paper"))
    assert not any(isinstance(entry, Reached) and entry.paper for row in table.rows for entry in row)


def test_other_models_and_tasks_have_no_cell() -> None:
    assert published(row_of("SI", ("A", "B", "C")), "gsm8k") is None
    assert published(row_of("PI", ("Qwen", "Yi", "Ds")), "exact") is None
