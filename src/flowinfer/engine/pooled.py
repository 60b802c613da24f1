"""Many plans at once: stage by stage over all of them, each shared step once, all rows of a decoding loop together.

Rows of different plans, data sets and stages share a loop where models, weights and decoding agree, so that a batch is
refilled until nothing of that loop is left at this depth. Results are kept and cached under the shared step's ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from flowinfer.engine.adoption import moved, ordered, renamed
from flowinfer.engine.base import Completion, MemberOrder, Observer, Row, StepCache, StepKey
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.faults import question_fails
from flowinfer.engine.patience import Patience
from flowinfer.engine.work import render_prompts
from flowinfer.errors import FlowInferError
from flowinfer.planning.merge import SharedStep
from flowinfer.planning.plan import held_models, members
from flowinfer.results import Question, StepResult


@dataclass(eq=False)
class Asked:
    """One question of one data set, on its way through shared steps."""

    dataset: int
    """Index of its data set."""
    question: Question
    text: Callable[[Question], str]
    """Gives what fills {question}."""
    wanted: set[str] = field(default_factory=set)
    """Ids of the shared steps that are to run."""
    results: dict[str, StepResult] = field(default_factory=dict)
    """By shared step; what another run made says so."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why a shared step could not run."""


@dataclass(frozen=True)
class Finished:
    """A shared step of a question has a result, or an error."""

    shared: SharedStep
    asked: Asked
    is_fresh: bool
    """Whether it was decoded just now."""


@dataclass(frozen=True)
class Caching:
    """Where results of steps are kept, and by what name."""

    cache_of: Callable[[SharedStep, Asked], StepCache]
    """The cache as the run that owns a step of a question sees it."""
    run_of: Callable[[SharedStep, Asked], str]
    """That run's name."""
    key: StepKey
    order: MemberOrder


@dataclass(eq=False)
class _Waiting:
    shared: SharedStep
    asked: Asked
    prompts: Mapping[str, str]
    sources: tuple[str, ...]
    """What the steps that it reads have passed on."""
    key: str
    followers: list[tuple[SharedStep, Asked, Mapping[str, str]]] = field(default_factory=list)
    """Others whose step came to the same prompts."""


class Pooled:
    """Run shared steps.

    Args:
        steps: all of them, each after those that it reads.
        decoders: with the models.
        caching: where results are kept.
        observer: hears the engine.
        frees_models: free what a loop does not need before it begins, because not all models fit together.
    """

    def __init__(
        self,
        steps: Sequence[SharedStep],
        decoders: Decoders,
        caching: Caching,
        observer: Observer,
        *,
        frees_models: bool = False,
    ) -> None:
        self._steps = tuple(steps)
        self._decoders = decoders
        self._caching = caching
        self._observer = observer
        self._frees_models = frees_models
        self._asked: Sequence[Asked] = ()
        self._first: dict[str, SharedStep] = {}
        for shared in steps:
            self._first.setdefault(shared.loop, shared)
        self.broken: dict[str, str] = {}
        """Shared steps that could not run at all, and why."""

    def run(self, asked: Sequence[Asked]) -> Iterator[Finished]:
        """Yield every wanted step of every question as it ends."""
        self._asked = tuple(asked)
        for depth in range(1 + max((shared.depth for shared in self._steps), default=-1)):
            waiting: dict[str, _Waiting] = {}
            for shared in self._steps:
                if shared.depth == depth:
                    yield from self._ready(shared, asked, waiting)
            loops: dict[str, list[_Waiting]] = {}
            for one in waiting.values():
                loops.setdefault(one.shared.loop, []).append(one)
            for loop in sorted(loops, key=self._models_of):
                yield from self._decode(self._first[loop], loops[loop])

    def _models_of(self, loop: str) -> tuple[int, tuple[str, ...]]:
        names = sorted(member.model for member in members(self._first[loop].step.source))
        return len(names), tuple(names)

    def _ready(self, shared: SharedStep, asked: Iterable[Asked], waiting: dict[str, _Waiting]) -> Iterator[Finished]:
        """Queue a step's questions; yield those that are in the cache, or cannot run for what they read."""
        for one in asked:
            if shared.id not in one.wanted:
                continue
            problem = next((one.errors[read] for read in shared.reads.values() if read in one.errors), None)
            if problem is not None:
                one.errors[shared.id] = problem
                yield Finished(shared, one, False)
                continue
            with question_fails(partial(one.errors.__setitem__, shared.id)):
                self._begin(shared, one, waiting)
            if shared.id in one.results or shared.id in one.errors:
                yield Finished(shared, one, False)

    def _begin(self, shared: SharedStep, one: Asked, waiting: dict[str, _Waiting]) -> None:
        """Take a question's step from the cache, or queue it."""
        passed_on = {own: one.results[read].passed_on for own, read in shared.reads.items()}
        prompts = render_prompts(shared.plan, shared.step, one.question, one.text(one.question), passed_on)
        key = self._caching.key(shared.plan, shared.step, prompts, one.question.id)
        if key in waiting:
            waiting[key].followers.append((shared, one, prompts))
            return
        stored = self._caching.cache_of(shared, one).get(key)
        adopted = stored and self._adopted(stored, shared, prompts)
        if adopted is None:
            waiting[key] = _Waiting(shared, one, prompts, tuple(passed_on.values()), key)
        else:
            one.results[shared.id] = adopted

    def _adopted(self, stored: StepResult, shared: SharedStep, prompts: Mapping[str, str]) -> StepResult | None:
        return renamed(stored, self._caching.order(shared.plan, shared.step, prompts), shared.step)

    def _decode(self, first: SharedStep, waiting: Sequence[_Waiting]) -> Iterator[Finished]:
        """Decode all rows of one loop; what breaks it breaks its steps, and the rest goes on."""
        rows = [_row(first, one) for one in waiting]
        left = {id(row): one for row, one in zip(rows, waiting, strict=True)}
        is_resumed = any(waiting[0].shared.id not in one.wanted for one in self._asked)
        patience = Patience(has_answer=is_resumed)
        try:
            if self._frees_models:
                names = held_models(first.plan, first.step)
                self._decoders.keep_only(first.plan, names)
            for completion in self._decoders.decode(first.loop, first.plan, first.step, rows):
                one = left.pop(id(completion.row))
                yield from self._accept(first, one, completion)
                patience.hear(completion.error)
        except Exception as error:  # whatever it is, the other loops can go on; it is told with the paths that it broke
            message = error.message if isinstance(error, FlowInferError) else f"{type(error).__name__}: {error}"
            for one in left.values():
                yield from self._break(one, message)

    def _accept(self, first: SharedStep, one: _Waiting, completion: Completion) -> Iterator[Finished]:
        if completion.result is None:
            for shared, asked in self._all(one):
                asked.errors[shared.id] = completion.error or "failed"
                yield Finished(shared, asked, True)
            return
        names = dict(zip(first.nodes, one.shared.nodes, strict=True))
        result = moved(completion.result, names, one.shared.step)
        stored = ordered(result, self._caching.order(one.shared.plan, one.shared.step, one.prompts))
        maker = self._caching.run_of(one.shared, one.asked)
        with question_fails(partial(one.asked.errors.__setitem__, one.shared.id)):
            self._caching.cache_of(one.shared, one.asked).put(one.key, stored)
            one.asked.results[one.shared.id] = result
        yield Finished(one.shared, one.asked, True)
        for shared, asked, prompts in one.followers:
            with question_fails(partial(asked.errors.__setitem__, shared.id)):
                copy = self._adopted(stored.model_copy(update={"cached_from": maker}), shared, prompts)
                assert copy is not None, "steps of one key have heads and prompts alike"
                asked.results[shared.id] = copy
            yield Finished(shared, asked, False)

    def _break(self, one: _Waiting, message: str) -> Iterator[Finished]:
        for shared, asked in self._all(one):
            self.broken[shared.id] = message
            asked.errors[shared.id] = message
            yield Finished(shared, asked, False)

    @staticmethod
    def _all(one: _Waiting) -> list[tuple[SharedStep, Asked]]:
        return [(one.shared, one.asked), *((shared, asked) for shared, asked, _ in one.followers)]


def _row(first: SharedStep, one: _Waiting) -> Row:
    """Return a waiting question as a row of its loop's first step."""
    prompts = {there: one.prompts[here] for there, here in zip(first.nodes, one.shared.nodes, strict=True)}
    return Row(one.asked.question.id, one.shared.step.id, prompts, one.sources)
