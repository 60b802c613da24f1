"""Loops whose texts a function writes, for tests of what runs and what does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flowinfer.engine.base import Completion, NoCache, Observer, Row, StepCache, StepKey
from flowinfer.engine.caching import Caching
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.decoding import DecodingLoop
from flowinfer.engine.models import ModelPool
from flowinfer.engine.scheduler import Scheduler
from flowinfer.engine.work import Asked, trace_of
from flowinfer.language.check import check
from flowinfer.planning.merge import Merged, merge
from flowinfer.planning.plan import Plan, Step, compile, members
from flowinfer.results import Ballot, Question, StepResult, Trace
from flowinfer.runs.cache import member_order, step_key
from tests.zoos import NAMES


class Said(NamedTuple):
    """What a step writes; None as its text = it fails."""

    text: str | None
    confidence: float | None = 1.0


Write = Callable[[str, str], Said]
"""(title of the step, prompt of its first member) -> what it writes."""


class _Loop:
    """A decoder and its stream: every turn ends all rows."""

    keeps_host_busy = False
    is_waiting = False

    def __init__(self, step: Step, script: Script) -> None:
        self._step, self._script = step, script
        self._rows: list[Row] = []

    def stream(self) -> _Loop:
        return self

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        self._rows.append(row)

    def end(self, row: Row) -> None:
        self._rows = [one for one in self._rows if one is not row]

    def turn(self) -> list[Completion]:
        if not self._script.is_ready(self._step.title):
            return []
        rows, self._rows = self._rows, []
        return [self._script.complete(self._step, row) for row in rows]

    def wait(self) -> None: ...

    def close(self) -> None:
        self._rows = []


class Script(Decoders):
    """Decoders whose loops write what a function says."""

    def __init__(self, write: Write) -> None:
        super().__init__(ModelPool(), Observer(), 8)
        self._write = write
        self.calls: list[str] = []
        """Titles of the steps that were decoded, in order."""
        self.prompts: list[str] = []

    def loop(self, name: str, plan: Plan, step: Step) -> DecodingLoop:
        return self._loops.setdefault(
            name, DecodingLoop(plan, step, lambda loop: _Loop(step, self), lambda batch: None)
        )

    def may_begin(self, loop: DecodingLoop) -> bool:
        return True

    def is_ready(self, title: str) -> bool:
        """Return whether a step's loop ends its rows in this turn."""
        return True

    def complete(self, step: Step, row: Row) -> Completion:
        prompt = next(iter(row.prompts.values()))
        said = self._write(step.title, prompt)
        self.calls.append(step.title)
        self.prompts.append(prompt)
        if said.text is None:
            return Completion(row, None, "it cannot")
        result = StepResult(
            step=row.step,
            text=said.text,
            passed_on=said.text,
            prompts={row.member(one).node: row.prompts[one.node] for one in members(step.source)},
            tokens=1,
            finish_reason="eos",
            seconds=1.0,
            confidence=said.confidence,
            lead=said.confidence,
            agreement=said.confidence,
        )
        return Completion(row, result)


def planned(text: str) -> Plan:
    """Return the plan of a flow, with prompts that say nothing themselves."""
    return compile(check(f'defaults {{ prompts="plain" }}\n{text}', zoo=NAMES))


def by_votes(question: Question, texts: Sequence[str]) -> Ballot:
    """Let texts vote, each for itself; "?" is no answer."""
    answers = [None if text == "?" else text for text in texts]
    found = [answer for answer in answers if answer is not None]
    won = max(found, key=found.count, default=None)
    return Ballot(answers=tuple(answers), winner=answers.index(won))


def asked(text: str = "q", **more: str) -> Asked:
    return Asked(Question(id=text, question=text, reference=""), lambda one: one.question, vote=by_votes)


def scheduler(
    merged: Merged, script: Script, shelf: StepCache | None = None, clock: Callable[[], float] = time.monotonic
) -> Scheduler:
    kept = NoCache() if shelf is None else shelf
    key: StepKey = (lambda *_: "") if shelf is None else step_key
    caching = Caching(lambda *_: kept, lambda *_: "", key, member_order)
    return Scheduler(merged.steps, script, caching, Observer(), clock=clock)


def run(text: str, write: Write | Mapping[str, Said | str], question: str = "q") -> tuple[Trace, Script]:
    """Run a flow on a question; return its trace and what was called."""
    script = Script(write if callable(write) else lambda title, prompt: Said(*_listed(write[title])))
    plan, one = planned(text), asked(question)
    merged = merge([plan])
    list(scheduler(merged, script).run([one.of(merged.uses[0])]))
    assert one.is_done
    return trace_of(plan, merged.uses[0], one), script


def _listed(said: Said | str) -> Said:
    return Said(said) if isinstance(said, str) else said
