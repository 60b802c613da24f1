"""Progress of a sweep on stderr: model calls of all paths, and the time left over the whole sweep."""

from __future__ import annotations

from flowinfer.runs.live import Live, clock


class SweepProgress(Live):
    """Counts model calls.

    Args:
        is_quiet: shows nothing at all.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        super().__init__(is_quiet=is_quiet)
        self.begin("", 1, 0)

    def begin(self, phase: str, total: int, runs: int, unit: str = "model calls") -> None:
        """Hear what comes now: how many calls (or questions) at most, for how many runs."""
        self._phase, self._runs, self._unit = phase, runs, unit
        self._fresh = self._ended = self._failed = 0
        self.expect(max(total, 1))

    def step(self, calls: int, is_fresh: bool) -> None:
        """Count what ended; fresh is what was done just now."""
        self.done += calls
        self._fresh += calls if is_fresh else 0
        self.refresh()

    def run_ended(self, name: str, *, is_failed: bool) -> None:
        """Say that a path has ended on a data set."""
        self._ended += 1
        self._failed += is_failed
        if is_failed:
            self.say(name)
        self.refresh()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be counted: a run ends after its last call."""
        return super().is_over and self._ended >= self._runs

    def line(self) -> str:
        """Return how far it is."""
        parts = [self._phase, f"{self.done}/{self.total} {self._unit}", f"{100 * self.done / self.total:.0f} %"]
        if self._runs:
            parts.append(f"{self._ended}/{self._runs} runs")
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(self.rate)
        if self._fresh and self.done < self.total:
            parts.append(f"{clock(self.seconds * (self.total - self.done) / self._fresh)} left")
        return "  ".join(parts)
