"""Live progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from flowinfer.engine.base import Observer
from flowinfer.output.console import PlainConsole, plain
from flowinfer.output.words import counted
from flowinfer.runs.stats import wilson
from flowinfer.runs.summing import is_tied
from flowinfer.startup import STARTUP

if TYPE_CHECKING:
    from flowinfer.results import Record, StepResult
    from flowinfer.spec import Flow

_PLAIN_EVERY_SECONDS = 5.0
_MOST_REPLICAS = 8
"""That are shown one by one."""


@contextmanager
def waiting_shown() -> Iterator[Callable[[str], None]]:
    """Show on a terminal what a start waits for until its first token; give what says lines beside it."""
    console = PlainConsole(stderr=True)
    if not console.is_terminal or os.environ.get("CI"):
        yield lambda message: print(message, file=sys.stderr, flush=True)
        return
    with console.status("") as shown:

        def wait_for(what: str) -> None:
            if STARTUP.seconds is None:
                shown.update(plain(f"waiting for: {what}" if what else "", "dim"))
            else:
                shown.stop()

        STARTUP.listen(wait_for)
        try:
            yield console.print
        finally:
            STARTUP.listen(None)


class Live(Observer):
    """Says what the engine does, and how far it is; what is counted, and in which words, is said in `line`.

    Args:
        is_quiet: shows nothing at all.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        console = PlainConsole(stderr=True)
        has_bar = console.is_terminal and not os.environ.get("CI") and not is_quiet
        columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[line]}", markup=False))
        self._bar = Progress(*columns, console=console) if has_bar else None
        self._is_quiet = is_quiet
        self._waits_for = ""
        """What the start waits for, until the first token."""
        self._replicas: Sequence[str] = ()
        """What each copy of the plan does, where there are several."""
        self.expect(1)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        STARTUP.listen(self._wait_for)
        return self

    def __exit__(self, *exception: object) -> None:
        STARTUP.listen(None)
        if self._bar:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Begin to count up to a number."""
        self.total, self.done, self._tokens = total, 0, 0
        self._started = self._spoken = time.monotonic()
        if self._bar:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task("", total=total, line="")

    def line(self) -> str:
        """Return how far it is."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be counted."""
        return self.done == self.total

    @property
    def seconds(self) -> float:
        """Return how long it has been at work."""
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def rate(self) -> str:
        """Return how fast it is."""
        return f"{self._tokens / self.seconds:.0f} tok/s"

    def say(self, message: str) -> None:
        """Say something once."""
        if self._bar:
            self._bar.console.print(message, style="dim")
        elif not self._is_quiet:
            print(message, file=sys.stderr, flush=True)

    def refresh(self) -> None:
        """Show how far it is, where that is due."""
        if self._bar:
            line = "\n".join([self._waits_for or self.line(), *self._each_replica()])
            self._bar.update(self._bar.task_ids[0], completed=self.done, line=line)
        elif time.monotonic() - self._spoken >= _PLAIN_EVERY_SECONDS or self.is_over:
            self._spoken = time.monotonic()
            self.say("; ".join([self._waits_for or self.line(), *self._each_replica()]))

    def replicas(self, states: Sequence[str]) -> None:
        """Show what each copy of the plan does."""
        self._replicas = tuple(states)
        if self._bar:
            self.refresh()

    def _each_replica(self) -> list[str]:
        more = len(self._replicas) - _MOST_REPLICAS
        return [*self._replicas[:_MOST_REPLICAS], *([f"and {more} more"] if more > 0 else [])]

    def _wait_for(self, what: str) -> None:
        """Hear what the start waits for."""
        self._waits_for = f"waiting for: {what}" if what else ""
        if self._bar or what:
            self.refresh()

    def model_loading(self, name: str, device: str) -> None:
        """Say that a model is being loaded."""
        self.say(f"loading {name} on {device}")

    def notice(self, message: str) -> None:
        """Say what the user should know."""
        self.say(f"note: {message}")

    def batch_halved(self, batch: int) -> None:
        """Say that memory was short."""
        self.notice(f"memory is short, going on with batch {batch}")

    def tokens_emitted(self, count: int) -> None:
        """Count tokens."""
        self._tokens += count
        if self.done < self.total:
            self.refresh()


def clock(seconds: float) -> str:
    """Write minutes and seconds."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


class LiveProgress(Live):
    """Shows accuracy so far, answers not found, tokens per second and time left.

    Args:
        total: questions of the run.
        is_quiet: shows nothing at all.
    """

    def __init__(self, total: int, *, is_quiet: bool = False) -> None:
        super().__init__(is_quiet=is_quiet)
        self.expect(total)
        self._counts: Counter[str] = Counter()
        self._before = self._steps_done = 0
        self._steps = 1
        self.first_failure: Record | None = None

    def notice_start(self, flow: Flow, label: str, run: str, note: str | None = None) -> None:
        """Say what runs, with which words and zoo and why, and where it is kept."""
        self.say(f"{flow.name} on {label}: {counted(self.total, 'question')}, {flow.words}")
        for told in filter(None, (flow.zoo_note, note)):
            self.notice(told)
        if run:
            self.say(f"run {run}")

    def model_loaded(self, name: str, seconds: float) -> None:
        """Say how long a model took."""
        self.say(f"loaded {name} in {seconds:.1f} s")

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
        self._before = self.done
        self.refresh()

    def answered(self, record: Record) -> None:
        """Count a judged answer."""
        self._count(record)
        if record.trace.error is not None and self.first_failure is None:
            self.first_failure = record
        self.refresh()

    def _count(self, record: Record) -> None:
        self.done += 1
        self._counts["failed"] += record.trace.error is not None
        self._counts["tied"] += is_tied(record)
        if (score := record.score) is not None:
            self._counts["judged"] += 1
            self._counts["correct"] += score.correct
            self._counts["missing"] += score.status != "ok"

    def status(self) -> str:
        """Return the figures so far."""
        counts, parts = self._counts, []
        if counts["judged"]:
            interval = wilson(counts["correct"], counts["judged"])
            accuracy = f"accuracy {100 * counts['correct'] / counts['judged']:.1f} %"
            parts.append(f"{accuracy} [{100 * interval.low:.0f}-{100 * interval.high:.0f}]")
        parts.append(f"no answer {counts['missing']}")
        parts += [f"{name} {counts[name]}" for name in ("tied", "failed") if counts[name]]
        return "  ".join([*parts, self.rate])

    def line(self) -> str:
        """Return how far it is; time left goes by the steps that are done, for questions end many at a time."""
        line = f"{self.done}/{self.total}  {self.status()}"
        if not self._steps_done or self.done >= self.total:
            return line
        wanted = self._steps * (self.total - self._before)
        return f"{line}  {clock(self.seconds * max(wanted / self._steps_done - 1, 0))} left"
