"""Run a plan over questions: step after step, in windows that keep batches full and let answers come out steadily."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal

import torch

from flowinfer.backends.base import TextModel
from flowinfer.engine.base import Completion, Decoder, NoCache, Observer, Row, StepCache
from flowinfer.engine.batching import auto_batch
from flowinfer.engine.models import ModelPool
from flowinfer.engine.reference import ReferenceDecoder
from flowinfer.engine.text_only import TextDecoder
from flowinfer.engine.work import Work
from flowinfer.errors import MemoryShort
from flowinfer.fusion.shared import SharedVocabularyWarning
from flowinfer.plan import Plan, Step, Wave, members
from flowinfer.results import Question, StepResult, Trace

StepKey = Callable[[Plan, Step, Mapping[str, str], str], str]
"""(plan, step, prompts by node, question id) -> what decides the step's text."""
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
        models or ModelPool(),
    )
    make = Work.factory(plan, vote, question_text)
    try:
        yield from runner.run(make(question) for question in questions)
    finally:
        if models is None:
            runner.pool.close()


class _Runner:
    """One execution of a plan."""

    def __init__(
        self,
        plan: Plan,
        batch: int | Literal["auto"],
        observer: Observer,
        cache: StepCache,
        step_key: StepKey,
        pool: ModelPool,
    ) -> None:
        self.plan = plan
        self.pool = pool
        self._observer = observer
        self._cache = cache
        self._step_key = step_key
        self._batch = batch
        self._batches: dict[str, int] = {}
        self._decoders: dict[str, Decoder] = {}

    def run(self, works: Iterator[Work]) -> Iterator[Trace]:
        waves = self.plan.waves or (Wave(tuple(s.id for s in self.plan.steps), tuple(self.plan.models)),)
        if len(waves) == 1:
            while window := list(islice(works, self._window())):
                yield from self._run_steps(window, waves[0].steps)
            return
        everything = list(works)
        for wave in waves:
            self._decoders.clear()
            self.pool.keep_only(self.plan, wave.models)
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
                    adopted = _adopt(stored, step, prompts)
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
                    self._cache.put(work.key, completion.result)
                if work.is_done:
                    yield work.trace()

    def _decode(self, step: Step, works: Sequence[Work]) -> Iterator[Completion]:
        """Decode rows; where memory is short, halve the batch and go on with the rows that are not done."""
        left = {work.question.id: Row(work.question.id, step.id, work.prompts(step)) for work in works}
        while left:
            is_short = False
            try:
                for completion in self._decoder(step).decode(list(left.values())):
                    del left[completion.row.question_id]
                    yield completion
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_memory_short(error):
                    raise
                self._halve(step, error)
                is_short = True
            if is_short and torch.cuda.is_available():  # only now is nothing left that the error held on to
                torch.cuda.empty_cache()

    def _decoder(self, step: Step) -> Decoder:
        if step.id not in self._decoders:
            self._decoders[step.id] = self._make_decoder(step)
        return self._decoders[step.id]

    def _make_decoder(self, step: Step) -> Decoder:
        heads = [self.pool.get(self.plan, member.model, self._observer) for member in members(step.source)]
        keeps = all(self.plan.models[member.model].think == "keep" for member in members(step.source))
        if isinstance(heads[0], TextModel):
            return TextDecoder(step, heads[0], observer=self._observer, keeps_thinking=keeps)
        tokens = [head for head in heads if not isinstance(head, TextModel)]
        assert len(tokens) == len(heads), "check refuses text-only models in groups"
        if step.id not in self._batches:
            chosen = auto_batch(self.plan, step, tokens) if self._batch == "auto" else self._batch
            self._batches[step.id] = chosen
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SharedVocabularyWarning)
            decoder = ReferenceDecoder(
                step, tokens, batch=self._batches[step.id], observer=self._observer, keeps_thinking=keeps
            )
        for warning in {str(warning.message) for warning in caught}:
            self._observer.notice(warning)
        return decoder

    def _halve(self, step: Step, error: Exception) -> None:
        batch = self._batches[step.id]
        if batch == 1:
            raise MemoryShort(
                f"step {step.id} {step.title} does not fit into memory even for one question",
                help="lower max_tokens, use dtype=bfloat16, or place its models on other devices",
            ) from error
        self._batches[step.id] = batch // 2
        self._decoders.pop(step.id, None)
        self._observer.batch_halved(batch // 2)


def _adopt(stored: StepResult, step: Step, prompts: Mapping[str, str]) -> StepResult:
    """Return a stored result under this plan's ids: the same members stand in the same order."""
    nodes = list(prompts)
    heads = tuple(head.model_copy(update={"node": node}) for head, node in zip(stored.heads, nodes, strict=False))
    shown = dict(zip(nodes, stored.prompts.values(), strict=False))
    return stored.model_copy(update={"step": step.id, "heads": heads, "prompts": shown})


def _is_memory_short(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "not enough memory" in text or "out of memory" in text or "can't allocate memory" in text
