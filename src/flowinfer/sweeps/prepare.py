"""From a request to checked flows and loaded questions; no models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowinfer.sweeps.request import SweepRequest
from flowinfer.sweeps.wirings import Wiring, wirings
from flowinfer.tasks.base import Dataset, load_for


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
    chosen = {name: getattr(request, name) for name in ("limit", "sample", "seed", "answer_index", "few_shot")}
    chosen["data"] = {key: Path(path) for key, path in request.data.items()}
    flows = [wiring.checked for wiring in found]
    return Prepared(request, tuple(found), tuple(load_for(flows, name, **chosen) for name in request.datasets))
