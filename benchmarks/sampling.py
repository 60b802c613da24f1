"""Samples of one question, all in one loop, against as many runs one after another: a 7B model's shape.

    python benchmarks/sampling.py [--samples 16] [--tokens 128] [--prompts 300,3000] [--questions 4]

A random model of Qwen2.5-7B's shape, temperature 0.8. Every question is asked alone. Its texts mean nothing, so for
`enough` their answer is A where a checksum of the text falls among 8 of 10, else B. "Runs" are questions of one answer,
one after another, with a seed for each. Ratios are to the runs of the same prompt; "prompt ids" are those that a
question's steps name as read, of which a loop of pages reads equal ones once.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

import typed
from flowinfer.engine.execute import execute
from flowinfer.language.check import check
from flowinfer.machine import Device, Machine, this_machine
from flowinfer.planning.placement import ready
from flowinfer.results import Ballot, Question, Trace
from measure import Deadline, Missed, synchronize
from reporting import Report, options, ratio, setup_of
from shapes import ShapePool

_COLUMNS = ["prompt", "how", "seconds a question", "x runs", "samples", "tokens", "tok/s", "prompt ids"]


@dataclass(frozen=True)
class Way:
    """How a question is asked."""

    name: str
    options: str
    """Of the model, behind its temperature."""
    times: int
    """How often, each time anew."""
    rows: int
    """Most at once."""


def by_checksum(question: Question, texts: Sequence[str]) -> Ballot:
    """Let texts vote by answers that eight of ten of them give."""
    answers = ["A" if zlib.crc32(text.encode()) % 10 < 8 else "B" for text in texts]
    return Ballot(answers=tuple(answers), winner=answers.index(max(answers, key=answers.count)))


class Bench:
    """A model and the ways in which it is asked.

    Args:
        arguments: of the command.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._pool = ShapePool(arguments.size, arguments.device, arguments.dtype, ["Qwen"])
        room = Device(arguments.device, arguments.device, 10**12, 10**12)
        self._machine = Machine((room,)) if arguments.device != "cpu" else this_machine()

    def ask(self, way: Way, prompts: Sequence[str], traces: list[Trace]) -> float:
        """Ask questions one after another, and keep their traces; return the seconds of all but the first."""
        told = {"prompts": "plain", "max_tokens": str(self._arguments.tokens), "speculate": "off"}
        plan = ready(check(f"Qwen[temperature=0.8{way.options}]", zoo="lab", overrides=told), self._machine)
        starts = list[float]()

        def questions() -> Iterator[Question | None]:
            for number, text in enumerate(prompts):
                starts.append(self._now())
                yield Question(id=f"q{number}", question=text, reference="")
                while len(traces) <= number:
                    yield None

        for trace in execute(plan, questions(), batch=way.rows, models=self._pool, vote=by_checksum):
            assert not trace.error, trace.error
            traces.append(trace)
        return self._now() - starts[1]

    def _now(self) -> float:
        synchronize(torch.device(self._arguments.device))
        return time.perf_counter()


def main() -> None:
    """Measure and print the table."""
    parser = options((__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=typed.number, default=16)
    parser.add_argument("--tokens", type=typed.number, default=128)
    parser.add_argument("--prompts", type=typed.numbers, default="300,3000", help="their lengths in ids")
    parser.add_argument("--questions", type=typed.number, default=4)
    arguments = parser.parse_args()
    deadline, bench = Deadline(arguments.seconds), Bench(arguments)
    facts = {"samples": arguments.samples, "tokens": arguments.tokens, "questions": arguments.questions}
    report = Report("Samples of a question", setup_of(arguments.device, arguments.dtype, **facts), _COLUMNS)
    for length in arguments.prompts:
        base: float | Missed | None = None
        for way in _ways(arguments.samples):
            prompts = [f"{k // way.times} {length}" for k in range(1 + way.times * arguments.questions)]
            traces = list[Trace]()
            seconds = deadline.attempt(partial(bench.ask, way, prompts, traces))
            base = seconds if base is None else base
            if isinstance(seconds, Missed):
                report.add(length, way.name, seconds, *[None] * (len(_COLUMNS) - 3))
                continue
            steps = [step for trace in traces[1:] for step in trace.steps]
            tokens, num_read = sum(step.tokens for step in steps), sum(step.heads[0].prompt_tokens for step in steps)
            counts = [count / arguments.questions for count in (len(steps), tokens, num_read)]
            own = seconds / arguments.questions
            report.add(length, way.name, own, ratio(seconds, base), *counts[:2], tokens / seconds, counts[2])
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


def _ways(samples: int) -> list[Way]:
    return [
        Way(f"{samples} runs", "", samples, 1),
        Way(f"samples={samples}", f", samples={samples}", 1, samples),
        Way(f"samples={samples}, enough=0.95", f", samples={samples}, enough=0.95", 1, samples),
    ]


if __name__ == "__main__":
    main()
