"""One fused decoding step over several GPUs: beside its slowest GPU alone, and the floor of that, in one run.

    python benchmarks/multi_gpu.py [--devices 1,2,3,4] [--batches 1,8,32,64] [--context 512]

The paper's three shapes, each on a GPU of its own, on two GPUs or on one; four heads on four GPUs. A GPU alone runs its
own heads as a step of their own. Times are the wall clock's over 48 steps that are queued at once, all GPUs waited for
at the end; `host` is what the one thread takes to queue a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import typed
from flowinfer.engine.loops.side import Side
from loops import floor_bytes
from measure import Deadline, Missed, ceilings, synchronize
from ours import packed_step
from reporting import Report, options, ratio, scaled, setup_of
from shapes import ShapeModel, shapes

COLUMNS = [
    *("heads on GPUs", "batch", "floor ms", "slowest GPU alone ms", "step ms", "x floor", "x slowest", "more ms"),
    *("host ms", "tok/s"),
]
PLACEMENTS = {1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 1, 2), 4: (0, 1, 2, 3)}
"""GPUs -> where Qwen, Ds, Yi, and a second Qwen, run; on two GPUs the longest, Yi, has one of its own."""
_WARM_UPS, _STEPS = 8, 48


@dataclass(frozen=True)
class Timed:
    """What a step takes, in seconds."""

    step: float
    host: float


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    count = torch.cuda.device_count()
    parser.add_argument(
        "--devices",
        type=typed.among(*map(str, PLACEMENTS)),
        default=",".join(str(one) for one in PLACEMENTS if one <= max(1, count)),
        help="numbers of GPUs, not their names",
    )
    parser.add_argument("--batches", type=typed.numbers, default="1,8,32,64")
    parser.add_argument("--context", type=typed.number, default=512)
    parser.add_argument("--layers", type=typed.number, help="fewer layers, to try things")
    arguments = parser.parse_args()
    deadline, dtype = Deadline(arguments.seconds), getattr(torch, arguments.dtype)
    limits = ceilings(torch.device(arguments.device), dtype)
    copy = limits.copy_bytes_per_second
    setup = setup_of(arguments.device, arguments.dtype, gpus=count, copy_tb_s=f"{copy / 1e12:.3g}")
    report = Report("A step over several GPUs", {**setup, "context": arguments.context}, COLUMNS)
    models: dict[tuple[str, int], ShapeModel] = {}
    for number in map(int, arguments.devices):
        heads = _heads(PLACEMENTS[number], arguments, dtype, models)
        for batch in arguments.batches:
            _add(report, heads, batch, arguments.context, copy, deadline)
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


def _heads(
    placement: Sequence[int], arguments: object, dtype: torch.dtype, models: dict[tuple[str, int], ShapeModel]
) -> list[ShapeModel]:
    """Return the shapes' models where they are placed, made once for each device."""
    names = ("Qwen", "Ds", "Yi", "Qwen")
    found = []
    for index, (name, place) in enumerate(zip(names, placement, strict=False)):
        if (name, place) not in models:
            device = f"cuda:{place}" if torch.cuda.is_available() else "cpu"
            shape = shapes(arguments.size, [name], layers=arguments.layers)[0]  # type: ignore[attr-defined]
            models[name, place] = ShapeModel(shape, device, dtype, seed=index)
        found.append(models[name, place])
    return found


def _add(
    report: Report, heads: Sequence[ShapeModel], batch: int, context: int, copy: float, deadline: Deadline
) -> None:
    devices = list(dict.fromkeys(model.device for model in heads))
    shares = [[model for model in heads if model.device == device] for device in devices]
    alone: list[float | Missed] = []
    for own in shares:
        alone.append(deadline.attempt(lambda own=own: _timed(own, batch, context).step))  # type: ignore[misc]
    hosts: list[float] = []

    def whole() -> float:
        timed = _timed(heads, batch, context)
        hosts.append(timed.host)
        return timed.step

    step = deadline.attempt(whole) if len(devices) > 1 else alone[0]
    missed = [one for one in alone if isinstance(one, Missed)]
    slowest: float | Missed = missed[0] if missed else max(one for one in alone if not isinstance(one, Missed))
    floor = max(floor_bytes(own, batch, context) for own in shares) / copy
    more = None if isinstance(step, Missed) or isinstance(slowest, Missed) else 1e3 * (step - slowest)
    report.add(
        *(f"{len(heads)} on {len(devices)}", batch, 1e3 * floor, scaled(slowest, 1e3), scaled(step, 1e3)),
        *(ratio(step, floor), ratio(step, slowest), more, 1e3 * hosts[0] if hosts else None),
        None if isinstance(step, Missed) else batch / step,
    )


def _timed(models: Sequence[ShapeModel], batch: int, context: int) -> Timed:
    """Time steps of a group by the wall clock."""
    devices = list(dict.fromkeys(model.device for model in models))
    side = Side(devices)  # as a decoder has: on a GPU's default stream a copy to another waits for all work there
    side.follow()
    with side.on():
        return _timed_here(packed_step(models, batch, context), devices)


def _timed_here(step: Callable[[], object], devices: Sequence[torch.device]) -> Timed:
    for _ in range(_WARM_UPS):
        step()
    for device in devices:
        synchronize(device)
    start = time.perf_counter()
    for _ in range(_STEPS):
        step()
    queued = time.perf_counter()
    for device in devices:
        synchronize(device)
    return Timed((time.perf_counter() - start) / _STEPS, (queued - start) / _STEPS)


if __name__ == "__main__":
    main()
