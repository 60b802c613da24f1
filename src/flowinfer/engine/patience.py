"""When to give up: a run in which nothing but failures comes is stopped, not sat through."""

from __future__ import annotations

from flowinfer.errors import RunError

MOST_FAILURES = 10
"""Failures at the beginning, with no answer among them, after which no other question is asked."""


class Patience:
    """Hears how questions end; one answer, and it waits for all others.

    Args:
        has_answer: whether there was one before.
    """

    def __init__(self, *, has_answer: bool) -> None:
        self._failed = 0
        self._has_answer = has_answer

    def hear(self, error: str | None) -> None:
        """Take a question's end: None where it was answered.

        Raises:
            RunError: the first ones failed, all of them; with the reason of the last.
        """
        self._has_answer = self._has_answer or error is None
        self._failed += 1
        if not self._has_answer and self._failed == MOST_FAILURES:
            raise RunError(f"gave up: the first {MOST_FAILURES} questions failed and none was answered: {error}")
