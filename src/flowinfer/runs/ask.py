"""One question through a flow: streamed, with each head's wishes if asked for."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from flowinfer.engine.base import Observer, TokenEvent
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.errors import UsageError
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Plan, columns, members
from flowinfer.results import Question, StepResult, Trace
from flowinfer.runs.experiment import majority
from flowinfer.spec import THOUGHTS, Flow
from flowinfer.startup import STARTUP
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
        """Return the answer with its steps folded under it."""
        steps = "".join(
            f"<details><summary>{escape(step.step)}: {step.tokens} tokens, {step.seconds:.2f} s</summary>"
            f"{_preformatted(step.text)}</details>"
            for step in self.trace.steps
        )
        ballot = f"<p><small>{escape(str(self.trace.ballot))}</small></p>" if self.trace.ballot else ""
        remarks = "".join(f"<p><small>{escape(note)}</small></p>" for note in self.notes)
        return f"{_preformatted(self.text)}{ballot}{remarks}{steps}"


def _preformatted(text: str) -> str:
    return f"<pre style='white-space:pre-wrap'>{escape(text)}</pre>"


def _step_json(step: StepResult) -> dict[str, Any]:
    said = step.model_dump(mode="json", include={"step", "text", "tokens", "seconds", "finish_reason"})
    prompts = list(step.prompts.values())
    return said | {"prompt": prompts[0] if len(prompts) == 1 else prompts}


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
        self._gate = _Gate(strips=strips, stops=step.decoding.stop, prefill=step.decoding.prefill)

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
            text = self._gate.pass_on(self._decoder.decode(event.piece))
            if text:
                self._on_text(text)

    def rest_of(self, answer: str) -> str:
        """Return what of the final answer was not streamed yet."""
        return answer[len(self._gate.passed) :] if answer.startswith(self._gate.passed) else ""


class _Gate:
    """Holds back what may not belong to the answer: thinking, and what may be the beginning of a stop text."""

    def __init__(self, *, strips: bool, stops: tuple[str, ...], prefill: str) -> None:
        self._strips = strips
        self._stops = tuple(stop for stop in stops if stop)
        self._hold = max((len(stop) for stop in self._stops), default=0)
        self._pending = prefill
        self._given = len(prefill)
        """Characters of the prefill that are still pending; a stop text in them does not count."""
        self._phase: Literal["start", "thinking", "after", "answer"] = "start" if strips else "answer"
        """After a thought, line breaks are dropped; before one they are held until it is clear that none begins."""
        self.passed = ""

    def begin(self, opens_thinking: bool) -> None:
        """Start an answer that may begin inside thinking."""
        if opens_thinking and self._strips:
            self._phase = "thinking"

    def pass_on(self, text: str) -> str:
        """Take new text and return what is certainly answer."""
        self._pending += text
        if self._phase == "start":
            body = self._pending.lstrip("\n")
            if any(thought.opens.startswith(body) for thought in THOUGHTS):
                return ""
            opens = any(body.startswith(thought.opens) for thought in THOUGHTS)
            self._phase = "thinking" if opens else "answer"
        if self._phase == "thinking":
            closed = [thought.closes for thought in THOUGHTS if thought.closes in self._pending]
            if not closed:
                return ""
            first = min(closed, key=self._pending.index)
            self._phase, self._pending, self._given = "after", self._pending.partition(first)[2], 0
        if self._phase == "after":
            self._pending = self._pending.lstrip("\n")
            if not self._pending:
                return ""
            self._phase = "answer"
        found = [self._pending.find(stop, self._given) for stop in self._stops]
        stopped = min((at for at in found if at >= 0), default=None)
        cut = max(0, len(self._pending) - self._hold) if stopped is None else stopped
        sure, self._pending = self._pending[:cut], self._pending[cut:]
        self._given = max(0, self._given - cut)
        self.passed += sure
        return sure


def ask(
    flow: Flow,
    question: str,
    *,
    on_text: Callable[[str], None] | None = None,
    shows_trace: bool = False,
    quiet: bool = True,
    models: ModelPool | None = None,
) -> Answer:
    """Run a flow on one question.

    Args:
        flow: a checked flow.
        question: its text.
        on_text: hears pieces of the answer as they are written.
        shows_trace: print on standard error what each head wanted at each token.
        quiet: say nothing about loading.
        models: loaded models to share.
    Raises:
        UsageError: the question is empty.
    """
    from flowinfer.runs.live import waiting_shown
    from flowinfer.runs.tokentrace import print_token

    if not isinstance(question, str):
        raise TypeError(f"question must be a text, not {type(question).__name__}")
    if not question.strip():
        raise UsageError("the question is empty")
    refuse_missing(columns(flow), [item := Question(id="prompt", question=question, reference="")], "a single prompt")
    note = language_note(flow, [item])
    provide(flow.models.values())
    with STARTUP.waiting_for("devices"):
        plan = ready(flow, this_machine())
    with nullcontext() if quiet else waiting_shown() as say:
        listener = _Listener(plan, on_text, print_token if shows_trace else None, say)
        (trace,) = execute(plan, [item], batch=1, observer=listener, vote=majority, models=models)
    if trace.ballot is not None and trace.ballot.is_tie:
        listener.notice(f"note: {trace.ballot}")
    if trace.error is None and on_text:
        on_text(listener.rest_of(trace.answer))
    return Answer(trace.answer, trace, tuple(filter(None, (flow.zoo_note, note))))
