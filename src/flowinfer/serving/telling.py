"""From what happens to a question to what can be told of its answer: whole characters, no stop texts, no thoughts."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flowinfer.engine.base import TokenEvent
from flowinfer.planning.plan import Step
from flowinfer.results import StepResult, Trace
from flowinfer.runs.gate import Gate
from flowinfer.serving.flows import ServedFlow
from flowinfer.serving.happenings import Admitted, Answered, Failed, Happening, StepEnded, Wrote, WroteText
from flowinfer.spec import Decoding


@dataclass(frozen=True)
class Piece:
    """What is new of an answer."""

    text: str = ""
    thought: str = ""
    """What earlier stages wrote, and what was thought."""
    tokens: tuple[TokenEvent, ...] = ()
    """Those that wrote the text, as soon as they are whole in it."""

    def __bool__(self) -> bool:
        return bool(self.text or self.thought or self.tokens)


class Telling:
    """Follow one question.

    Args:
        flow: that it was put to.
        decodings: its options by step of the flow's plan.
    """

    def __init__(self, flow: ServedFlow, decodings: Mapping[str, Decoding]) -> None:
        self._final: Step | None = None
        """The step that writes the answer, once it has begun."""
        self._finals = flow.plan.finals
        self._stages = [
            _Stage(step, decodings[step.id], strips=step.id in self._finals and not flow.keeps_thinking(step))
            for step in flow.plan.steps
        ]
        self._by_id = {stage.step.id: stage for stage in self._stages}
        self.trace: Trace | None = None
        """Once it is answered."""
        self.failure: str | None = None
        """Why it is not."""
        self.has_begun = False

    def hear(self, happening: Happening) -> Piece:
        """Take what has happened; return what is new."""
        self.has_begun = True
        match happening:
            case Admitted(step, opens_thinking):
                self._by_id[step].begin(opens_thinking)
                if step in self._finals:  # what it could have read has run, or never will
                    self._final = self._by_id[step].step
                    self._wait_no_more(stage for stage in self._stages if stage.step.when or stage.step.lanes)
            case Wrote(step, token):
                self._by_id[step].write(token)
            case WroteText(step, text):
                self._by_id[step].write_text(text)
            case StepEnded(result):
                self._by_id[result.step].end(result)
            case Answered(trace):
                self.trace = trace
                for result in trace.steps:
                    self._by_id[result.step].end(result)
                self._wait_no_more(self._stages)
            case Failed(reason):
                self.failure = reason
        return self._new()

    def _wait_no_more(self, stages: Iterable[_Stage]) -> None:
        """Tell what follows some stages: those that have not ended are skipped, or broken off."""
        for stage in stages:
            if stage.step is not self._final:
                stage.is_over = True

    def _new(self) -> Piece:
        """Return what is new: thoughts of earlier stages in their order, then of the last one, then the answer."""
        thought = ""
        for stage in self._stages:
            if stage.step is not self._final:
                thought += stage.titled(stage.new_text())
                if not stage.is_over:
                    return Piece(thought=thought)
        if self._final is None:
            return Piece(self.trace.answer if self.trace else "", thought)
        final = self._by_id[self._final.id]
        own = final.new_thought()
        return Piece(
            final.new_text(), thought + (final.titled(own) if len(self._stages) > 1 else own), final.new_tokens()
        )


class _Stage:
    """What one step has written so far."""

    def __init__(self, step: Step, decoding: Decoding, *, strips: bool) -> None:
        self.step, self._decoding, self._strips = step, decoding, strips
        self.is_over = False
        self._told = self._told_thought = self._told_tokens = 0
        """Characters, characters and tokens that were told of."""
        self._has_title = self._has_end = False
        self._rest = self._rest_of_thought = ""
        self.begin(False)

    def begin(self, opens_thinking: bool) -> None:
        """Start, or start again; what was told of is not told again."""
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._gate = Gate(strips=self._strips, stops=self._decoding.stop, prefill=self._decoding.prefill)
        self._gate.begin(opens_thinking)
        self._read = len(self._decoding.prefill)
        self._written: list[_Written] = []
        self._num_settled = self._num_tokens = 0
        """Of what is written, how many tokens were looked at, and how many of those are of the answer."""

    def write(self, token: TokenEvent) -> None:
        """Take a token."""
        if token.piece is None or self.is_over:
            return
        text, begin = self._bytes.decode(token.piece), self._read
        self.write_text(text)
        self._written.append(_Written(token, begin, self._read))

    def write_text(self, text: str) -> None:
        """Take a part of the text."""
        if not self.is_over:
            self._read += len(text)
            self._gate.pass_on(text)

    def end(self, result: StepResult) -> None:
        """Take the whole text."""
        if self.is_over:
            return
        self.is_over = True
        self._rest_of_thought = self._gate.rest_of_thought()
        self._rest = self._gate.rest_of(result.passed_on if self._strips else result.text)

    def titled(self, new: str) -> str:
        """Return a new part of its text among those of other stages: under its title, and apart from the next one."""
        if new and not self._has_title:
            new, self._has_title = f"[{self.step.title}]\n{new}", True
        if self.is_over and self._has_title and not self._has_end:
            new, self._has_end = new + "\n\n", True
        return new

    def new_text(self) -> str:
        """Return what was not told yet."""
        text = self._gate.passed + self._rest
        new, self._told = text[self._told :], max(self._told, len(text))
        return new

    def new_thought(self) -> str:
        """Return what of its thoughts was not told yet."""
        thought = self._gate.thought + self._rest_of_thought
        new, self._told_thought = thought[self._told_thought :], max(self._told_thought, len(thought))
        return new

    def new_tokens(self) -> tuple[TokenEvent, ...]:
        """Return the tokens of the answer that are whole in what is told, and were not told yet."""
        first = self._gate.answer_at
        if first is None:
            return ()
        last = first + len(self._gate.passed) + len(self._rest)
        new = []
        while self._num_settled < len(self._written):
            one = self._written[self._num_settled]
            if one.end > last and not self.is_over:
                break
            self._num_settled += 1
            if one.is_between(first, last):
                self._num_tokens += 1
                if self._num_tokens > self._told_tokens:
                    new.append(one.token)
        self._told_tokens += len(new)
        return tuple(new)


@dataclass(frozen=True)
class _Written:
    """A token and where in its step's text it stands; one that wrote only a part of a character has no length."""

    token: TokenEvent
    begin: int
    end: int

    def is_between(self, first: int, last: int) -> bool:
        """Return whether it wrote something between two places of the text."""
        return self.begin < last and (self.end > first or self.begin == self.end == first)
