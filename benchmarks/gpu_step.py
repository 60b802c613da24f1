"""One fused decoding step of the paper's three shapes: ours, transformers' loops, and the memory floor, in one run.

    python benchmarks/gpu_step.py [--batches 1,8,32,64,128] [--contexts 512,2048] [--only ours,eager] [--quick]

Floor = (weights without embeddings + batch x context x KV bytes) / copy bandwidth, measured in the same run. Graphs are
timed between CUDA events (median of 15 after 3 warm-ups), eager loops by the wall clock with the device synchronized
(median of 5 after 2). The per-question loop runs at batch 1 and is multiplied by the batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from loops import Tables, eager_step, floor_bytes, static_step
from measure import Ceilings, Deadline, Missed, ceilings, event_seconds, wall_seconds
from ours import packed_step
from reporting import Report, options, ratio, scaled, setup_of
from shapes import ShapeModel, build

PATHS = ("ours", "static", "eager", "question")
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
    parser.add_argument("--batches", default="1,8,32,64,128")
    parser.add_argument("--contexts", default="512,2048")
    parser.add_argument("--only", default=",".join(PATHS), help=f"of {', '.join(PATHS)}")
    parser.add_argument("--groups", default="fused,serial", help="three heads in one step; one 7B alone")
    parser.add_argument("--layers", type=int, help="fewer layers, to try things")
    parser.add_argument("--quick", action="store_true", help="batch 1 and 32, context 512, the fused group")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.contexts, arguments.groups = "1,32", "512", "fused"
    deadline, dtype = Deadline(arguments.seconds), getattr(torch, arguments.dtype)
    device = torch.device(arguments.device)
    limits = ceilings(device, dtype)
    models = build(arguments.size, arguments.device, dtype, seed=arguments.seed, layers=arguments.layers)
    report = Report("Decoding step", _setup(arguments, models, limits, deadline), COLUMNS)
    groups = {"fused": models, "serial": models[:1]}
    for name in arguments.groups.split(","):
        tables = Tables(groups[name])
        for context in map(int, arguments.contexts.split(",")):
            _rows(report, name, groups[name], tables, context, arguments, limits, deadline)
    report.note("per-question loop: measured at batch 1 and multiplied by the batch; one id per head and step")
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


def _rows(
    report: Report,
    name: str,
    models: Sequence[ShapeModel],
    tables: Tables,
    context: int,
    arguments: argparse.Namespace,
    limits: Ceilings,
    deadline: Deadline,
) -> None:
    device, only = models[0].device, set(arguments.only.split(","))

    def timed(path: str, make: Callable[[], Callable[[], object]], *, is_graph: bool) -> float | Missed:
        if path not in only:
            return Missed("not asked for")
        if is_graph:
            return deadline.attempt(lambda: event_seconds(make(), device, warmups=3, repeats=15))
        return deadline.attempt(lambda: wall_seconds(make(), device, warmups=2, repeats=5))

    question: float | Missed | None = None
    for batch in map(int, arguments.batches.split(",")):
        floor = floor_bytes(models, batch, context) / limits.copy_bytes_per_second
        ours = timed("ours", lambda b=batch: packed_step(models, b, context), is_graph=True)
        static: float | Missed = Missed(f"not measured above batch {_MOST_STATIC}")
        if batch <= _MOST_STATIC:
            static = timed("static", lambda b=batch: static_step(models, tables, b, context), is_graph=True)
        eager = timed(
            "eager", lambda b=batch: eager_step(models, tables, b, context, is_published=False), is_graph=False
        )
        if question is None:
            question = timed(
                "question", lambda: eager_step(models, tables, 1, context, is_published=True), is_graph=False
            )
        each = scaled(question, batch)
        report.add(
            *(name, context, batch, 1e3 * floor, scaled(ours, 1e3), ratio(ours, floor)),
            None if isinstance(ours, Missed) else batch / ours,
            *(scaled(static, 1e3), ratio(static, floor), scaled(eager, 1e3), ratio(eager, floor)),
            *(scaled(each, 1e3), ratio(each, floor), ratio(each, ours), ratio(eager, ours)),
        )


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
