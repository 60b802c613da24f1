"""Run a plan over questions: so many on their way at once that batches stay full and answers come out steadily."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from flowinfer.engine.base import MemberOrder, NoCache, Observer, StepCache, StepKey
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.loops.choice import Engine
from flowinfer.engine.models import ModelPool
from flowinfer.engine.stages import Keeping, Stages
from flowinfer.engine.work import Vote, Work
from flowinfer.planning.plan import Plan
from flowinfer.results import Question, Trace

QuestionText = Callable[[Question], str]

_WINDOW_BATCHES = 4
"""Batches of questions that are on their way at once."""
_AUTO_WINDOW = 64
_AUTO_WINDOW_ON_GPU = 512
"""The same in questions, where the batch finds its own size."""


def execute(
    plan: Plan,
    questions: Iterable[Question],
    *,
    batch: int | Literal["auto"] = "auto",
    engine: Engine = "auto",
    observer: Observer | None = None,
    cache: StepCache | None = None,
    step_key: StepKey | None = None,
    member_order: MemberOrder | None = None,
    vote: Vote | None = None,
    question_text: QuestionText | None = None,
    models: ModelPool | None = None,
) -> Iterator[Trace]:
    """Yield one trace per question as questions finish.

    Args:
        plan: the compiled flow, placed or not (then models run where their specs say, or on the CPU).
        questions: what to ask.
        batch: most rows of a decoding loop; "auto" asks memory; 1 is the paper's protocol: question by question.
        engine: which decoding loops may serve.
        observer: hears progress.
        cache: results of steps to take instead of running, and to add to; needs `step_key`.
        step_key: what decides a step's text, as one string.
        member_order: how cached results order their heads, where that is not the order of the flow's text.
        vote: chooses among the answers of a `&` group that ends the flow; its first one counts if not given.
        question_text: what fills {question}; the bare question if not given.
        models: a pool to share between runs; else one is made and closed.
    Raises:
        LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
    """
    observer = observer or Observer()
    keeping = Keeping(
        (cache if step_key else None) or NoCache(),
        step_key or (lambda plan, step, prompts, question_id: ""),
        member_order or (lambda plan, step, prompts: list(prompts)),
    )
    decoders = Decoders(models or ModelPool(), observer, batch, engine)
    make = Work.factory(plan, vote, question_text)
    works = (make(question) for question in questions)

    def stages(step_ids: Iterable[str]) -> Stages:
        return Stages(plan, [plan.step(step_id) for step_id in step_ids], decoders, keeping, observer)

    try:
        if len(plan.waves) <= 1:
            yield from stages(step.id for step in plan.steps).run(works, _window(plan, batch))
            return
        everything = list(works)
        for wave in plan.waves:
            decoders.keep_only(plan, wave.models)
            going_on = [work for work in everything if not work.is_done]
            yield from stages(wave.steps).run(iter(going_on), len(going_on))
    finally:
        if models is None:
            decoders.pool.close()


def _window(plan: Plan, batch: int | Literal["auto"]) -> int:
    """Return how many questions are on their way at once."""
    if batch == "auto":
        on_gpu = any(placed.device.startswith("cuda") for placed in plan.placements.values())
        return _AUTO_WINDOW_ON_GPU if on_gpu else _AUTO_WINDOW
    return 1 if batch == 1 else batch * _WINDOW_BATCHES
