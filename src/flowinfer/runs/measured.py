"""What the steps of a plan took in a run that is there: for what a question will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import Plan
from flowinfer.runs.finding import list_runs
from flowinfer.runs.store import read_json, read_records


@dataclass(frozen=True)
class Measured:
    """The seconds of a run's steps."""

    run: str
    """Name of its folder."""
    batch: str
    """Rows at once; a step's seconds hold its waiting for others of its batch."""
    questions: int
    seconds: Mapping[str, float]
    """Mean of each step that ran, where it was not taken from the cache."""


def measured(plan: Plan, out: Path) -> Measured | None:
    """Return what the steps of a plan took in its newest run on the same devices, under a folder; None without one."""
    wanted, devices = fingerprint(plan), {name: place.device for name, place in plan.placements.items()}
    for run in list_runs(out):
        if run.data.get("plan_fingerprint") != wanted:
            continue
        placed = read_json(run.path / "plan.json").get("placements", {})
        if {name: place.get("device") for name, place in placed.items()} != devices:
            continue
        records = [record for record in read_records(run.path) if record.trace.error is None]
        took: dict[str, list[float]] = {}
        for step in (step for record in records for step in record.trace.steps if step.cached_from is None):
            took.setdefault(step.step, []).append(step.seconds)
        if took:
            seconds = {name: fmean(own) for name, own in took.items()}
            return Measured(run.name, str(run.said("batch")), len(records), seconds)
    return None
