"""The same step in the decoder that a run would use: seconds per emitted token, prefill apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.decoders import Decoders
from flowinfer.errors import RunError
from flowinfer.planning.plan import Plan, Step, members
from flowinfer.profiling.figures import DeviceStep, Spread, WholeFigures
from flowinfer.profiling.parts import WARM_UPS


@dataclass
class Ticks(Observer):
    """Hears when tokens come out."""

    notices: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    halved_to: int | None = None

    def tokens_emitted(self, count: int) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())
        self.counts.append(count)

    def notice(self, message: str) -> None:
        """Keep a notice once."""
        if message not in self.notices:
            self.notices.append(message)

    def batch_halved(self, batch: int) -> None:
        """Remember the batch that fits."""
        self.halved_to = batch

    def forget(self) -> None:
        """Begin a new measurement."""
        self.times.clear()
        self.counts.clear()


@dataclass(frozen=True)
class Decoded:
    """What the decoder made of the rows."""

    completions: tuple[Completion, ...]
    figures: WholeFigures


def decode_whole(decoders: Decoders, ticks: Ticks, plan: Plan, step: Step, rows: Sequence[Row]) -> Decoded:
    """Decode rows twice, the first time to warm up; measure the second.

    Raises:
        RunError: a row could not run.
    """
    for completion in decoders.decode(step.id, plan, step, rows):
        if completion.result is None:
            raise RunError(f"step {step.id} {step.title}: {completion.error}")
    ticks.forget()
    waited = decoders.host_wait_seconds(step.id)
    start = time.perf_counter()
    completions = tuple(decoders.decode(step.id, plan, step, rows))
    seconds = time.perf_counter() - start
    results = [completion.result for completion in completions if completion.result]
    tokens = sum(result.tokens for result in results)
    rate = token_rate(ticks) or tokens / seconds
    most = max((result.tokens for result in results), default=0)
    waited_since = (decoders.host_wait_seconds(step.id) or 0.0) - (waited or 0.0)
    figures = WholeFigures(
        engine=decoders.engine(step.id),
        seconds_per_step=len(rows) / rate,
        tokens_per_second=rate,
        seconds=seconds,
        tokens=tokens,
        host_wait_seconds=None if waited is None else waited_since / max(1, most),
        drafted=sum(getattr(result, "drafted_tokens", 0) for result in results),
        accepted=sum(getattr(result, "accepted_tokens", 0) for result in results),
    )
    return Decoded(completions, replace(figures, devices=_watch(decoders, plan, step, rows)))


def _watch(decoders: Decoders, plan: Plan, step: Step, rows: Sequence[Row]) -> tuple[DeviceStep, ...]:
    """Decode rows twice more and mark what each device does the second time; nothing where the host drives steps."""
    watch = decoders.watched(step.id)
    if watch is None:
        return ()
    for _ in range(2):  # the first time graphs may be recorded that the marks ask for
        watch.forget()
        for _ in decoders.decode(step.id, plan, step, rows):
            pass
    models = [member.model for member in members(step.source)]
    return tuple(
        DeviceStep(
            own.device,
            tuple(models[k] for k in own.heads),
            *(Spread.of([one[part] for one in own.steps]) for part in ("heads", "transfer", "fuse", "wait")),
        )
        for own in watch.devices(skip=WARM_UPS)
    )


def token_rate(ticks: Ticks) -> float | None:
    """Return tokens per second after the first ones, which wait for the prefill; None where all came at once.

    An engine that reads the device every few steps tells of several steps at one time: such a burst counts as one.
    """
    if len(ticks.times) < 2:
        return None
    typical = (ticks.times[-1] - ticks.times[0]) / (len(ticks.times) - 1)
    gaps = [after - before for before, after in pairwise(ticks.times)]
    begins = [0, *(index for index, gap in enumerate(gaps, start=1) if gap > typical / 2)]
    if len(begins) < 2:
        return None
    return sum(ticks.counts[begins[1] :]) / (ticks.times[begins[-1]] - ticks.times[0])
