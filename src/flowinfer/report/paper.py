"""The paper's own numbers (its tables 4, 6 and 7), kept as data with their source.

Measured by the paper on three A100 with models of 7-9 billion parameters and 100 questions per task: other hardware,
other models and other prompts than those of the runs that they are shown beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flowinfer.paper.paths import Strategy

MODELS = frozenset(("Qwen", "Yi", "Ds"))
NOTE = (
    "the paper's numbers stand beside one's own for orientation only: other hardware (3 A100, one model each), "
    "other models (7-9 billion parameters) and other prompts, n = 100 per task"
)


@dataclass(frozen=True)
class PaperCell:
    """One of its cells."""

    accuracy: float
    """Between 0 and 1."""
    seconds: float


@cache
def data() -> Mapping[str, Any]:
    """Return the file as it is."""
    found: Mapping[str, Any] = json.loads((files(__package__) / "paper.json").read_text(encoding="utf-8"))
    return found


def single(model: str, task: str) -> PaperCell | None:
    """Return a single model's cell of table 4; task is gsm8k, ceval, mathematics or mean."""
    return _cell(data()["table_4"].get(model, {}).get(task))


def baseline(task: str) -> PaperCell | None:
    """Return the mean of the singles (AVG) of table 4."""
    return _cell(data()["table_4"]["AVG"].get(task))


def best(strategy: Strategy, task: str) -> PaperCell | None:
    """Return a strategy's best path of table 4."""
    return _cell(data()["table_4"].get(strategy, {}).get(task))


def path(strategy: Strategy, models: tuple[str, ...], task: str) -> PaperCell | None:
    """Return a path's cell of tables 6 and 7, or of table 4 where it is a single."""
    if strategy == "single":
        return single(models[0], task)
    order = "-".join(models)
    if strategy in ("S2P", "P2S"):
        alone = models[0] if strategy == "S2P" else models[-1]
        pair = models[1:] if strategy == "S2P" else models[:-1]
        order = f"{alone}-[{'-'.join(pair)}]"
    table = data()["table_6" if strategy in ("SI", "PI") else "table_7"]
    return _cell(table.get(strategy, {}).get(order, {}).get(task))


def _cell(found: list[float] | None) -> PaperCell | None:
    return PaperCell(found[0] / 100, found[1]) if found else None
