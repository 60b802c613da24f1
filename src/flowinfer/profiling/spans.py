"""Measured phases: who did what, from when to when; summed up by step, or written as a trace."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowinfer.engine.loops.clock import Clock, Part
from flowinfer.errors import UsageError
from flowinfer.files import write_whole
from flowinfer.profiling.bandwidth import synchronize


@dataclass(frozen=True)
class Span:
    """One phase."""

    step: str
    """Id of the flow's step."""
    index: int
    """Which emitted token; -1 before the first that counts."""
    lane: str
    """Who did it: a head, `fuse` or `host`."""
    part: Part
    name: str
    start: float
    """Seconds of the performance counter."""
    seconds: float
    """The device's work included."""
    wait: float
    """Seconds of it in which the host only waited for the device."""


class Recorder(Clock):
    """A clock that keeps every phase of one step; it waits for devices, and lets phases run one after another.

    Args:
        step: id of the flow's step.
        lanes: a name for each head.
        devices: that of each head.
    """

    def __init__(self, step: str, lanes: Sequence[str], devices: Sequence[torch.device]) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.index = -1
        self.lanes = tuple(lanes)
        self._step = step
        self._devices = tuple(dict.fromkeys(devices))
        self._turn = threading.RLock()

    @contextmanager
    def phase(self, part: Part, *, head: int | None = None, name: str = "") -> Iterator[None]:
        """Measure a block, its devices' work included."""
        lane = self.lanes[head] if head is not None else "host" if part == "append" else "fuse"
        with self._turn:
            start = time.perf_counter()
            yield
            queued = time.perf_counter()
            for device in self._devices:
                synchronize(device)
            end = time.perf_counter()
        wait = end - queued if any(device.type == "cuda" for device in self._devices) else 0.0
        self.add(part, head, end - start)
        self.spans.append(Span(self._step, self.index, lane, part, name or part, start, end - start, wait))

    def by_step(self, part: Part | None = None, lane: str | None = None) -> list[float]:
        """Return the seconds of each measured step, of one part or lane or of all but prefill."""
        return self._sums([s.seconds for s in self.spans], part, lane)

    def waits(self) -> list[float]:
        """Return what the host waited in each measured step."""
        return self._sums([s.wait for s in self.spans], None, None)

    def prefill(self, lane: str) -> float:
        """Return the seconds in which a head read the prompts."""
        return sum(span.seconds for span in self.spans if span.part == "prefill" and span.lane == lane)

    def _sums(self, values: Sequence[float], part: Part | None, lane: str | None) -> list[float]:
        sums: dict[int, float] = {span.index: 0.0 for span in self.spans if span.index >= 0}
        for span, value in zip(self.spans, values, strict=True):
            if span.index >= 0 and part in (None, span.part) and lane in (None, span.lane):
                sums[span.index] += value
        return list(sums.values())


def write_trace(path: Path, spans: Sequence[Span], titles: dict[str, str]) -> None:
    """Write phases in Chrome's trace format: one process per step of the flow, one lane per head, `fuse` and `host`.

    Args:
        path: where to; chrome://tracing and ui.perfetto.dev open it.
        spans: of all steps.
        titles: step id -> how the flow writes it.
    Raises:
        UsageError: it cannot be written.
    """
    origin = min((span.start for span in spans), default=0.0)
    lanes = list(dict.fromkeys((span.step, span.lane) for span in spans))
    steps = list(dict.fromkeys(span.step for span in spans))
    events: list[dict[str, Any]] = [  # the format's own keys
        {"ph": "M", "name": "process_name", "pid": steps.index(step) + 1, "args": {"name": f"{step} {titles[step]}"}}
        for step in steps
    ]
    for number, (step, lane) in enumerate(lanes, start=1):
        pid = steps.index(step) + 1
        events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": number, "args": {"name": lane}})
        events += [
            {
                "ph": "X",
                "name": span.name,
                "cat": span.part,
                "pid": pid,
                "tid": number,
                "ts": 1e6 * (span.start - origin),
                "dur": 1e6 * span.seconds,
                "args": {"token": span.index, "wait_us": 1e6 * span.wait},
            }
            for span in spans
            if (span.step, span.lane) == (step, lane)
        ]
    try:
        write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
    except OSError as error:
        raise UsageError(f"--trace {path}: cannot be written: {error.strerror}") from error
