"""One fused decoding step of the paper's three shapes: ours, transformers' loops, and the memory floor, in one run.

    python benchmarks/gpu_step.py [--batches 1,8,32,64,128] [--contexts 512,2048] [--only ours,eager] [--quick]

Floor = (weights without embeddings + batch x context x KV bytes) / copy bandwidth, measured in the same run. Graphs are
timed between CUDA events (median of 15 after 3 warm-ups), eager loops by the wall clock with the device synchronized
(median of 5 after 2). The per-question loop runs at batch 1 and is multiplied by the batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import typed
from loops import Tables, eager_step, floor_bytes, static_step
from measure import Ceilings, Deadline, Missed, ceilings, event_seconds, wall_seconds
from ours import packed_columns, packed_step
from reporting import Report, options, ratio, scaled, setup_of
from shapes import ShapeModel, build

PATHS = ("ours", "told", "static", "eager", "question")
COLUMNS = [
    *("group", "context", "batch", "floor ms", "ours ms", "x floor", "ours tok/s"),
    *("StaticCache + graph ms", "x floor", "batched eager ms", "x floor", "per-question loop ms", "x floor"),
    *("per-question / ours", "batched eager / ours"),
]
_MOST_STATIC = 32
"""Rows above which transformers' masked static cache only costs time to measure."""


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--batches", type=typed.numbers, default="1,8,32,64,128")
    parser.add_argument("--contexts", type=typed.numbers, default="512,2048")
    parser.add_argument("--only", type=typed.among(*PATHS), default=",".join(PATHS), help=f"of {', '.join(PATHS)}")
    parser.add_argument(
        "--groups",
        type=typed.among("fused", "serial"),
        default="fused,serial",
        help="three heads in one step; one 7B alone",
    )
    parser.add_argument("--layers", type=typed.number, help="fewer layers, to try things")
    parser.add_argument("--quick", action="store_true", help="batch 1 and 32, context 512, the fused group")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.contexts, arguments.groups = [1, 32], [512], ["fused"]
    deadline, dtype = Deadline(arguments.seconds), getattr(torch, arguments.dtype)
    device = torch.device(arguments.device)
    limits = ceilings(device, dtype)
    models = build(arguments.size, arguments.device, dtype, seed=arguments.seed, layers=arguments.layers)
    report = Report("Decoding step", _setup(arguments, models, limits, deadline), COLUMNS)
    groups = {"fused": models, "serial": models[:1]}
    cases = [
        Case(name, tuple(groups[name]), context, batch)
        for name in arguments.groups
        for context in arguments.contexts
        for batch in arguments.batches
    ]
    figures = _measure(cases, set(arguments.only), arguments.seconds, deadline)
    for case in cases:
        _add(report, case, figures, limits)
    if "ours" in arguments.only:
        _columns(report, models, deadline)
    report.note("per-question loop: measured at batch 1 and multiplied by the batch; one id per head and step")
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    group: str
    models: tuple[ShapeModel, ...]
    context: int
    batch: int


Figures = dict[tuple[str, str, int, int], float | Missed]
"""(path, group, context, batch) -> seconds."""


def _measure(cases: Sequence[Case], only: set[str], seconds: float, deadline: Deadline) -> Figures:
    """Measure transformers' paths first, in at most half of the time: ours puts its own layers into the models."""
    figures: Figures = {}
    half = Deadline(max(0.0, seconds / 2 - deadline.elapsed))
    tables: dict[str, Tables] = {}
    for case in cases:
        if case.group not in tables:
            tables[case.group] = Tables(case.models)
        for path in ("question", "eager", "static"):
            if path not in only or (path == "static" and case.batch > _MOST_STATIC):
                continue
            key = (path, case.group, case.context, 1 if path == "question" else case.batch)
            if key not in figures:
                figures[key] = _told(key, half.attempt(_baseline(path, case, tables[case.group])))
    for case in cases:
        for path in ("ours", "told"):
            if path in only:
                key = (path, case.group, case.context, case.batch)
                figures[key] = _told(key, deadline.attempt(_ours(case, is_told=path == "told")))
    return figures


def _baseline(path: str, case: Case, tables: Tables) -> Callable[[], float]:
    def run() -> float:
        device = case.models[0].device
        if path == "static":
            return event_seconds(static_step(case.models, tables, case.batch, case.context), device)
        is_published = path == "question"
        batch = 1 if is_published else case.batch
        step = eager_step(case.models, tables, batch, case.context, is_published=is_published)
        return wall_seconds(step, device, warmups=2, repeats=5)

    return run


def _ours(case: Case, *, is_told: bool) -> Callable[[], float]:
    device = case.models[0].device
    return lambda: event_seconds(packed_step(case.models, case.batch, case.context, is_told=is_told), device)


def _told(key: tuple[str, str, int, int], found: float | Missed) -> float | Missed:
    """Print a figure at once, in case the run is cut off."""
    text = f"- ({found.reason})" if isinstance(found, Missed) else f"{1e3 * found:.3f} ms"
    print("  ", *key, text, flush=True)
    return found


def _add(report: Report, case: Case, figures: Figures, limits: Ceilings) -> None:
    floor = floor_bytes(case.models, case.batch, case.context) / limits.copy_bytes_per_second

    def figure(path: str, batch: int) -> float | Missed:
        if path == "static" and batch > _MOST_STATIC:
            return Missed(f"not measured above batch {_MOST_STATIC}")
        return figures.get((path, case.group, case.context, batch), Missed("not asked for"))

    ours, told, static, eager = (figure(path, case.batch) for path in ("ours", "told", "static", "eager"))
    if not isinstance(told, Missed):
        report.note(
            f"{case.group}, context {case.context}, batch {case.batch}: {1e3 * told:.3f} ms with every token told"
        )
    each = scaled(figure("question", 1), case.batch)
    report.add(
        *(case.group, case.context, case.batch, 1e3 * floor, scaled(ours, 1e3), ratio(ours, floor)),
        None if isinstance(ours, Missed) else case.batch / ours,
        *(scaled(static, 1e3), ratio(static, floor), scaled(eager, 1e3), ratio(eager, floor)),
        *(scaled(each, 1e3), ratio(each, floor), ratio(each, ours), ratio(eager, ours)),
    )


def _columns(report: Report, models: Sequence[ShapeModel], deadline: Deadline) -> None:
    """Note what verifying drafts costs: one row, more flat tokens per step."""
    told = []
    for tile in (4, 8, 16, 32):
        seconds = deadline.attempt(
            lambda t=tile: event_seconds(packed_columns(models, 512, t), models[0].device, warmups=3, repeats=15)
        )
        told.append(f"{tile}: {seconds.reason if isinstance(seconds, Missed) else f'{1e3 * seconds:.2f} ms'}")
    report.note(f"one row, three heads, context 512, by flat tokens per step: {', '.join(told)}")


def _setup(
    arguments: argparse.Namespace, models: Sequence[ShapeModel], limits: Ceilings, deadline: Deadline
) -> dict[str, object]:
    return setup_of(
        arguments.device,
        arguments.dtype,
        shapes=", ".join(f"{m.name} {m.shape.layers} x {m.shape.hidden}" for m in models),
        weights_gb=", ".join(f"{m.weight_bytes / 1e9:.3g}" for m in models),
        kv_bytes_per_token=", ".join(str(m.kv_bytes) for m in models),
        copy_tb_s=f"{limits.copy_bytes_per_second / 1e12:.3g}",
        read_tb_s=f"{limits.read_bytes_per_second / 1e12:.3g}",
        matmul_tflop_s=f"{limits.matmul_flops_per_second / 1e12:.3g}",
        seed=arguments.seed,
        ready_after_s=f"{deadline.elapsed:.0f}",
    )


if __name__ == "__main__":
    main()
