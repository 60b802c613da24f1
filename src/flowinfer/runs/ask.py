"""One question through a flow: streamed, with each head's wishes if asked for."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from flowinfer.engine.base import Observer, TokenEvent
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.errors import RunError, UsageError
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Plan, Step, columns, members
from flowinfer.registry import backends
from flowinfer.results import Question, StepResult, Trace
from flowinfer.runs.gate import Gate
from flowinfer.runs.judging import majority
from flowinfer.spec import Flow
from flowinfer.startup import STARTUP
from flowinfer.tasks.base import language_note, refuse_missing, refuse_open
from flowinfer.zoos.toy import provide

_PROMPT_ID = "prompt"
"""Of every single question, so that one drawn again is the same."""


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
            **({"selections": [str(taken) for taken in self.trace.selections]} if self.trace.selections else {}),
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
    said |= {"usage": step.usage.model_dump(mode="json")} if step.usage else {}
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
        self._plan, self._final = plan, ""
        """The step that writes the answer, once it has begun."""
        self._on_text, self._on_token, self._on_notice = on_text, on_token, on_notice
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._gate: Gate | None = None
        self._told = 0
        """Characters of the answer that were passed on."""

    def model_loading(self, name: str, device: str) -> None:
        self.notice(f"loading {name} on {device}")

    def model_loaded(self, name: str, seconds: float) -> None:
        self._pause()

    def tokens_emitted(self, count: int) -> None:
        self._pause()

    def _pause(self) -> None:
        """Let whoever hears the text stop the engine, also while there is none."""
        if self._on_text:
            self._on_text("")

    def notice(self, message: str) -> None:
        if self._on_notice:
            self._on_notice(message)

    def admitted(self, question_id: str, step: str, *, opens_thinking: bool = False) -> None:
        if step not in self._plan.finals:
            return
        self._final, begun = step, self._plan.step(step)
        strips = not all(self._plan.models[member.model].think == "keep" for member in members(begun.source))
        self._gate = Gate(strips=strips, stops=begun.decoding.stop, prefill=begun.decoding.prefill)
        self._gate.begin(opens_thinking)
        self._decoder.reset()

    def emitted(self, question_id: str, step: str, event: TokenEvent) -> None:
        if self._on_token:
            self._on_token(step, event)
        if step == self._final and event.piece is not None:
            self._hear(self._decoder.decode(event.piece))

    def wants_text(self, question_id: str, step: str) -> bool:
        return step == self._final and self._on_text is not None

    def wrote(self, question_id: str, step: str, text: str) -> None:
        self._hear(text)

    def _hear(self, text: str) -> None:
        """Pass on what of a new text is answer; what a step that begins again has written before is not told again."""
        if self._on_text and self._gate is not None:
            self._gate.pass_on(text)
            new, self._told = self._gate.passed[self._told :], max(self._told, len(self._gate.passed))
            if new:
                self._on_text(new)

    def rest_of(self, answer: str) -> str:
        """Return what of the final answer was not streamed yet."""
        return self._gate.rest_of(answer) if self._gate is not None else answer


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
        on_text: hears pieces of the answer as they are written, and an empty one whenever the engine goes on; what it
            raises ends the answer.
        shows_trace: print on standard error what each head wanted at each token.
        quiet: say nothing about loading.
        models: loaded models to share.
    Raises:
        UsageError: the question is empty.
    """
    from flowinfer.runs.live import waiting_shown
    from flowinfer.runs.tokentrace import print_token

    _refuse_no_question(question)
    refuse_missing(columns(flow), [item := Question(id=_PROMPT_ID, question=question, reference="")], "a single prompt")
    refuse_open(flow, (), "a single prompt")
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
    return Answer(trace.answer, trace, tuple(filter(None, (flow.zoo_note, note, *_cut_short(plan, trace)))))


def _cut_short(plan: Plan, trace: Trace) -> Iterator[str]:
    """Yield a note for what its models did not end, of the texts that the answer is made of; the answer's own last.

    What a selection or a judge read and did not take is no part of it.
    """
    if trace.error is not None:
        return
    ended = {result.step: result for result in trace.steps}
    texts = [step for text in plan.answer.texts for step in _counted(plan, trace, text)]
    final = texts[trace.ballot.winner if trace.ballot else 0]
    used, waiting = set[str](), list(texts)
    while waiting:
        step_id = waiting.pop()
        if step_id not in used:
            used.add(step_id)
            waiting += _read(plan, trace, plan.step(step_id))
    told = Counter(
        (plan.step(name).title, where)
        for name, one in ended.items()
        if name in used - {final} and (where := _cut_where(plan.step(name), one))
    )
    titles = Counter(plan.step(name).title for name in used)
    for (title, where), count in told.items():
        other = "other " if title == plan.step(final).title else ""
        if titles[title] == 1:
            yield f"what {title} wrote is cut off {where}"
        elif count == 1:
            yield f"one {other}text of {title} is cut off {where}"
        else:
            yield f"{count} {other}texts of {title} are cut off {where}"
    if where := _cut_where(plan.step(final), ended[final]):
        yield f"the answer is cut off {where}"


def _cut_where(step: Step, result: StepResult) -> str:
    """Return where a text is cut off, in words; empty where its models ended it."""
    most = step.decoding.max_tokens
    if result.finish_reason == "length":
        is_earlier = result.usage is not None and 0 < result.tokens < most
        return f"by its endpoint, after {result.tokens} tokens" if is_earlier else f"at max_tokens={most}"
    return "where the context of its models is full" if result.finish_reason == "context" else ""


def _counted(plan: Plan, trace: Trace, text: str) -> list[str]:
    """Return the ids of the steps whose texts a step or selection came to."""
    taken = next((one for one in trace.selections if one.selection == text), None)
    if taken is None:
        return [text]
    candidates = plan.selection(text).candidates
    chosen = candidates[0 if taken.gathers else taken.taken : taken.taken + 1]
    if taken.lost is not None:
        chosen = tuple(one for number, one in enumerate(candidates, 1) if str(number) not in taken.lost)
    return [step for candidate in chosen for part in candidate for step in _counted(plan, trace, part)]


def _read(plan: Plan, trace: Trace, step: Step) -> set[str]:
    """Return the ids of the steps whose texts a step read: of a selection before it only those that were taken."""
    found = set(step.reads) & {result.step for result in trace.steps}
    for taken in trace.selections:
        choices = plan.writers(taken.selection)
        if step.id not in choices:
            found -= set(choices) - set(_counted(plan, trace, taken.selection))
    return found


def likelihoods(
    flow: Flow, question: str, texts: Sequence[str], *, models: ModelPool | None = None
) -> dict[str, float]:
    """Return how likely a flow's last step is to answer with each of some texts, as logarithms of probabilities.

    Raises:
        UsageError: there is nothing to ask, or the last step gives no probabilities.
        RunError: the question failed.
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise UsageError("texts must be a list of texts", help="likelihood(question, ['yes', 'no'])")
    if len(set(texts)) < len(texts):
        raise UsageError("a text stands twice in texts")
    _refuse_no_question(question)
    refuse_missing(columns(flow), [item := Question(id=_PROMPT_ID, question=question, reference="")], "a single prompt")
    provide(flow.models.values())
    plan = ready(flow, this_machine())
    last = plan.step(plan.answer.steps[0])
    if len(plan.answer.steps) > 1:
        raise UsageError(
            "the flow answers with one of several texts, and their probabilities are not those of its answer",
            help="end the flow in a model or a '|' group",
        )
    if any(backends()[plan.models[name].backend].text_only for name in _models(last)):
        raise UsageError(f"{last.title} gives texts only, and no probabilities", help="end the flow in a local model")
    reading = replace(last, decoding=last.decoding.model_copy(update={"by": "likelihood"}))
    plan = replace(plan, steps=tuple(reading if step is last else step for step in plan.steps))
    (trace,) = execute(plan, [item], batch=1, candidates=texts, models=models)
    if trace.error is not None:
        raise RunError(trace.error)
    return dict(trace.steps[-1].likelihoods or {})


def _refuse_no_question(question: object) -> None:
    if not isinstance(question, str):
        raise TypeError(f"question must be a text, not {type(question).__name__}")
    if not question.strip():
        raise UsageError("the question is empty")


def _models(step: Step) -> list[str]:
    return [member.model for member in members(step.source)]


def ask_all(flow: Flow, questions: Sequence[str], *, models: ModelPool | None = None) -> list[Answer]:
    """Run a flow on many questions at once; each has the answer that it has alone.

    Raises:
        UsageError: a question is empty.
    """
    for number, text in enumerate(questions):
        if not isinstance(text, str):
            raise TypeError(f"question {number} must be a text, not {type(text).__name__}")
    items = [Question(id=str(number), question=text, reference="") for number, text in enumerate(questions)]
    for item in items:
        if not item.question.strip():
            raise UsageError(f"question {item.id} is empty")
    refuse_missing(columns(flow), items, "a list of prompts")
    refuse_open(flow, (), "a list of prompts")
    note = language_note(flow, items)
    provide(flow.models.values())
    plan = ready(flow, this_machine())
    traces = {
        trace.question_id: trace for trace in execute(plan, items, vote=majority, noise_id=_PROMPT_ID, models=models)
    }
    notes = tuple(filter(None, (flow.zoo_note, note)))
    found = [traces[item.id] for item in items]
    return [Answer(trace.answer, trace, (*notes, *_cut_short(plan, trace))) for trace in found]
