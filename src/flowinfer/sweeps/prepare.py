"""From a request to checked flows and loaded questions; no models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowinfer.planning.plan import columns
from flowinfer.sweeps.request import SweepRequest
from flowinfer.sweeps.wirings import Wiring, wirings
from flowinfer.tasks.base import Dataset, load_questions


@dataclass(frozen=True)
class Prepared:
    """A request with its flows checked and its questions loaded."""

    request: SweepRequest
    wirings: tuple[Wiring, ...]
    datasets: tuple[Dataset, ...]


def prepare(request: SweepRequest) -> Prepared:
    """Check flows and load questions.

    Raises:
        FlowError, DataError, UsageError: where, what and the cure.
    """
    found = wirings(request)
    uses_items = found[0].checked.zoo in ("toy", "lab")
    needed = {name: model for wiring in found for name, model in columns(wiring.checked).items()}
    datasets = [
        load_questions(
            name,
            data={key: Path(path) for key, path in request.data.items()},
            limit=request.limit,
            sample=request.sample,
            seed=request.seed,
            use_items=uses_items,
            answer_index=request.answer_index,
            columns=needed,
        )
        for name in request.datasets
    ]
    return Prepared(request, tuple(found), tuple(datasets))
