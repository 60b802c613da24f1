"""From a step's text as it is written to what of it is certainly answer, and what is thought."""

from __future__ import annotations

from typing import Literal

from flowinfer.spec import THOUGHTS

_MOST_CLOSING = max(len(thought.closes) for thought in THOUGHTS)


class Gate:
    """Holds back what may not belong to the answer: thinking, and what may be the beginning of a stop text.

    Args:
        strips: whether thoughts are no part of the answer.
        stops: texts that end it.
        prefill: what it begins with.
    """

    def __init__(self, *, strips: bool, stops: tuple[str, ...], prefill: str) -> None:
        self._strips = strips
        self._stops = tuple(stop for stop in stops if stop)
        self._hold = max((len(stop) for stop in self._stops), default=0)
        self._pending = prefill
        self._given = len(prefill)
        """Characters of the prefill that are still pending; a stop text in them does not count."""
        self._phase: Literal["start", "thinking", "after", "answer"] = "start" if strips else "answer"
        """After a thought, line breaks are dropped; before one they are held until it is clear that none begins."""
        self._read = len(prefill)
        self.passed = ""
        """The answer so far."""
        self.thought = ""
        """What was thought before it, so far."""
        self.answer_at: int | None = None if strips else 0
        """Where in the text, prefill included, the answer begins; None while that is not known."""

    @property
    def position(self) -> int:
        """Return how many characters of the text, prefill included, are settled: passed on or dropped."""
        return self._read - len(self._pending)

    def begin(self, opens_thinking: bool) -> None:
        """Start an answer that may begin inside thinking."""
        if opens_thinking and self._strips:
            self._phase = "thinking"

    def pass_on(self, text: str) -> str:
        """Take new text and return what is certainly answer."""
        self._pending += text
        self._read += len(text)
        if self._phase == "start" and not self._has_begun():
            return ""
        if self._phase == "thinking" and not self._has_thought():
            return ""
        if self._phase == "after":
            self._pending = self._pending.lstrip("\n")
            if not self._pending:
                return ""
            self._phase = "answer"
        if self.answer_at is None:
            self.answer_at = self.position
        found = [self._pending.find(stop, self._given) for stop in self._stops]
        stopped = min((at for at in found if at >= 0), default=None)
        cut = max(0, len(self._pending) - self._hold) if stopped is None else stopped
        sure, self._pending = self._pending[:cut], self._pending[cut:]
        self._given = max(0, self._given - cut)
        self.passed += sure
        return sure

    def rest_of(self, answer: str) -> str:
        """Return what of the whole answer was not passed on yet."""
        return answer[len(self.passed) :] if answer.startswith(self.passed) else ""

    def rest_of_thought(self) -> str:
        """Return what of a thought that has not ended was not kept yet."""
        return self._pending if self._phase == "thinking" else ""

    def _has_begun(self) -> bool:
        """Return whether it is clear that a thought begins, or that none does."""
        body = self._pending.lstrip("\n")
        if any(thought.opens.startswith(body) for thought in THOUGHTS):
            return False
        opening = next((thought.opens for thought in THOUGHTS if body.startswith(thought.opens)), None)
        self._phase = "answer" if opening is None else "thinking"
        if opening is not None:
            self._pending = body.removeprefix(opening)
        return True

    def _has_thought(self) -> bool:
        """Return whether a thought has ended; keep what is certainly part of it."""
        closed = [thought.closes for thought in THOUGHTS if thought.closes in self._pending]
        if not closed:
            cut = max(0, len(self._pending) - _MOST_CLOSING)
            self.thought += self._pending[:cut]
            self._pending = self._pending[cut:]
            return False
        thought, _, self._pending = self._pending.partition(min(closed, key=self._pending.index))
        self.thought += thought
        self._phase, self._given = "after", 0
        return True
