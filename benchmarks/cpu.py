"""This machine's CPU over the lab zoo: fused steps beside `generate`, whole data sets beside single questions.

    python benchmarks/cpu.py [--batches 1,8,32] [--tokens 48] [--questions 64] [--zoo lab|FILE]

Step: seconds per emitted token of a group, prefill included, against the slowest head's own greedy `generate` with the
same prompts, batch and number of tokens; best of 3. Goal: at most 1.5 x. Data set: the flow over questions with the
batch that `--batch auto` gives, against the reference loop question by question. Goal: at least 8 x faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

import typed
from flowinfer.backends.hf import HfModel
from flowinfer.backends.known import whole
from flowinfer.engine.base import Observer, Row, decode
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.execute import execute
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.models import Loaded, ModelPool
from flowinfer.engine.work import render_prompts
from flowinfer.fusion.vocab import HeadVocabulary
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Plan, Step, members
from flowinfer.results import Question
from flowinfer.tasks.base import load_questions
from flowinfer.zoos.toy import provide
from measure import Deadline, Missed
from reporting import Report, options, ratio, scaled, setup_of

FLOWS = {"PI": "(Qwen | Ds | Yi)", "S2P": "Yi -> (Qwen | Ds)"}
STEP_COLUMNS = [
    *("flow", "batch", "slowest head's generate, ms/token", "sum of generates, ms", "ours, ms/token"),
    *("ours / slowest", "ours / sum", "ours tokens/s"),
]
SET_COLUMNS = ["flow", "questions", "tokens", "per question, s", "ours (auto), s", "times faster", "identical texts"]
_REPEATS = 3


class Endless(HfModel):
    """A model whose answers never end by themselves, so that all rows have equal lengths."""

    def __init__(self, model: HfModel) -> None:
        self.__dict__.update(model.__dict__)

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return its token bytes without end ids."""
        return replace(super().vocabulary(stop_tokens), eos_ids=frozenset())


class EndlessPool(ModelPool):
    """Load models whose answers never end."""

    def __init__(self) -> None:
        super().__init__()
        self._endless: dict[str, Endless] = {}

    def get(self, plan: Plan, name: str, observer: Observer) -> Loaded:
        """Return the model of that name."""
        if name not in self._endless:
            model = super().get(plan, name, observer)
            assert isinstance(model, HfModel), "the zoos of this benchmark are local"
            self._endless[name] = Endless(model)
        return self._endless[name]


def main() -> None:
    """Measure and print both tables."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--batches", type=typed.numbers, default="1,8,32")
    parser.add_argument("--tokens", type=typed.number, default=48)
    parser.add_argument("--questions", type=typed.number, default=64)
    parser.add_argument("--answer-tokens", type=int, default=256, help="most tokens of an answer of the data set")
    parser.add_argument("--zoo", default="lab")
    parser.set_defaults(device="cpu", dtype="float32", seconds=1800.0)
    arguments = parser.parse_args()
    deadline = Deadline(arguments.seconds)
    setup = setup_of(arguments.device, arguments.dtype, zoo=arguments.zoo, tokens=arguments.tokens)
    questions = load_questions("gsm8k", limit=arguments.questions, use_items=True).questions
    steps = Report("CPU: fused step", setup, STEP_COLUMNS)
    for name, text in FLOWS.items():
        _steps(steps, name, _plan(text, arguments, arguments.tokens), questions, arguments, deadline)
    whole = Report("CPU: whole data set", setup | {"tokens": f"at most {arguments.answer_tokens}"}, SET_COLUMNS)
    for name, text in FLOWS.items():
        _whole(whole, name, _plan(text, arguments, arguments.answer_tokens), questions, deadline)
    steps.note(f"whole run: {deadline.elapsed:.0f} s")
    steps.finish(arguments, whole)


def _plan(text: str, arguments: argparse.Namespace, tokens: int) -> Plan:
    flow = check(text, zoo=arguments.zoo, overrides={"max_tokens": str(tokens)})
    provide(flow.models.values())
    return ready(flow, this_machine())


def _steps(
    report: Report,
    name: str,
    plan: Plan,
    questions: Sequence[Question],
    arguments: argparse.Namespace,
    deadline: Deadline,
) -> None:
    """Add the rows of a flow's last step: `generate` first, since ours may put its own layers into the models."""
    pool, observer, step = EndlessPool(), Observer(), plan.steps[-1]
    batches = arguments.batches
    rows = _rows(plan, pool, questions, max(batches))
    heads = [(member.node, pool.get(plan, member.model, observer)) for member in members(step.source)]
    alone = {
        batch: [
            deadline.attempt(lambda n=node, m=model, b=batch: _generate(m, rows[:b], n, arguments))
            for node, model in heads
        ]
        for batch in batches
    }
    for batch in batches:
        decoders = Decoders(pool, observer, batch)
        ours = deadline.attempt(lambda d=decoders, b=batch: _fused(d, plan, step, rows[:b], arguments))
        missed = next((one for one in alone[batch] if isinstance(one, Missed)), None)
        times = [one for one in alone[batch] if not isinstance(one, Missed)]
        slowest = missed or max(times)
        total = missed or sum(times)
        report.add(
            *(name, batch, scaled(slowest, 1e3), scaled(total, 1e3), scaled(ours, 1e3)),
            *(ratio(ours, slowest), ratio(ours, total), None if isinstance(ours, Missed) else batch / ours),
        )


def _rows(plan: Plan, pool: ModelPool, questions: Sequence[Question], count: int) -> list[Row]:
    """Return rows of the last step, whose prompts hold what the reference loop writes in the steps before it."""
    asked = [questions[index % len(questions)] for index in range(count)]
    works = [Work(plan, one.model_copy(update={"id": f"{one.id}-{index}"})) for index, one in enumerate(asked)]
    for step in plan.steps[:-1]:
        _run(step, RoundDecoder(step, _models(plan, step, pool), batch=count, observer=Observer()), works)
    return [work.row(plan.steps[-1]) for work in works]


def _models(plan: Plan, step: Step, pool: ModelPool) -> list[HfModel]:
    found = [pool.get(plan, member.model, Observer()) for member in members(step.source)]
    return [model for model in found if isinstance(model, HfModel)]


def _fused(decoders: Decoders, plan: Plan, step: Step, rows: Sequence[Row], arguments: argparse.Namespace) -> float:
    def run() -> None:
        done = list(decoders.decode(step.id, plan, step, rows))
        tokens = {completion.result.tokens for completion in done if completion.result}
        assert tokens == {arguments.tokens}, f"rows of {tokens} tokens, expected {arguments.tokens}"

    return _best(run) / arguments.tokens


def _generate(model: Loaded, rows: Sequence[Row], node: str, arguments: argparse.Namespace) -> float:
    """Return the seconds per token of a head's own greedy `generate` over left-padded prompts."""
    assert isinstance(model, HfModel), "see EndlessPool"
    prompts = [model.prompt(row.prompts[node]).ids for row in rows]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def run() -> None:
        whole(model.transformers_model).generate(
            ids,
            attention_mask=mask,
            min_new_tokens=arguments.tokens,
            max_new_tokens=arguments.tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return _best(run) / arguments.tokens


def _whole(report: Report, name: str, plan: Plan, questions: Sequence[Question], deadline: Deadline) -> None:
    """Add the row of a flow over all questions, answers ending where the models end them."""
    pool, observer = ModelPool(), Observer()
    texts: dict[str, list[str]] = {}
    single = {step.id: RoundDecoder(step, _models(plan, step, pool), batch=1, observer=observer) for step in plan.steps}
    tokens = 0

    def loop() -> float:
        nonlocal tokens
        works = [Work(plan, question) for question in questions]
        start = time.perf_counter()
        tokens = sum(_run(step, single[step.id], works) for step in plan.steps)
        seconds = time.perf_counter() - start
        texts["loop"] = [work.passed_on[plan.answer.steps[0]] for work in works]
        return seconds

    def ours() -> float:
        start = time.perf_counter()
        found = {trace.question_id: trace.answer for trace in execute(plan, questions, models=pool)}
        seconds = time.perf_counter() - start
        texts["ours"] = [found[question.id] for question in questions]
        return seconds

    once, together = deadline.attempt(loop), deadline.attempt(ours)
    pairs = list(zip(texts.get("loop", ()), texts.get("ours", ()), strict=False))
    same = f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
    report.add(name, len(questions), tokens, once, together, ratio(once, together), same)


@dataclass
class Work:
    """A question on its way through a plan, step after step."""

    plan: Plan
    question: Question
    passed_on: dict[str, str] = field(default_factory=dict)
    """What each step has written."""

    def row(self, step: Step) -> Row:
        """Return the row of a step whose earlier steps are done."""
        prompts = render_prompts(self.plan, step, self.question, self.question.question, self.passed_on)
        return Row(self.question.id, step.id, prompts)


def _run(step: Step, decoder: RoundDecoder, works: Sequence[Work]) -> int:
    """Run a step over works; return the tokens written."""
    tokens, by_id = 0, {work.question.id: work for work in works}
    for completion in decode(decoder, [work.row(step) for work in works]):
        assert completion.result is not None, completion.error
        by_id[completion.row.question_id].passed_on[step.id] = completion.result.passed_on
        tokens += completion.result.tokens
    return tokens


def _best(run: Callable[[], None]) -> float:
    run()
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
