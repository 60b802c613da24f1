"""Lossless speculation on the lab zoo: tokens per forward and tokens per second beside plain decoding, in one run.

    python benchmarks/speculation.py [-n QUESTIONS] [--datasets gsm8k,ceval] [--batches 1,8] [--drafts upstream,auto]

S2P = Yi -> (Qwen | Ds), SI = Yi -> Qwen -> Ds. The first stage, which has nothing to draft from, runs once; figures are
those of the others, prompts included. Texts of all steps are compared, question by question. tokens per round = emitted
tokens per forward of each head after the prompt's. Every draft's questions run in turns with plain ones; CPU = the
same ratio in processor time, which other programs on the machine disturb less than the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

import typed
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Plan, Step
from flowinfer.results import Question, StepResult
from flowinfer.tasks.base import load_questions, question_text

FLOWS = {"S2P": "Yi -> (Qwen | Ds)", "SI": "Yi -> Qwen -> Ds"}


@dataclass(frozen=True)
class Measured:
    """What one flow cost under one draft."""

    texts: tuple[str, ...]
    tokens: int
    rounds: int
    accepted: int
    drafted: int
    seconds: float
    cpu_seconds: float


class FirstStages:
    """A step cache of the stages that read nothing."""

    def __init__(self) -> None:
        self._kept: dict[str, StepResult] = {}

    def get(self, key: str) -> StepResult | None:
        """Return a kept result."""
        return self._kept.get(key)

    def put(self, key: str, result: StepResult) -> None:
        """Keep a result that has a key."""
        if key:
            self._kept[key] = result


def key_of(plan: Plan, step: Step, prompts: Mapping[str, str], question_id: str) -> str:
    """Return the name under which a first stage is kept."""
    return "" if step.reads else f"{step.title} {question_id}"


def measure(
    text: str, draft: str, questions: Sequence[Question], batch: int, pool: ModelPool, first: FirstStages
) -> Measured:
    """Run a flow over questions."""
    flow = check(text, zoo="lab", overrides={"speculate": draft, "max_tokens": "256"})
    plan = ready(flow, this_machine())
    start, cpu = time.perf_counter(), time.process_time()
    traces = list(
        execute(plan, questions, batch=batch, models=pool, question_text=question_text, cache=first, step_key=key_of)
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    traces.sort(key=lambda trace: trace.question_id)
    reading = {step.id for step in plan.steps if step.reads}
    steps = [step for trace in traces for step in trace.steps if step.step in reading]
    return Measured(
        tuple(step.text for trace in traces for step in trace.steps),
        sum(step.tokens + (step.finish_reason == "eos") for step in steps),
        sum(_rounds(step) for step in steps),
        sum(step.accepted_tokens for step in steps),
        sum(step.drafted_tokens for step in steps),
        seconds,
        cpu_seconds,
    )


def _rounds(step: StepResult) -> int:
    return step.rounds if step.rounds is not None else step.tokens - (step.finish_reason != "eos")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--datasets", default="gsm8k,ceval,mathematics")
    parser.add_argument("--batches", type=typed.numbers, default="1,8")
    parser.add_argument("--drafts", default="upstream,auto")
    parser.add_argument("--flows", default="S2P,SI")
    arguments = parser.parse_args()
    pool, drafts = ModelPool(), ("off", *arguments.drafts.split(","))
    print(f"lab zoo, {torch.get_num_threads()} threads, float32, {arguments.n} questions of each data set")
    print("| flow | data set | batch | draft | tokens per round | accepted | tokens/s | ratio to plain | CPU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.flows.split(","):
        for dataset in arguments.datasets.split(","):
            questions = load_questions(dataset, use_items=True, limit=arguments.n).questions
            first = FirstStages()
            measure(FLOWS[name], "off", questions, 32, pool, first)  # warm up, and run the first stage
            for batch in arguments.batches:
                _rows(name, dataset, questions, batch, drafts, pool, first)


def _rows(
    name: str,
    dataset: str,
    questions: Sequence[Question],
    batch: int,
    drafts: Sequence[str],
    pool: ModelPool,
    first: FirstStages,
) -> None:
    parts = [questions[start : start + 10 * batch] for start in range(0, len(questions), 10 * batch)]
    found: dict[str, list[Measured]] = {draft: [] for draft in drafts}
    for part in parts:  # in turns, so that other load on the machine hits all alike
        for draft in drafts:
            found[draft].append(measure(FLOWS[name], draft, part, batch, pool, first))
    plain, plain_cpu = (sum(getattr(one, field) for one in found["off"]) for field in ("seconds", "cpu_seconds"))
    for draft, measured in found.items():
        assert [one.texts for one in measured] == [one.texts for one in found["off"]], f"{draft} changed a text"
        tokens, rounds = (sum(getattr(one, field) for one in measured) for field in ("tokens", "rounds"))
        accepted, drafted = (sum(getattr(one, field) for one in measured) for field in ("accepted", "drafted"))
        seconds, cpu = (sum(getattr(one, field) for one in measured) for field in ("seconds", "cpu_seconds"))
        share = f"{accepted / drafted:.0%}" if drafted else "-"
        print(
            f"| {name} | {dataset} | {batch} | {draft} | {tokens / max(1, rounds):.2f} | {share} |"
            f" {tokens / seconds:.0f} | {plain / seconds:.2f} | {plain_cpu / cpu:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
