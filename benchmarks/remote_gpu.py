"""A head in another process on another GPU: a step of two heads, beside the same two heads in one process.

    python benchmarks/remote_gpu.py [--batches 64,1] [--size full] [--seconds 100]

Qwen's shape on cuda:0, DeepSeek's on cuda:1, random weights, loopback. What a head says goes over its connection (tcp)
or by NCCL, see docs/heads.md; greedy rows move 64 candidates, rows that draw move whole distributions. Both heads have
the same weights, so they agree as good models mostly do (`--unlike`: never). A step's time is the wall clock's between
tokens 8 and the last of all rows; `head` is what the head works in it, `network` what else it is waited for. Without
GPUs it is two processes on a CPU, and gloo.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import typed
from flowinfer.backends.base import TokenModel
from flowinfer.engine.base import Observer, Row, decode
from flowinfer.engine.loops.choice import Loop, make_decoder
from flowinfer.engine.loops.packing import runners_of, session_maker
from flowinfer.errors import LoadError
from flowinfer.remote.client import RemoteModel
from flowinfer.remote.head import Head
from flowinfer.remote.server import HeadServer
from flowinfer.spec import ModelSpec
from measure import Deadline, Missed
from reporting import Report, options, setup_of
from shapes import ShapeModel, shapes, step_of

COLUMNS = ["rows", "batch", "way", "step ms", "head ms", "network ms", "KB a step", "tok/s"]
_PROMPT, _TOKENS, _SKIPPED = 256, 72, 8
_SURE = 8.0
"""What random output weights are scaled by: models that know as little as these settle nothing by 64 candidates."""


@dataclass
class Watched(Observer):
    """Notes when tokens came, and what had gone to a head until then."""

    far: RemoteModel | None
    num_tokens: int = 0
    seen: list[tuple[int, float, tuple[float, ...]]] = field(default_factory=list)

    def tokens_emitted(self, count: int) -> None:
        """Hear that tokens were emitted."""
        self.num_tokens += count
        of = self.far.traffic if self.far else None
        moved = (of.waited, of.worked, float(of.sent + of.received)) if of else (0.0, 0.0, 0.0)
        self.seen.append((self.num_tokens, time.perf_counter(), moved))

    def per_step(self, batch: int) -> list[float]:
        """Return seconds, seconds waited for the head and worked by it, and bytes, of a step."""
        first = next(one for one in self.seen if one[0] >= batch * _SKIPPED)
        last = self.seen[-1]
        steps = (last[0] - first[0]) / batch
        moved = [(end - begin) / steps for begin, end in zip(first[2], last[2], strict=True)]
        return [(last[1] - first[1]) / steps, *moved]


def run(models: Sequence[TokenModel], batch: int, temperature: float, far: RemoteModel | None) -> Any:
    """Return a step's figures and the rows' texts."""
    step = step_of(models, max_tokens=_TOKENS)  # type: ignore[arg-type]  # only names are asked of them
    step = replace(step, decoding=replace_decoding(step.decoding, temperature))
    watched = Watched(far)
    decoder = make_decoder(Loop(step, models, None, batch, watched, False), "auto")
    rows = [Row(f"q{k}", "s1", {f"n{n}": f"{k} {_PROMPT}" for n in range(len(models))}) for k in range(batch)]
    ended = list(decode(decoder, rows))
    texts = {one.row.question_id: one.result.text for one in ended if one.result}
    assert len(texts) == batch, [one.error for one in ended][:1]
    return watched.per_step(batch), texts


def replace_decoding(decoding: Any, temperature: float) -> Any:
    """Return the options of a step without drafts, and with a temperature."""
    return decoding.model_copy(update={"temperature": temperature, "speculate": "off"})


def made(name: str, index: int, arguments: argparse.Namespace) -> ShapeModel:
    """Return a model on its device."""
    device = f"cuda:{index}" if torch.cuda.is_available() else "cpu"
    shape = shapes(arguments.size, [name], layers=arguments.layers)[0]
    seed = index if arguments.unlike else 0
    model = ShapeModel(shape, device, getattr(torch, arguments.dtype), seed=seed)
    with torch.no_grad():
        model.transformers_model.lm_head.weight.mul_(_SURE)
    return model


def serve(arguments: argparse.Namespace) -> None:
    """Be the head, at two ports: over its connection alone, and beside it."""
    model, rows = made("Ds", 1, arguments), max(arguments.batches)
    runners = runners_of([model])
    assert not isinstance(runners, str), runners
    sessions, ports = session_maker(step_of([model]), [model], runners, rows), []
    for is_direct in (False, True):
        server = HeadServer(b"")
        ports.append(server.listen("127.0.0.1", 0)[1])
        server.hold(Head(model, "Ds", rows=rows, open_session=lambda: sessions()[0], is_direct=is_direct))
        threading.Thread(target=server.serve, daemon=True).start()
    print("ready", *ports, flush=True)
    threading.Event().wait()


@contextmanager
def head() -> Iterator[Any]:
    """Yield what gives the ports of a head in a process of its own."""
    command = [sys.executable, *sys.argv, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield lambda: _ports(process)
        finally:
            process.kill()


def _ports(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready "):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return [int(port) for port in line.split()[1:]]
    raise SystemExit("the head did not start")


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--batches", type=typed.numbers, default=[64, 1])
    parser.add_argument("--layers", type=typed.number, help="fewer layers, to try things")
    parser.add_argument("--unlike", action="store_true", help="heads that never agree: their candidates settle nothing")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    deadline, gpus = Deadline(arguments.seconds), torch.cuda.device_count()
    setup = setup_of(arguments.device, arguments.dtype, prompt=_PROMPT, tokens=_TOKENS, gpus=gpus)
    report = Report("A head of another process", setup, COLUMNS)
    texts: dict[tuple[float, int], dict[str, str]] = {}
    with head() as ports_of:
        near, twin = made("Qwen", 0, arguments), made("Ds", 1, arguments)
        far: dict[str, TokenModel] = {}
        for way, port in zip(("tcp", "NCCL" if gpus else "gloo"), ports_of(), strict=True):
            spec = ModelSpec(name="Ds", ref="Ds", backend="remote", base_url=f"127.0.0.1:{port}")
            try:
                far[way] = RemoteModel(spec)
            except LoadError as error:
                report.note(f"{way}: {error}")
        for batch in arguments.batches:
            for way, other in {**far, "here": twin}.items():
                for temperature in (0.0, 0.8) if way in ("tcp", "here") else (0.8,):
                    _add(report, [near, other], (temperature, batch), way, texts, deadline)
        for model in far.values():
            model.close()
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


def _add(
    report: Report,
    models: Sequence[TokenModel],
    case: tuple[float, int],
    way: str,
    texts: dict[tuple[float, int], dict[str, str]],
    deadline: Deadline,
) -> None:
    """Measure a way and add a row; note where its texts are not those of the first way."""
    temperature, batch = case
    rows, far = "drawn" if temperature else "greedy", models[1] if isinstance(models[1], RemoteModel) else None
    found: Any = deadline.attempt(lambda: run(models, batch, temperature, far))
    if isinstance(found, Missed):
        report.add(rows, batch, way, *([found] * 5))
        return
    (step, waited, worked, moved), own = found
    first = texts.setdefault(case, own)
    equal = sum(own[key] == first[key] for key in own)
    if equal < batch:
        report.note(f"{rows}, batch {batch}, {way}: {equal} of {batch} texts are those of the first way")
    report.add(rows, batch, way, 1e3 * step, 1e3 * worked, 1e3 * (waited - worked), moved / 1e3, batch / step)


if __name__ == "__main__":
    main()
