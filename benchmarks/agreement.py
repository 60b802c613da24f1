"""What `fuse=safe` saves where heads agree partly: heads of a 7B model's shape on one GPU, or on several.

    python benchmarks/agreement.py [--devices cuda:0,cuda:1] [--heads 2] [--batches 1,8,32] [--noises 0,0.02,0.05,0.2]

Random heads of their own never agree. So these are one random model of Qwen2.5-7B's shape as often as there are heads,
its last matrix made so large that it is mostly sure of its next token, and to all copies but the first noise is added
in that matrix: how much decides how often they disagree. With `--covers` rows of `fuse=byte` stand beside
them, whose tokens are bytes. Each head has weights and caches of its own, and reads the
same prompt. No answer ends by itself. Seconds are those of an answer of --tokens tokens less those of one of 16, so
that reading prompts is no part of them; "x mean" and "x writer alone" are ratios to what stands in the same run.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

import typed
from dataset import row_of
from flowinfer.backends.base import Prompt
from flowinfer.engine.base import Decoder, Observer, decode
from flowinfer.engine.loops.choice import Loop, make_decoder
from flowinfer.fusion.vocab import TokenBytes
from flowinfer.planning.plan import Member, Mixture, Step
from flowinfer.results import StepResult
from flowinfer.spec import Decoding
from measure import Deadline, Missed, release, synchronize
from reporting import Cell, Report, options, ratio, setup_of
from shapes import ShapeModel, shapes

_GAIN = 50.0
"""Of the last matrix: the best token then has nearly all of the probability nearly always."""
_SHORT = 16
"""Tokens of the answers whose seconds are taken off."""


@dataclass(frozen=True)
class Spelled:
    """A text in ids."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


class Words:
    """Reads a text in the longest words that it begins with, one after another; an `Encoder`.

    Args:
        tokens: the words.
    """

    encode_special_tokens = True

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> Spelled:
        """Return a text's ids."""
        ids = self._tokens.cover(text.encode())
        ends = list(accumulate((len(self._tokens.pieces[i] or b"") for i in ids), initial=0))
        return Spelled(ids, list(pairwise(ends)))


class Head(ShapeModel):
    """A random model of Qwen's shape; all heads that are made alike give the same logits but for their noise.

    Args:
        name: of the head.
        arguments: size, type, seed, layers.
        device: where it is.
        noise: of its last matrix, as a share of that matrix's own numbers.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, device: str, noise: float) -> None:
        shape = replace(shapes(arguments.size, ["Qwen"], layers=arguments.layers)[0], name=name)
        super().__init__(shape, device, getattr(torch, arguments.dtype), seed=arguments.seed)
        weight = self._model.lm_head.weight.mul_(_GAIN)
        generator = torch.Generator(self.device).manual_seed(sum(name.encode()))
        weight.add_(torch.empty_like(weight).normal_(0.0, noise * float(weight.std()), generator=generator))

    @property
    def tokenizer(self) -> Words:
        """Return what reads texts in its words."""
        return Words(self._tokens)

    def prompt(self, text: str, prefill: str = "") -> Prompt:
        """Return the ids of "SEED LENGTH", the same for all heads."""
        seed, length = text.split(" ")[:2]
        rng = random.Random(seed)
        return Prompt(text, tuple(rng.randrange(self.num_columns - 1) for _ in range(int(length))))


@dataclass(frozen=True)
class Timed:
    """What some rows came to."""

    seconds: float
    """For each token of a row, prompts left out."""
    steps: Sequence[StepResult]

    def cells(self, batch: int, bases: Sequence[float | Missed]) -> list[Cell]:
        """Return the figures of a row of the table."""
        tokens = sum(step.tokens for step in self.steps)
        counts = zip(*([head.forwards for head in step.heads] for step in self.steps), strict=True)
        forwards = ["1" if None in own else f"{sum(filter(None, own)) / tokens:.2f}" for own in counts]
        fused = sum(step.tokens if step.fused_tokens is None else step.fused_tokens for step in self.steps)
        waits = sum(max(head.forward_seconds for head in step.heads) for step in self.steps)
        fuses = sum(step.fuse_seconds for step in self.steps)
        share = f"{100 * fused / tokens:.1f} %"
        written = sum(len(step.text.encode()) for step in self.steps) / tokens
        rates = [1e3 * waits / tokens, 1e3 * fuses / tokens, batch / self.seconds, batch * written / self.seconds]
        ratios = [ratio(self.seconds, base) for base in bases]
        return [1e3 * self.seconds, *ratios, share, ", ".join(forwards), *rates]


class Bench:
    """Heads on their devices, and the table.

    Args:
        arguments: of the command.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._deadline = arguments, Deadline(arguments.seconds)
        places = arguments.devices or [arguments.device]
        self._devices = [places[k % len(places)] for k in range(arguments.heads)]
        self._heads: list[Head] = []
        facts = {"heads": " ".join(self._devices), "prompt": arguments.prompt, "tokens": arguments.tokens}
        self._report = Report("Heads that agree partly", setup_of(arguments.device, arguments.dtype, **facts), _COLUMNS)
        self._bases: dict[int, list[float | Missed]] = {}

    def run(self) -> None:
        """Measure and print."""
        for noise in self._arguments.noises.split(","):
            self._make(float(noise))
            for batch in self._arguments.batches:
                if batch not in self._bases:
                    self._bases[batch] = []
                    self._measure(batch, "-", "mean", {})
                    self._measure(batch, "-", "writer alone", {})
                for tau in filter(None, self._arguments.taus.split(",")):
                    self._measure(batch, noise, "safe", {"tau": float(tau), "writer": self._heads[0].name})
                for covers in filter(None, self._arguments.covers.split(",")):
                    self._measure(batch, noise, "byte", {"covers": int(covers)})
        self._report.note(f"whole run: {self._deadline.elapsed:.0f} s")
        self._report.finish(self._arguments)

    def _make(self, noise: float) -> None:
        """Make the heads anew, but for the writer."""
        del self._heads[1:]
        release()
        for k in range(len(self._heads), len(self._devices)):
            self._heads.append(Head(chr(65 + k), self._arguments, self._devices[k], noise if k else 0.0))

    def _measure(self, batch: int, noise: str, fuse: str, fuse_options: Mapping[str, float | str]) -> None:
        """Add a row to the table."""
        heads = self._heads[:1] if fuse == "writer alone" else self._heads
        step, found = _step(heads, fuse, fuse_options), list[Timed]()
        options_told = ", ".join(f"{name}={value}" for name, value in fuse_options.items()) or "-"

        def once() -> float:
            decoder = make_decoder(Loop(step, heads, None, batch, Observer(), keeps_thinking=False), "auto")
            found.append(_timed(decoder, step, batch, self._arguments))
            return found[0].seconds

        seconds, label = self._deadline.attempt(once), [batch, noise, fuse, options_told]
        if not fuse_options:
            self._bases[batch].append(seconds)
        if found:
            self._report.add(*label, *found[0].cells(batch, [*self._bases[batch], Missed("not yet")][:2]))
        else:
            self._report.add(*label, seconds, *[None] * (len(_COLUMNS) - 5))


_COLUMNS = [
    *("batch", "noise", "fuse", "with", "ms a token", "x mean", "x writer alone", "fused", "forwards a token"),
    *("forward ms", "fuse ms", "tok/s", "bytes/s"),
]


def main() -> None:
    """Measure and print the table."""
    parser = options((__doc__ or "").split("\n")[0])
    parser.add_argument("--devices", type=typed.devices, help="heads lie on them in turn; --device if not given")
    parser.add_argument("--heads", type=typed.number, default=2)
    parser.add_argument("--batches", type=typed.numbers, default="1,8,32")
    parser.add_argument("--noises", default="0,0.02,0.05,0.2")
    parser.add_argument("--taus", default="0.5")
    parser.add_argument("--covers", default="", help="of fuse=byte, e.g. 0,1; that is left out if not given")
    parser.add_argument("--tokens", type=typed.number, default=144)
    parser.add_argument("--prompt", type=typed.number, default=300, help="ids of a prompt")
    parser.add_argument("--layers", type=typed.number, help="fewer layers, to try things")
    Bench(parser.parse_args()).run()


def _step(heads: Sequence[Head], fuse: str, fuse_options: Mapping[str, float | str]) -> Step:
    share = 1 / len(heads)
    members = tuple(Member(f"n{k}", head.name, "draft", "{question}", {}, share) for k, head in enumerate(heads))
    source = Mixture("g1", fuse, dict(fuse_options), members) if len(members) > 1 else members[0]
    decoding = Decoding(max_tokens=512, speculate="off")
    return Step("s1", " | ".join(head.name for head in heads), source, decoding)


def _timed(decoder: Decoder, step: Step, batch: int, arguments: argparse.Namespace) -> Timed:
    """Decode some rows; the first time warms up."""

    def run(tokens: int) -> tuple[float, list[StepResult]]:
        rows = [row_of(step, f"q{k}", f"{k} {arguments.prompt}", tokens) for k in range(batch)]
        _wait()
        start = time.perf_counter()
        done = list(decode(decoder, rows))
        _wait()
        failed = [one.error for one in done if one.result is None]
        assert not failed, failed[0]
        return time.perf_counter() - start, [one.result for one in done if one.result]

    run(arguments.tokens)
    short, _ = run(_SHORT)
    long, results = run(arguments.tokens)
    return Timed((long - short) / (arguments.tokens - _SHORT), results)


def _wait() -> None:
    for number in range(torch.cuda.device_count()):
        synchronize(torch.device("cuda", number))


if __name__ == "__main__":
    main()
