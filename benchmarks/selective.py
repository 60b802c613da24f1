"""Fusing only where heads disagree against fusing every token: accuracy, forwards of each head, processor time.

    python benchmarks/selective.py --questions 60 --batch 1

Flows run one after another in one process over the same items; "cost" is processor seconds a token over those of `mean`
on the same items. A head that goes in lock step has a forward a token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import typed
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.results import Record, StepResult
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.runs.stats import wilson
from flowinfer.tasks.base import Dataset, load_questions
from reporting import Report, options, setup_of

_GROUP = "(Qwen | Ds | Yi)"
_SETS = ("gsm8k", "ceval", "mathematics")


@dataclass
class _Found:
    """What one way to fuse has come to on one data set."""

    correct: int
    num: int
    seconds: float
    """Processor time of the whole process."""
    steps: list[StepResult]

    @property
    def tokens(self) -> int:
        """Return how many were written, ends included."""
        return sum(step.tokens + (step.finish_reason == "eos") for step in self.steps)


def run(fuse: str, dataset: Dataset, batch: int, pool: ModelPool) -> _Found:
    """Answer a data set."""
    records: list[Record] = []
    start = time.process_time()
    request = Request(out=None, use_cache=False, batch=batch)
    flow = check(f"{_GROUP}[max_tokens=200, {fuse}]", zoo="lab")
    results = evaluate(flow, dataset, request, models=pool, on_record=records.append)
    seconds = time.process_time() - start
    return _Found(results.correct, results.n, seconds, [record.trace.steps[0] for record in records])


def main() -> None:
    """Print the table."""
    parser = options(__doc__ or "")
    parser.add_argument("--questions", type=typed.number, default=60)
    parser.add_argument("--batch", type=typed.number, default=1)
    parser.add_argument("--writers", default="Qwen,Ds,Yi")
    parser.add_argument("--taus", default="0.1,0.5,2")
    parser.add_argument("--data", type=Path, help="folder of NAME.jsonl of `python -m lab make`; else the zoo's items")
    arguments = parser.parse_args()
    report = Report(
        f"Fusing only where heads disagree, {_GROUP} of the lab zoo",
        setup_of("cpu", "float32", questions=f"{arguments.questions} of each set", batch=arguments.batch),
        ["fuse", "data", "accuracy", "interval", "tokens an answer", "fused", "forwards a token", "cost"],
    )
    ways = [
        f"fuse=safe, writer={writer}, tau={tau}"
        for writer in arguments.writers.split(",")
        for tau in arguments.taus.split(",")
    ]
    pool = ModelPool()
    for name in _SETS:
        own = {name: arguments.data / f"{name}.jsonl"} if arguments.data else {}
        dataset = load_questions(name, data=own, sample=arguments.questions, seed=arguments.seed, use_items=not own)
        run("fuse=mean", load_questions(name, limit=2, use_items=True), arguments.batch, pool)  # models are loaded
        base = run("fuse=mean", dataset, arguments.batch, pool)
        for way in ("fuse=mean", *ways):
            found = base if way == "fuse=mean" else run(way, dataset, arguments.batch, pool)
            interval = wilson(found.correct, found.num)
            counts = [step.fused_tokens for step in found.steps]
            fused = sum(count or 0 for count in counts) / found.tokens
            forwards = [
                f"{one[0].model} {sum(head.forwards or 0 for head in one) / found.tokens:.2f}"
                for one in zip(*(step.heads for step in found.steps), strict=True)
            ]
            report.add(
                way,
                dataset.label,
                f"{100 * found.correct / found.num:.1f} %",
                f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]",
                found.tokens / found.num,
                "all" if None in counts else f"{100 * fused:.1f} %",
                "1 each" if None in counts else ", ".join(forwards),
                f"{(found.seconds / found.tokens) / (base.seconds / base.tokens):.2f}",
            )
    report.finish(arguments)


if __name__ == "__main__":
    main()
