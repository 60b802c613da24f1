"""A group of two GGUF files on a CPU, beside llama.cpp's own speed with each of them.

    python benchmarks/gguf.py A.gguf B.gguf [--batches 1,8,32] [--steps 32] [--repeats 3] [--threads N]

Own: a plain greedy loop over llama.cpp's calls, one new id in every row; with all threads, and with one of two heads'
share of them. Two processes: the same loop in a process for each file with its share of the threads, which wait for
each other after every step: what the memory's one bus lets two programs do at once. Ours: a step of `(A | B)`, heads
side by side and in turn; a step takes the way that its heads' sizes let expect to be the quicker one, here starred.
Prompts are read before the clock starts. Best of some repeats, all kinds in turn. Wall-clock, and CPU seconds, which
other programs on the machine disturb less. Goals at batch 1: side by side at most 1.15 x the slower one's own step with
that share; in turn at most 1.1 x the sum.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import torch

import flowinfer
import typed
from flowinfer.backends.base import TokenModel
from flowinfer.backends.gguf.context import Context, Entry
from flowinfer.backends.gguf.load import GgufModel, load
from flowinfer.engine.base import Observer, Row
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.sampling import most_probable
from flowinfer.engine.loops.workers import DeviceWorkers, is_quicker_in_turn
from flowinfer.planning.plan import Step, compile, members
from flowinfer.profiling.endless import endless
from flowinfer.spec import ModelSpec
from reporting import Report, options, ratio, setup_of

_PROMPT = 48
"""Ids that a row holds before it is measured, about as many as the question has in ours."""
_QUESTION = "Tom has 5 red pens and buys 7 blue ones. He gives 3 of them to Mia. How many pens has he got now?"
COLUMNS = [
    *("batch", "clock", "slower alone", "both alone, sum", "slower alone with its share", "two processes"),
    *("side by side", "x slower's share", "x two processes", "in turn", "x sum", "tokens/s"),
]


class Seconds(NamedTuple):
    """Of one step."""

    wall: float
    cpu: float


def main() -> None:
    """Measure and print the table, in milliseconds."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("files", nargs=2, type=Path)
    parser.add_argument("--batches", type=typed.numbers, default="1,8,32")
    parser.add_argument("--steps", type=typed.number, default=32)
    parser.add_argument("--repeats", type=typed.number, default=3)
    parser.add_argument("--threads", type=typed.number, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    files = [path.resolve() for path in arguments.files]
    told = {"files": " ".join(path.name for path in files), "steps": arguments.steps, "best of": arguments.repeats}
    models = [load(ModelSpec(name=f"M{k}", ref=str(path), backend="gguf"), "cpu") for k, path in enumerate(files)]
    declared = "".join(f'model M{k} = "{path}" {{ backend=gguf }}\n' for k, path in enumerate(files))
    with flowinfer.parse(f"{declared}(M0 | M1)[max_tokens=1000]", zoo="lab") as parsed:
        (step,) = compile(parsed.flow).steps
    share = max(1, arguments.threads // 2)
    columns = [name.replace(_way(models, arguments.threads), f"{name}*") for name in COLUMNS]
    report = Report("GGUF heads on a CPU, ms of a step", setup_of("cpu", "as stored", **told), columns)
    with Apart(files, share) as apart:
        for batch in arguments.batches:
            measured = [_measured(models, step, batch, arguments, apart) for _ in range(arguments.repeats)]
            for clock in Seconds._fields:
                best = {name: min(getattr(one[name], clock) for one in measured) for name in measured[0]}
                report.add(batch, clock, *_cells(best, batch))
    report.finish(arguments)


def _way(models: Sequence[GgufModel], threads: int) -> str:
    """Return the way that a step takes by itself."""
    is_in_turn = threads == 1 or is_quicker_in_turn([model.bytes_beside for model in models], threads)
    return "in turn" if is_in_turn else "side by side"


def _measured(
    models: Sequence[GgufModel], step: Step, batch: int, arguments: argparse.Namespace, apart: Apart
) -> Mapping[str, Seconds]:
    """Return seconds of a step of every kind, one after another."""
    found, steps, threads = {"apart": apart.measure(batch, arguments.steps)}, arguments.steps, arguments.threads
    for k, model in enumerate(models):
        for name, own in ((f"own{k}", threads), (f"share{k}", apart.threads)):
            torch.set_num_threads(own)
            found[name] = _own(model, batch, steps)
    torch.set_num_threads(threads)
    for name, beside in (("beside", 1), ("in turn", 0)):
        found[name] = _ours([endless(model) for model in models], step, batch, steps, [beside] * len(models))
    return found


class Apart:
    """Plain loops over files, each in a process of its own with so many threads, step by step at the same time."""

    def __init__(self, files: Sequence[Path], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.threads, self._ends, self._processes = threads, list[Connection](), list[SpawnProcess]()
        self._barrier = context.Barrier(len(files))  # is gone with its last holder here
        for path in files:
            own, other = context.Pipe()
            self._ends.append(own)
            self._processes.append(
                context.Process(target=_serve, args=(path, threads, self._barrier, other), daemon=True)
            )
            self._processes[-1].start()

    def measure(self, batch: int, steps: int) -> Seconds:
        """Return the seconds of a step of all."""
        for end in self._ends:
            end.send((batch, steps))
        found = [end.recv() for end in self._ends]
        return Seconds(max(one.wall for one in found), sum(one.cpu for one in found))

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.send(None)
            process.join()


def _serve(path: Path, threads: int, barrier: Barrier, end: Connection) -> None:
    """Measure what is asked for, beside others that do the same."""
    torch.set_num_threads(threads)
    model = load(ModelSpec(name=path.name, ref=str(path), backend="gguf"), "cpu")
    while asked := end.recv():
        end.send(_own(model, *asked, together=barrier.wait))


def _own(model: GgufModel, batch: int, steps: int, together: Callable[[], object] = lambda: None) -> Seconds:
    """Measure a plain greedy loop over llama.cpp; `together` waits for others behind every step."""
    context = Context(model._settings, batch, _PROMPT + steps + 1)
    for row in range(batch):
        context.read([Entry(row, position, 5 + position, False) for position in range(_PROMPT)])
    ids, position = [5] * batch, _PROMPT

    def turn() -> None:
        nonlocal ids, position
        logits = context.read([Entry(row, position, ids[row], True) for row in range(batch)])
        ids, position = most_probable(logits).tolist(), position + 1
        together()

    return _timed(turn, steps)


def _ours(models: Sequence[TokenModel], step: Step, batch: int, steps: int, beside: Sequence[int]) -> Seconds:
    """Measure rounds of a group whose answers do not end."""
    decoder = RoundDecoder(step, models, batch=batch, observer=Observer())
    decoder.workers = DeviceWorkers([model.device for model in models], decoder.clock, beside=beside)
    stream = decoder.stream()
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
        *(1e3 * slower, 1e3 * total, 1e3 * share, 1e3 * best["apart"]),
        *(1e3 * beside, ratio(beside, share), ratio(beside, best["apart"]), 1e3 * turn, ratio(turn, total)),
        batch / min(beside, turn),
    ]


if __name__ == "__main__":
    main()
