"""What a sweep would do: steps, how many are shared, memory, and about how long; without weights."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flowinfer.errors import DataError
from flowinfer.machine import this_machine
from flowinfer.planning.merge import Merged, merge
from flowinfer.planning.placement import shown_bytes
from flowinfer.planning.plan import Plan, compile, members
from flowinfer.runs.store import read_described, read_json
from flowinfer.sweeps.placing import Placed, place_all
from flowinfer.sweeps.prepare import prepare
from flowinfer.sweeps.request import SweepRequest

_TOKENS, _LAB_TOKENS = 300, 50
"""Tokens that an answer is thought to take, where max_tokens allows them."""
_OVERHEAD_SECONDS = 0.02
"""Of one forward pass, whatever its size."""
_ROWS_ON_CPU, _ROWS_ON_GPU = 32, 128
_BYTES_ON_CPU, _BYTES_ON_GPU = 1e10, 1.5e12
"""Weights read per second."""
_FLOPS_PER_CORE, _FLOPS_ON_GPU = 3e10, 1.5e14


@dataclass(frozen=True)
class ModelRow:
    """One model of a sweep."""

    name: str
    ref: str
    weight_bytes: int | None
    device: str
    why: str

    @classmethod
    def of(cls, plan: Plan, name: str) -> ModelRow:
        """Look at a model of a plan."""
        ref, placement = plan.models[name].ref, plan.placements[name]
        shown = Path(ref).name if Path(ref).is_absolute() else ref
        return cls(name, shown, plan.needs[name].weight_bytes, placement.device, placement.why)


@dataclass(frozen=True)
class PathRow:
    """One path of a sweep."""

    key: str
    strategy: str | None
    name: str
    problem: str | None
    """Why it cannot run here."""


@dataclass(frozen=True)
class Estimate:
    """What a sweep would do."""

    zoo: str
    zoo_why: str
    paths: tuple[PathRow, ...]
    datasets: dict[str, int]
    """Label -> questions."""
    steps_alone: int
    """Of one question over all paths."""
    steps_shared: int
    calls_alone: int
    """Model calls over all questions."""
    calls: int
    """Model calls that the sweep makes at most."""
    models: tuple[ModelRow, ...]
    fits: bool
    """Whether all models fit into memory at once; else they are loaded in turn, stage by stage."""
    seconds: float | None
    basis: str
    """Where the seconds come from."""


def estimate(request: SweepRequest, out: Path) -> Estimate:
    """Look at what a sweep would do.

    Args:
        out: folder of sweeps, of which the last one of the same zoo says how fast this machine is.
    Raises:
        FlowError, DataError, UsageError: the request is wrong.
    """
    prepared = prepare(request)
    flows = [wiring.checked for wiring in prepared.wirings]
    placed = place_all(flows, this_machine())
    merged = merge([plan or compile(flow) for plan, flow in zip(placed.plans, flows, strict=True)])
    questions = sum(len(dataset.questions) for dataset in prepared.datasets)
    per_question = merged.calls_alone if request.independent else merged.calls_shared
    rate = None if request.independent else _measured(out, flows[0].zoo)
    return Estimate(
        zoo=flows[0].zoo,
        zoo_why=flows[0].zoo_why,
        paths=tuple(
            PathRow(wiring.key, wiring.strategy, wiring.name, problem)
            for wiring, problem in zip(prepared.wirings, placed.problems, strict=True)
        ),
        datasets={dataset.label: len(dataset.questions) for dataset in prepared.datasets},
        steps_alone=sum(len(uses) for uses in merged.uses),
        steps_shared=len(merged.steps),
        calls_alone=merged.calls_alone * questions,
        calls=per_question * questions,
        models=tuple(ModelRow.of(placed.whole, name) for name in placed.whole.models) if placed.whole else (),
        fits=placed.fits,
        seconds=_guess(merged, placed, request, flows[0].zoo, questions)
        if rate is None
        else rate * per_question * questions,
        basis="guessed from the models' sizes" if rate is None else "as fast as the last sweep of this zoo here",
    )


def print_estimate(estimate: Estimate) -> None:
    """Print it for people."""
    for row in estimate.paths:
        problem = f"  cannot run here: {row.problem}" if row.problem else ""
        print(f"{row.key}  {row.strategy or '-':<6}  {row.name}{problem}")
    asked = ", ".join(f"{label} {n}" for label, n in estimate.datasets.items())
    print(f"\n{len(estimate.paths)} paths, questions: {asked}; zoo {estimate.zoo} ({estimate.zoo_why})")
    shared = estimate.steps_alone - estimate.steps_shared
    print(f"steps     {estimate.steps_alone} per question path by path, {estimate.steps_shared} run, {shared} shared")
    print(f"calls     {estimate.calls:,} of models at most; path by path {estimate.calls_alone:,}")
    for model in estimate.models:
        size = "unknown size" if model.weight_bytes is None else shown_bytes(model.weight_bytes)
        print(f"model     {model.name} = {model.ref}: {size}, on {model.device} ({model.why})")
    print("memory    " + ("all models fit at once" if estimate.fits else "models are loaded in turn, stage by stage"))
    if estimate.seconds is not None:
        print(f"time      about {_duration(estimate.seconds)}, {estimate.basis}; steps in the cache take none")


def _measured(out: Path, zoo: str) -> float | None:
    """Return the seconds per model call of the last complete sweep of a zoo."""
    for file in sorted(out.glob("*/results.json"), reverse=True):
        try:
            data, said = read_json(file), read_described(file.parent / "sweep.json")
        except DataError:
            continue
        is_like = said.get("zoo") == zoo and not said.get("settings", {}).get("independent")
        if is_like and data.get("calls_made") and not said.get("settings", {}).get("latency"):
            return float(data["seconds"]) / int(data["calls_made"])
    return None


def _guess(merged: Merged, placed: Placed, request: SweepRequest, zoo: str, questions: int) -> float | None:
    """Return a rough time: forward passes of full batches, one head after another; None where sizes are unknown."""
    uses = Counter(use.shared for plan_uses in merged.uses for use in plan_uses.values())
    total = 0.0
    for shared in merged.steps:
        most = _LAB_TOKENS if zoo in ("lab", "toy") else _TOKENS
        tokens = min(shared.step.decoding.max_tokens, most) * (uses[shared.id] if request.independent else 1)
        for member in members(shared.step.source):
            need, device = shared.plan.needs.get(member.model), shared.plan.placements[member.model].device
            if need is None or need.parameters is None:
                return None
            total += questions * tokens * _seconds_a_token(device, need.parameters, request)
    return total if placed.whole is not None else None


def _seconds_a_token(device: str, parameters: int, request: SweepRequest) -> float:
    """Return a row's share of a forward pass that reads all weights once and computes with them for every row."""
    if device.startswith("cuda"):
        most, read, computed = _ROWS_ON_GPU, 2 * parameters / _BYTES_ON_GPU, 2 * parameters / _FLOPS_ON_GPU
    else:
        flops = _FLOPS_PER_CORE * (os.cpu_count() or 1)
        most, read, computed = _ROWS_ON_CPU, 4 * parameters / _BYTES_ON_CPU, 2 * parameters / flops
    rows = 1 if request.independent or request.batch == 1 else most
    return (_OVERHEAD_SECONDS + read) / rows + computed


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
