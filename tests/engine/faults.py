"""Faults on purpose: at the k-th of all calls that a run makes, or at every call that is made for one question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowinfer.engine import decoders
from flowinfer.engine.base import Completion, Decoder, Observer
from flowinfer.engine.execute import execute
from flowinfer.engine.loops.choice import Loop
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.stream import PackedStream
from flowinfer.errors import LoadError
from flowinfer.planning.plan import Plan
from flowinfer.results import Ballot, Question, StepResult, Trace
from tests.engine import plans
from tests.engine.loops.test_stages import PackedDecoder, packed


class Panic(BaseException):
    """What a tokenizer that panics raises: no `Exception`."""


ERRORS = (ValueError("no good"), Panic("index out of bounds"), RecursionError("too deep"), LoadError("no template"))


class Fault:
    """Counts the calls that pass through it, and raises at one.

    Args:
        at: the call, from 1; 0 = none of them.
        error: what is raised.
        seam: raise at every call of this name instead,
        mark: whose arguments hold this text.
    """

    def __init__(self, at: int = 0, error: BaseException = ERRORS[0], *, seam: str = "", mark: str = "") -> None:
        self.at, self.error, self.seam, self.mark = at, error, seam, mark
        self.num_calls = 0

    def call(self, seam: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function, or raise."""
        self.num_calls += 1
        if self.num_calls == self.at or (seam == self.seam and self.mark in repr((arguments, named))):
            raise self.error
        return function(*arguments, **named)

    def through(self, seam: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls pass through here."""
        return lambda *arguments, **named: self.call(seam, function, *arguments, **named)


class Faulty:
    """An object whose calls pass through a fault."""

    def __init__(self, inner: Any, fault: Fault) -> None:
        self._inner, self._fault = inner, fault

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._fault.through(name, found) if callable(found) else found


class FaultyModel:
    """A model whose prompts and sessions pass through a fault."""

    def __init__(self, model: Any, fault: Fault) -> None:
        self.inner, self._fault = model, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def prompt(self, text: str, prefill: str = "") -> Any:
        """Build a prompt, or fail."""
        return self._fault.call("prompt", self.inner.prompt, text, prefill)

    def open(self) -> Any:
        """Return a session that may fail."""
        return Faulty(self.inner.open(), self._fault)


class FaultyObserver(Observer):
    """Hears of rows, or fails."""

    wants_tokens = True

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def admitted(self, question_id: str, step: str, *, opens_thinking: bool = False) -> None:
        """Hear, or fail."""
        self._fault.call("admitted", lambda *_: None, question_id)

    def emitted(self, question_id: str, step: str, event: Any) -> None:
        """Hear, or fail."""
        self._fault.call("emitted", lambda *_: None, question_id)

    def finished(self, question_id: str, result: StepResult) -> None:
        """Hear, or fail."""
        self._fault.call("finished", lambda *_: None, question_id)


class Shelf:
    """A cache of steps."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._kept = fault, dict[str, StepResult]()

    def get(self, key: str) -> StepResult | None:
        """Return what is there, or fail."""
        found: StepResult | None = self._fault.call("get", self._kept.get, key)
        return found

    def put(self, key: str, result: StepResult) -> None:
        """Keep, or fail."""
        self._fault.call("put", self._kept.__setitem__, key, result)


def maker(engine: str, fault: Fault) -> Callable[[Loop], Decoder]:
    """Return what makes decoders of a kind whose turns may fail."""

    class FaultyStream(PackedStream):
        def turn(self) -> list[Completion]:
            found: list[Completion] = fault.call("turn", super().turn)
            return found

    class FaultyPacked(PackedDecoder):
        def stream(self) -> PackedStream:
            return FaultyStream(self._heads, self._readers, self._caches, self._lock, self._side)

    def make(loop: Loop) -> Decoder:
        if engine == "packed":
            return packed(loop, FaultyPacked)
        return RoundDecoder(
            loop.step, loop.models, batch=loop.batch, observer=loop.observer, keeps_thinking=loop.keeps_thinking
        )

    return make


def run(
    plan: Plan,
    models: Mapping[str, Any],
    asked: Sequence[Question],
    fault: Fault,
    *,
    engine: str = "rounds",
    batch: int = 3,
) -> dict[str, Trace]:
    """Run a plan with every call of it passing through a fault; no question is lost or answered twice."""
    before, decoders.make_decoder = decoders.make_decoder, lambda loop, _: maker(engine, fault)(loop)
    try:
        traces = list(
            execute(
                plan,
                asked,
                batch=batch,
                observer=FaultyObserver(fault),
                cache=Shelf(fault),
                step_key=fault.through(
                    "key", lambda plan, step, prompts, question: f"{step.id} {sorted(prompts.items())}"
                ),
                member_order=fault.through("order", lambda plan, step, prompts: list(prompts)),
                vote=fault.through("vote", lambda question, texts: Ballot(answers=tuple(texts), winner=len(texts) - 1)),
                question_text=fault.through("text", lambda question: question.question),
                models=plans.Ready({name: FaultyModel(model, fault) for name, model in models.items()}),
            )
        )
    finally:
        decoders.make_decoder = before
    assert sorted(trace.question_id for trace in traces) == sorted(question.id for question in asked)
    return {trace.question_id: trace for trace in traces}
