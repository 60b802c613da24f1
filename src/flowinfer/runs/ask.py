"""One question through a flow: streamed, with each head's wishes if asked for."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from flowinfer.engine.base import Observer, TokenEvent
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.errors import UsageError
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Plan, columns, members
from flowinfer.results import Question, StepResult, Trace
from flowinfer.runs.experiment import majority
from flowinfer.runs.gate import Gate
from flowinfer.spec import Flow
from flowinfer.tasks.base import language_note, refuse_missing
from flowinfer.zoos.toy import provide


@dataclass(frozen=True)
class Answer:
    """A flow's answer to one question; `str(answer)` is its text."""

    text: str
    trace: Trace
    notes: tuple[str, ...] = ()
    """What one must know before believing it."""

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain data."""
        return {
            "text": self.text,
            "finish_reason": self.trace.finish_reason,
            "seconds": self.trace.seconds,
            **({"vote": str(self.trace.ballot), "is_tie": self.trace.ballot.is_tie} if self.trace.ballot else {}),
            "steps": [_step_json(step) for step in self.trace.steps],
        }

    def _repr_html_(self) -> str:
        from flowinfer.runs.evaluation import answer_html

        return answer_html(self)


def _step_json(step: StepResult) -> dict[str, Any]:
    prompts = list(step.prompts.values())
    return {
        "step": step.step,
        "text": step.text,
        "prompt": prompts[0] if len(prompts) == 1 else prompts,
        "tokens": step.tokens,
        "seconds": step.seconds,
        "finish_reason": step.finish_reason,
    }


class _Listener(Observer):
    """Streams the last step's text and tells of tokens."""

    wants_tokens = True

    def __init__(
        self,
        plan: Plan,
        on_text: Callable[[str], None] | None,
        on_token: Callable[[str, TokenEvent], None] | None,
        on_notice: Callable[[str], None] | None,
    ) -> None:
        self._final = plan.answer.steps[0] if plan.answer.kind == "text" else None
        self._on_text, self._on_token, self._on_notice = on_text, on_token, on_notice
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        step = plan.step(plan.answer.steps[0])
        strips = not all(plan.models[member.model].think == "keep" for member in members(step.source))
        self._gate = Gate(strips=strips, stops=step.decoding.stop, prefill=step.decoding.prefill)
        self.has_streamed = False

    def model_loading(self, name: str, device: str) -> None:
        self.notice(f"loading {name} on {device}")

    def notice(self, message: str) -> None:
        if self._on_notice:
            self._on_notice(message)

    def admitted(self, question_id: str, step: str, *, opens_thinking: bool = False) -> None:
        if step == self._final:
            self._gate.begin(opens_thinking)

    def emitted(self, question_id: str, step: str, event: TokenEvent) -> None:
        if self._on_token:
            self._on_token(step, event)
        if step == self._final and event.piece is not None and self._on_text:
            self.has_streamed = True
            text = self._gate.pass_on(self._decoder.decode(event.piece))
            if text:
                self._on_text(text)

    def rest_of(self, answer: str) -> str:
        """Return what of the final answer was not streamed yet."""
        return self._gate.rest_of(answer)


def ask(
    flow: Flow,
    question: str,
    *,
    stream: TextIO | None = None,
    on_text: Callable[[str], None] | None = None,
    shows_trace: bool = False,
    quiet: bool = True,
    models: ModelPool | None = None,
) -> Answer:
    """Run a flow on one question.

    Args:
        flow: a checked flow.
        question: its text.
        stream: where the answer goes as it is written.
        on_text: hears pieces of the answer as they are written.
        shows_trace: print on standard error what each head wanted at each token.
        quiet: say nothing about loading.
        models: loaded models to share.
    Raises:
        UsageError: the question is empty.
    """
    import sys

    from flowinfer.runs.tokentrace import print_token

    def write(text: str) -> None:
        if stream is not None and not shows_trace:
            stream.write(text)
            stream.flush()
        if on_text is not None:
            on_text(text)

    if not isinstance(question, str):
        raise TypeError(f"question must be a text, not {type(question).__name__}")
    if not question.strip():
        raise UsageError("the question is empty")
    refuse_missing(columns(flow), [item := Question(id="prompt", question=question, reference="")], "a single prompt")
    note = language_note(flow, [item])
    provide(flow.models.values())
    plan = ready(flow, this_machine())
    listener = _Listener(
        plan,
        write,
        print_token if shows_trace else None,
        None if quiet else lambda message: print(message, file=sys.stderr, flush=True),
    )
    traces = execute(plan, [item], batch=1, observer=listener, vote=majority, models=models)
    trace = next(iter(list(traces)))
    if trace.ballot is not None and trace.ballot.is_tie:
        listener.notice(f"note: {trace.ballot}")
    if trace.error is None:
        write(trace.answer if shows_trace or not listener.has_streamed else listener.rest_of(trace.answer))
        if stream is not None:
            stream.write((trace.answer if shows_trace else "") + "\n")
            stream.flush()
    return Answer(trace.answer, trace, tuple(filter(None, (flow.zoo_note, note))))
