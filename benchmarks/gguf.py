"""A group of two GGUF files on a CPU, beside llama.cpp's own speed with each of them.

    python benchmarks/gguf.py A.gguf B.gguf [--batches 1,8,32] [--steps 32] [--repeats 3] [--threads N]

Own: a plain greedy loop over llama.cpp's calls, one new id in every row; with all threads, and with one of two heads'
share of them. Ours: a step of `(A | B)`, heads side by side and in turn. Prompts are read before the clock starts.
Best of some repeats, all kinds in turn in one process. Wall-clock, and the process's CPU seconds, which other programs
on the machine disturb less. Goals at batch 1: side by side at most 1.15 x the slower one's own step with that share;
in turn at most 1.1 x the sum.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import flowinfer
from flowinfer.backends.base import TokenModel
from flowinfer.backends.gguf.context import Context, Entry
from flowinfer.backends.gguf.load import GgufModel, load
from flowinfer.engine.base import Observer, Row
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.sampling import most_probable
from flowinfer.planning.plan import Step, compile, members
from flowinfer.profiling.endless import endless
from flowinfer.spec import ModelSpec
from reporting import Report, options, ratio, setup_of

_PROMPT = 48
"""Ids that a row holds before it is measured, about as many as the question has in ours."""
_QUESTION = "Tom has 5 red pens and buys 7 blue ones. He gives 3 of them to Mia. How many pens has he got now?"
COLUMNS = [
    *("batch", "clock", "slower alone", "both alone, sum", "slower alone with its share"),
    *("side by side", "x slower's share", "in turn", "x sum", "tokens/s"),
]


class Seconds(NamedTuple):
    """Of one step."""

    wall: float
    cpu: float


def main() -> None:
    """Measure and print the table, in milliseconds."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("files", nargs=2, type=Path)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    files = [path.resolve() for path in arguments.files]
    told = {"files": " ".join(path.name for path in files), "steps": arguments.steps, "best of": arguments.repeats}
    report = Report("GGUF heads on a CPU, ms of a step", setup_of("cpu", "as stored", **told), COLUMNS)
    models = [load(ModelSpec(name=f"M{k}", ref=str(path), backend="gguf"), "cpu") for k, path in enumerate(files)]
    declared = "".join(f'model M{k} = "{path}" {{ backend=gguf }}\n' for k, path in enumerate(files))
    with flowinfer.parse(f"{declared}(M0 | M1)[max_tokens=1000]", zoo="lab") as parsed:
        (step,) = compile(parsed.flow).steps
    for batch in map(int, arguments.batches.split(",")):
        found = [_measured(models, step, batch, arguments.steps, arguments.threads) for _ in range(arguments.repeats)]
        for clock in Seconds._fields:
            best = {name: min(getattr(one[name], clock) for one in found) for name in found[0]}
            report.add(batch, clock, *_cells(best, batch))
    report.finish(arguments)


def _measured(models: Sequence[GgufModel], step: Step, batch: int, steps: int, threads: int) -> Mapping[str, Seconds]:
    """Return seconds of a step of every kind, one after another."""
    found = {}
    for k, model in enumerate(models):
        for name, own in ((f"own{k}", threads), (f"share{k}", max(1, threads // 2))):
            torch.set_num_threads(own)
            found[name] = _own(model, batch, steps)
    torch.set_num_threads(threads)
    for name, beside in (("beside", True), ("in turn", False)):
        GgufModel.runs_beside = beside
        found[name] = _ours([endless(model) for model in models], step, batch, steps)
    return found


def _own(model: GgufModel, batch: int, steps: int) -> Seconds:
    """Measure a plain greedy loop over llama.cpp."""
    context = Context(model._settings, batch, _PROMPT + steps + 1)
    for row in range(batch):
        context.read([Entry(row, position, 5 + position, False) for position in range(_PROMPT)])
    ids, position = [5] * batch, _PROMPT

    def turn() -> None:
        nonlocal ids, position
        logits = context.read([Entry(row, position, ids[row], True) for row in range(batch)])
        ids, position = most_probable(logits).tolist(), position + 1

    return _timed(turn, steps)


def _ours(models: Sequence[TokenModel], step: Step, batch: int, steps: int) -> Seconds:
    """Measure rounds of a group whose answers do not end."""
    stream = RoundDecoder(step, models, batch=batch, observer=Observer()).stream()
    for index in range(batch):
        stream.add(Row(f"q{index}", step.id, {member.node: f"{index}: {_QUESTION}" for member in members(step.source)}))
    try:
        return _timed(stream.turn, steps)
    finally:
        assert stream.num_rows == batch, "a row has ended"
        stream.close()


def _timed(turn: Callable[[], object], steps: int) -> Seconds:
    turn()  # the first one reads prompts
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        turn()
    return Seconds((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)


def _cells(best: Mapping[str, float], batch: int) -> list[float | None]:
    slower, total = max(best["own0"], best["own1"]), best["own0"] + best["own1"]
    share = max(best["share0"], best["share1"])
    beside, turn = best["beside"], best["in turn"]
    return [
        *(1e3 * slower, 1e3 * total, 1e3 * share),
        *(1e3 * beside, ratio(beside, share), 1e3 * turn, ratio(turn, total)),
        batch / min(beside, turn),
    ]


if __name__ == "__main__":
    main()
