"""What a sweep would do: steps, how many are shared, memory, and about how long; without weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowinfer.errors import DataError
from flowinfer.machine import this_machine
from flowinfer.planning.merge import Merged, merge
from flowinfer.planning.plan import Plan, compile, members
from flowinfer.runs.store import read_json
from flowinfer.sweeps.folder import describe_sweep
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

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


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
    rate = _measured(out, flows[0].zoo)
    if rate is not None and not request.independent:
        seconds: float | None = rate * per_question * questions
        basis = "as fast as the last sweep of this zoo here"
    else:
        seconds = _guess(merged, placed, request, flows[0].zoo, questions)
        basis = "guessed from the models' sizes"
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
        models=_models(placed.whole),
        fits=placed.fits,
        seconds=seconds,
        basis=basis,
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
        size = "unknown size" if model.weight_bytes is None else _size(model.weight_bytes)
        print(f"model     {model.name} = {model.ref}: {size}, on {model.device} ({model.why})")
    print("memory    " + ("all models fit at once" if estimate.fits else "models are loaded in turn, stage by stage"))
    if estimate.seconds is not None:
        print(f"time      about {_duration(estimate.seconds)}, {estimate.basis}; steps in the cache take none")


def _measured(out: Path, zoo: str) -> float | None:
    """Return the seconds per model call of the last complete sweep of a zoo."""
    for file in sorted(out.glob("*/results.json"), reverse=True):
        try:
            data, said = read_json(file), describe_sweep(file.parent)
        except DataError:
            continue
        is_like = said.get("zoo") == zoo and not said.get("settings", {}).get("independent")
        if is_like and data.get("calls_made") and not said.get("settings", {}).get("latency"):
            return float(data["seconds"]) / int(data["calls_made"])
    return None


def _guess(merged: Merged, placed: Placed, request: SweepRequest, zoo: str, questions: int) -> float | None:
    """Return a rough time: forward passes of full batches, one head after another; None where sizes are unknown."""
    uses: dict[str, int] = {shared.id: 1 for shared in merged.steps}
    if request.independent:
        uses = dict.fromkeys(uses, 0)
        for plan_uses in merged.uses:
            for use in plan_uses.values():
                uses[use.shared] += 1
    total = 0.0
    for shared in merged.steps:
        tokens = min(shared.step.decoding.max_tokens, _LAB_TOKENS if zoo in ("lab", "toy") else _TOKENS)
        for member in members(shared.step.source):
            need = shared.plan.needs.get(member.model)
            if need is None or need.parameters is None:
                return None
            device = shared.plan.placements[member.model].device
            rows = 1 if request.independent or request.batch == 1 else _rows(device)
            total += uses[shared.id] * questions * tokens * _forward(device, need.parameters, rows) / rows
    return total if placed.whole is not None else None


def _rows(device: str) -> int:
    return _ROWS_ON_GPU if device.startswith("cuda") else _ROWS_ON_CPU


def _forward(device: str, parameters: int, rows: int) -> float:
    if device.startswith("cuda"):
        return _OVERHEAD_SECONDS + 2 * parameters / _BYTES_ON_GPU + rows * 2 * parameters / _FLOPS_ON_GPU
    flops = _FLOPS_PER_CORE * (os.cpu_count() or 1)
    return _OVERHEAD_SECONDS + 4 * parameters / _BYTES_ON_CPU + rows * 2 * parameters / flops


def _models(whole: Plan | None) -> tuple[ModelRow, ...]:
    if whole is None:
        return ()
    rows: Sequence[ModelRow] = [
        ModelRow(
            name,
            Path(spec.ref).name if Path(spec.ref).is_absolute() else spec.ref,
            whole.needs[name].weight_bytes,
            whole.placements[name].device,
            whole.placements[name].why,
        )
        for name, spec in whole.models.items()
    ]
    return tuple(rows)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
