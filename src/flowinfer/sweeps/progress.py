"""Progress of a sweep on stderr: a bar on a terminal, a line now and then elsewhere; time left over the whole sweep."""

from __future__ import annotations

import os
import sys
import time

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from flowinfer.engine.base import Observer
from flowinfer.output.console import PlainConsole

_PLAIN_EVERY_SECONDS = 5.0


class SweepProgress(Observer):
    """Counts model calls.

    Args:
        is_quiet: shows nothing at all.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        console = PlainConsole(stderr=True)
        is_plain = not console.is_terminal or bool(os.environ.get("CI"))
        self._bar = None if is_plain or is_quiet else _bar(console)
        self._task = self._bar.add_task("", total=1, status="") if self._bar else None
        self._spoken = 0.0
        self.begin("", 1, 0)

    def __enter__(self) -> SweepProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, phase: str, total: int, runs: int, unit: str = "model calls") -> None:
        """Hear what comes now: how many calls (or questions) at most, for how many runs."""
        self._phase, self._total, self._runs, self._unit = phase, max(total, 1), runs, unit
        self._done = self._fresh = self._ended = self._failed = self._tokens = 0
        self._started = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._total, completed=0)

    def step(self, calls: int, is_fresh: bool) -> None:
        """Count what ended; fresh is what was done just now."""
        self._done += calls
        self._fresh += calls if is_fresh else 0
        self._refresh()

    def run_ended(self, name: str, *, is_failed: bool) -> None:
        """Say that a path has ended on a data set."""
        self._ended += 1
        self._failed += is_failed
        if self._bar is None:
            self._refresh()
        self.say(name) if is_failed else None

    def model_loading(self, name: str, device: str) -> None:
        """Say that a model is being loaded."""
        self.say(f"loading {name} on {device}")

    def notice(self, message: str) -> None:
        """Say what the user should know."""
        self.say(f"note: {message}")

    def batch_halved(self, batch: int) -> None:
        """Say that memory was short."""
        self.say(f"note: memory is short, going on with batch {batch}")

    def tokens_emitted(self, count: int) -> None:
        """Count tokens."""
        self._tokens += count
        if time.monotonic() - self._spoken >= (0.2 if self._bar else _PLAIN_EVERY_SECONDS):
            self._refresh()

    def status(self) -> str:
        """Return the line of figures."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = [f"{100 * self._done / self._total:.0f} %"]
        if self._runs:
            parts.append(f"{self._ended}/{self._runs} runs")
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(f"{self._tokens / seconds:.0f} tok/s")
        if self._fresh and self._done < self._total:
            left = seconds * (self._total - self._done) / self._fresh
            parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return "  ".join(parts)

    def say(self, message: str) -> None:
        """Say something once."""
        if self._is_quiet:
            return
        if self._bar is not None:
            self._bar.console.print(message, style="dim")
        else:
            print(message, file=sys.stderr, flush=True)

    def _refresh(self) -> None:
        if self._is_quiet:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, status=f"{self._phase}  {self.status()}")
        elif time.monotonic() - self._spoken >= _PLAIN_EVERY_SECONDS:
            self._spoken = time.monotonic()
            done = f"{self._done}/{self._total} {self._unit}"
            print(f"{self._phase}  {done}  {self.status()}", file=sys.stderr, flush=True)


def _bar(console: PlainConsole) -> Progress:
    return Progress(
        SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[status]}", markup=False), console=console
    )
