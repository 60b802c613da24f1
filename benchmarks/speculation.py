"""Lossless speculation on the lab zoo: tokens per forward and tokens per second beside plain decoding, in one run.

    python benchmarks/speculation.py [-n QUESTIONS] [--datasets gsm8k,ceval] [--batches 1,8] [--drafts upstream,auto]

S2P = Yi -> (Qwen | Ds), SI = Yi -> Qwen -> Ds. Figures are those of the steps that read another's text (the first
stage has nothing to draft from); texts of all steps are compared, question by question. tokens per round = emitted
tokens per forward of each head after the prompt's. Every draft's questions run in turns with plain ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowinfer.check import check
from flowinfer.engine.models import ModelPool
from flowinfer.engine.scheduler import execute
from flowinfer.machine import this_machine
from flowinfer.placement import ready
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


def measure(text: str, draft: str, questions: Sequence[Question], batch: int, pool: ModelPool) -> Measured:
    """Run a flow over questions."""
    flow = check(text, zoo="lab", overrides={"draft": draft, "max_tokens": "256"})
    plan = ready(flow, this_machine())
    traces = list(execute(plan, questions, batch=batch, models=pool, question_text=question_text))
    traces.sort(key=lambda trace: trace.question_id)
    reading = {step.id for step in plan.steps if step.reads}
    steps = [step for trace in traces for step in trace.steps if step.step in reading]
    return Measured(
        tuple(step.text for trace in traces for step in trace.steps),
        sum(step.tokens + (step.finish_reason == "eos") for step in steps),
        sum(_rounds(step) for step in steps),
        sum(step.accepted_tokens for step in steps),
        sum(step.drafted_tokens for step in steps),
        sum(step.seconds / step.batch for step in steps),
    )


def _rounds(step: StepResult) -> int:
    return step.rounds if step.rounds is not None else step.tokens - (step.finish_reason != "eos")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--datasets", default="gsm8k,ceval,mathematics")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--drafts", default="upstream,auto")
    parser.add_argument("--flows", default="S2P,SI")
    arguments = parser.parse_args()
    pool, drafts = ModelPool(), ("off", *arguments.drafts.split(","))
    print(f"lab zoo, {torch.get_num_threads()} threads, float32, {arguments.n} questions of each data set")
    print("| flow | data set | batch | draft | tokens per round | accepted | tokens/s | ratio to plain |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.flows.split(","):
        for dataset in arguments.datasets.split(","):
            questions = load_questions(dataset, use_items=True, limit=arguments.n).questions
            measure(FLOWS[name], "off", questions[:2], 1, pool)  # warm up
            for batch in map(int, arguments.batches.split(",")):
                _rows(name, dataset, questions, batch, drafts, pool)


def _rows(
    name: str, dataset: str, questions: Sequence[Question], batch: int, drafts: Sequence[str], pool: ModelPool
) -> None:
    parts = [questions[start : start + 10 * batch] for start in range(0, len(questions), 10 * batch)]
    found = {draft: [] for draft in drafts}
    for part in parts:  # in turns, so that other load on the machine hits all alike
        for draft in drafts:
            found[draft].append(measure(FLOWS[name], draft, part, batch, pool))
    plain = sum(one.tokens for one in found["off"]) / sum(one.seconds for one in found["off"])
    for draft, measured in found.items():
        assert [one.texts for one in measured] == [one.texts for one in found["off"]], f"{draft} changed a text"
        tokens, rounds = (sum(getattr(one, field) for one in measured) for field in ("tokens", "rounds"))
        accepted, drafted = (sum(getattr(one, field) for one in measured) for field in ("accepted", "drafted"))
        speed = tokens / sum(one.seconds for one in measured)
        share = f"{accepted / drafted:.0%}" if drafted else "-"
        print(
            f"| {name} | {dataset} | {batch} | {draft} | {tokens / max(1, rounds):.2f} | {share} | {speed:.0f} |"
            f" {speed / plain:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
