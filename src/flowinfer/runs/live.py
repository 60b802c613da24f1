"""Live progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from flowinfer.engine.base import Observer
from flowinfer.output.console import PlainConsole
from flowinfer.runs.stats import wilson
from flowinfer.runs.summary import is_tied

if TYPE_CHECKING:
    from flowinfer.results import Record, StepResult
    from flowinfer.spec import Flow

_PLAIN_EVERY_SECONDS = 5.0


class LiveProgress(Observer):
    """Shows accuracy so far, answers not found, tokens per second and time left.

    Args:
        total: questions of the run.
        is_quiet: shows nothing at all.
    """

    def __init__(self, total: int, *, is_quiet: bool = False) -> None:
        self._total = total
        self._is_quiet = is_quiet
        self._console = PlainConsole(stderr=True)
        is_plain = not self._console.is_terminal or bool(os.environ.get("CI"))
        self._progress = None if is_plain or is_quiet else self._bar()
        self._task = self._progress.add_task("", total=total, status="") if self._progress else None
        self._started = time.monotonic()
        self._spoken = self._started
        self._done = self._correct = self._judged = self._missing = self._failed = self._tokens = self._before = (
            self._ties
        ) = 0
        self._steps, self._steps_done = 1, 0
        self.first_failure: Record | None = None

    def __enter__(self) -> LiveProgress:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()

    def notice_start(self, flow: Flow, label: str, run: str, note: str | None = None) -> None:
        """Say what runs, with which words and zoo and why, and where it is kept."""
        settings = f"prompts '{flow.prompts}', zoo {flow.zoo} ({flow.zoo_why})"
        self._say(f"{flow.name} on {label}: {self._total} questions, {settings}")
        for told in (flow.zoo_note, note):
            if told:
                self._say(f"note: {told}")
        if run:
            self._say(f"run {run}")

    def planned(self, num_steps: int) -> None:
        """Hear how many steps each question takes, for the time left."""
        self._steps = num_steps

    def finished(self, question_id: str, result: StepResult) -> None:
        """Count a step."""
        self._steps_done += 1

    def resumed(self, records: Sequence[Record]) -> None:
        """Count answers that were there before."""
        for record in records:
            self._count(record)
        self._before = self._done
        self._refresh()

    def answered(self, record: Record) -> None:
        """Count a judged answer."""
        self._count(record)
        if record.trace.error is not None and self.first_failure is None:
            self.first_failure = record
        self._refresh()

    def model_loading(self, name: str, device: str) -> None:
        """Say that a model is being loaded."""
        self._say(f"loading {name} on {device}")

    def model_loaded(self, name: str, seconds: float) -> None:
        """Say how long a model took."""
        self._say(f"loaded {name} in {seconds:.1f} s")

    def notice(self, message: str) -> None:
        """Say what the user should know."""
        self._say(f"note: {message}")

    def batch_halved(self, batch: int) -> None:
        """Say that memory was short."""
        self._say(f"note: memory is short, going on with batch {batch}")

    def tokens_emitted(self, count: int) -> None:
        """Count tokens."""
        self._tokens += count
        if self._progress is not None or time.monotonic() - self._spoken >= _PLAIN_EVERY_SECONDS:
            self._refresh()

    def _count(self, record: Record) -> None:
        self._done += 1
        self._failed += record.trace.error is not None
        self._ties += is_tied(record)
        if record.score is not None:
            self._judged += 1
            self._correct += record.score.correct
            self._missing += record.score.status != "ok"

    def status(self) -> str:
        """Return the line of figures."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = []
        if self._judged:
            interval = wilson(self._correct, self._judged)
            parts.append(
                f"accuracy {100 * self._correct / self._judged:.1f} %"
                f" [{100 * interval.low:.0f}-{100 * interval.high:.0f}]"
            )
        parts.append(f"no answer {self._missing}")
        if self._ties:
            parts.append(f"tied {self._ties}")
        if self._failed:
            parts.append(f"failed {self._failed}")
        parts.append(f"{self._tokens / seconds:.0f} tok/s")
        return "  ".join(parts)

    def _refresh(self) -> None:
        if self._is_quiet:
            return
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, status=self.status() + self._time_left())
        elif time.monotonic() - self._spoken >= _PLAIN_EVERY_SECONDS or self._done == self._total:
            self._spoken = time.monotonic()
            print(f"{self._done}/{self._total}  {self.status()}{self._time_left()}", file=sys.stderr, flush=True)

    def _time_left(self) -> str:
        """Return the time left by the share of steps that are done, not of questions: these end many at a time."""
        wanted = self._steps * (self._total - self._before)
        if not self._steps_done or self._done >= self._total:
            return ""
        left = (time.monotonic() - self._started) * max(wanted / self._steps_done - 1, 0)
        return f"  {int(left // 60)}:{int(left % 60):02d} left"

    def _say(self, message: str) -> None:
        if self._is_quiet:
            return
        if self._progress is not None:
            self._progress.console.print(message, style="dim")
        else:
            print(message, file=sys.stderr, flush=True)

    def _bar(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
        )
