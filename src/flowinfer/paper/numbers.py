"""The paper's own numbers (its tables 4, 6 and 7): accuracy in %, seconds per question, in numbers.csv.

Measured by the paper on three A100 with models of 7-9 billion parameters and 100 questions per task: other hardware,
other models and other prompts than those of the runs that they are shown beside. Its models: Qwen is Qwen-2.5-7B, Ds
DeepSeek-R1-7B, Yi Yi-1.5-9B.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from flowinfer.paper.paths import Strategy, row_name

TASKS = ("gsm8k", "ceval", "mathematics")
MODELS = frozenset(("Qwen", "Yi", "Ds"))
AVERAGE = "AVG"
"""The row of table 4 with the mean of the singles; those of strategies have their best path."""
NOTE = (
    "the paper's numbers stand beside one's own for orientation only: other hardware (3 A100, one model each), "
    "other models (7-9 billion parameters) and other prompts, n = 100 per task"
)


@dataclass(frozen=True)
class Published:
    """One of its cells."""

    accuracy: float
    """Between 0 and 1."""
    seconds: float


@cache
def numbers() -> Mapping[str, Mapping[str, Published]]:
    """Return row -> task or mean -> cell: the rows of table 4, and `SI Qwen-Yi-Ds` and so on of tables 6 and 7."""
    text = (files(__package__) / "numbers.csv").read_text(encoding="utf-8")
    return {
        line["row"]: {
            task: Published(float(line[f"{task} %"]) / 100, float(line[f"{task} s"])) for task in (*TASKS, "mean")
        }
        for line in csv.DictReader(text.splitlines())
    }


def published(row: str, task: str) -> Published | None:
    """Return a cell, or None where the paper has none."""
    return numbers().get(row, {}).get(task)


def row_of(strategy: Strategy, models: Sequence[str]) -> str:
    """Return the name of a path's row."""
    return models[0] if strategy == "single" else f"{strategy} {row_name(strategy, models)}"
