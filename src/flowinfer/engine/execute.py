"""Run a plan over questions: so many on their way at once that batches stay full and answers come out steadily."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from flowinfer.engine.base import MemberOrder, NoCache, Observer, StepCache, StepKey
from flowinfer.engine.caching import Caching
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.loops.choice import Engine
from flowinfer.engine.models import ModelPool
from flowinfer.engine.scheduler import Scheduler
from flowinfer.engine.work import Asked, Vote, trace_of
from flowinfer.planning.merge import merge
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
    questions: Iterable[Question | None],
    *,
    batch: int | Literal["auto"] = "auto",
    engine: Engine = "auto",
    observer: Observer | None = None,
    cache: StepCache | None = None,
    step_key: StepKey | None = None,
    member_order: MemberOrder | None = None,
    vote: Vote | None = None,
    question_text: QuestionText | None = None,
    noise_id: str | None = None,
    candidates: Sequence[str] = (),
    models: ModelPool | None = None,
) -> Iterator[Trace]:
    """Yield one trace per question as questions finish.

    Args:
        plan: the compiled flow, placed or not (then models run where their specs say, or on the CPU).
        questions: what to ask; None = nothing now, but something may come later.
        batch: most rows of a decoding loop, but for samples of one question, which decode together; "auto" asks
            memory; 1 is the paper's protocol: question by question.
        engine: which decoding loops may serve.
        observer: hears progress.
        cache: results of steps to take instead of running, and to add to; needs `step_key`.
        step_key: what decides a step's text, as one string.
        member_order: how cached results order their heads, where that is not the order of the flow's text.
        vote: chooses among the answers of a `&` group that ends the flow; its first one counts if not given.
        question_text: what fills {question}; the bare question if not given.
        noise_id: what all questions draw their noise by, if not each by its own id.
        candidates: what steps by likelihood choose from; the letters of a question's choices if not given.
        models: a pool to share between runs; else one is made and closed.
    Raises:
        LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
    """
    observer, merged = observer or Observer(), merge([plan])
    kept = (cache if step_key else None) or NoCache()
    caching = Caching(
        lambda shared, asked: kept,
        lambda shared, asked: "",
        step_key or (lambda plan, step, prompts, question_id: ""),
        member_order or (lambda plan, step, prompts: list(prompts)),
    )
    pool, (uses,) = models or ModelPool(), merged.uses
    shared = {one.id: one for one in merged.steps}
    waves = [[shared[one] for one in dict.fromkeys(uses[step].shared for step in wave.steps)] for wave in plan.waves]
    scheduler = Scheduler(merged.steps, Decoders(pool, observer, batch, engine), caching, observer)

    def source() -> Iterator[Asked | None]:
        for question in questions:
            if question is None:
                yield None
                continue
            asked = Asked(question, question_text or _bare, candidates=tuple(candidates), noise_id=noise_id, vote=vote)
            yield asked.of(uses)

    try:
        for finished in scheduler.run(source(), most=window(plan, batch), waves=waves):
            if finished.asked.is_done:
                yield trace_of(plan, uses, finished.asked)
    finally:
        if models is None:
            pool.close()


def _bare(question: Question) -> str:
    return question.question


def window(plan: Plan, batch: int | Literal["auto"]) -> int:
    """Return how many questions are on their way at once, in one process."""
    if batch == "auto":
        on_gpu = any(placed.device.startswith("cuda") for placed in plan.placements.values())
        return _AUTO_WINDOW_ON_GPU if on_gpu else _AUTO_WINDOW
    return 1 if batch == 1 else batch * _WINDOW_BATCHES
