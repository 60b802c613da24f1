"""Run a plan over questions: step after step, in windows that keep batches full and let answers come out steadily."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal

from flowinfer.engine.adoption import ordered, renamed
from flowinfer.engine.base import Completion, NoCache, Observer, Row, StepCache
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.models import ModelPool
from flowinfer.engine.work import Work
from flowinfer.plan import Plan, Step, Wave
from flowinfer.results import Question, Trace

StepKey = Callable[[Plan, Step, Mapping[str, str], str], str]
"""(plan, step, prompts by node, question id) -> what decides the step's text."""
MemberOrder = Callable[[Plan, Step, Mapping[str, str]], Sequence[str]]
"""(plan, step, prompts by node) -> the step's nodes in the order in which cached results hold their heads."""
Vote = Callable[[Question, Sequence[str]], int]
QuestionText = Callable[[Question], str]

_WINDOW_BATCHES = 4
"""Batches in one window of questions."""
_AUTO_WINDOW = 64
_AUTO_WINDOW_ON_GPU = 512
"""Questions in one window where the batch finds its own size."""


def execute(
    plan: Plan,
    questions: Iterable[Question],
    *,
    batch: int | Literal["auto"] = "auto",
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
        observer: hears progress.
        cache: results of steps to take instead of running, and to add to; needs `step_key`.
        step_key: what decides a step's text, as one string.
        member_order: how cached results order their heads, where that is not the order of the flow's text.
        vote: index of the winning answer, for flows that end in a `&` group.
        question_text: what fills {question}; the bare question if not given.
        models: a pool to share between runs; else one is made and closed.
    Raises:
        LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
    """
    runner = _Runner(
        plan,
        batch,
        observer or Observer(),
        (cache if step_key else None) or NoCache(),
        step_key or (lambda plan, step, prompts, question_id: ""),
        member_order or (lambda plan, step, prompts: list(prompts)),
        Decoders(models or ModelPool(), observer or Observer(), batch),
    )
    make = Work.factory(plan, vote, question_text)
    try:
        yield from runner.run(make(question) for question in questions)
    finally:
        if models is None:
            runner.decoders.pool.close()


class _Runner:
    """One execution of a plan."""

    def __init__(
        self,
        plan: Plan,
        batch: int | Literal["auto"],
        observer: Observer,
        cache: StepCache,
        step_key: StepKey,
        member_order: MemberOrder,
        decoders: Decoders,
    ) -> None:
        self.plan = plan
        self.decoders = decoders
        self._observer = observer
        self._cache = cache
        self._step_key = step_key
        self._member_order = member_order
        self._batch = batch

    def run(self, works: Iterator[Work]) -> Iterator[Trace]:
        waves = self.plan.waves or (Wave(tuple(s.id for s in self.plan.steps), tuple(self.plan.models)),)
        if len(waves) == 1:
            while window := list(islice(works, self._window())):
                yield from self._run_steps(window, waves[0].steps)
            return
        everything = list(works)
        for wave in waves:
            self.decoders.keep_only(self.plan, wave.models)
            yield from self._run_steps(everything, wave.steps)

    def _window(self) -> int:
        if self._batch == "auto":
            on_gpu = any(placed.device.startswith("cuda") for placed in self.plan.placements.values())
            return _AUTO_WINDOW_ON_GPU if on_gpu else _AUTO_WINDOW
        return 1 if self._batch == 1 else self._batch * _WINDOW_BATCHES

    def _run_steps(self, works: Sequence[Work], step_ids: Sequence[str]) -> Iterator[Trace]:
        """Run some steps for a window of questions; yield a question's trace with its last step."""
        for step_id in step_ids:
            step = self.plan.step(step_id)
            waiting: dict[str, Work] = {}
            for work in works:
                if work.error:
                    continue
                prompts = work.prompts(step)
                key = self._step_key(self.plan, step, prompts, work.question.id)
                stored = self._cache.get(key)
                if stored is not None:
                    adopted = renamed(stored, self._member_order(self.plan, step, prompts), step)
                    work.accept(adopted)
                    self._observer.finished(work.question.id, adopted)
                    if work.is_done:
                        yield work.trace()
                else:
                    work.key = key
                    waiting[work.question.id] = work
            for completion in self._decode(step, list(waiting.values())):
                work = waiting[completion.row.question_id]
                if completion.result is None:
                    work.error = completion.error
                else:
                    work.accept(completion.result)
                    order = self._member_order(self.plan, step, completion.row.prompts)
                    self._cache.put(work.key, ordered(completion.result, order))
                if work.is_done:
                    yield work.trace()

    def _decode(self, step: Step, works: Sequence[Work]) -> Iterator[Completion]:
        rows = [Row(work.question.id, step.id, work.prompts(step), work.sources(step)) for work in works]
        yield from self.decoders.decode(step.id, self.plan, step, rows)
