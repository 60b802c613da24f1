"""The figures of a profile, as they stand in its table and in its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowinfer.backends.base import Traffic


@dataclass(frozen=True)
class Spread:
    """Seconds of one part over the measured steps."""

    mean: float
    deviation: float
    """Sample standard deviation; 0 for a single step."""
    variance: float
    """Its square, in seconds squared."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Sum up the seconds of each step."""
        deviation = statistics.stdev(seconds) if len(seconds) > 1 else 0.0
        return cls(statistics.fmean(seconds) if seconds else 0.0, deviation, deviation**2)


@dataclass(frozen=True)
class NetworkFigures:
    """What a step costs between this process and a head elsewhere; means."""

    waited: float
    """Seconds from questions to answers, the head's own work included."""
    network: float
    """Seconds of them that the head says that it had not to do with."""
    messages: float
    """Each there and back."""
    sent: float
    received: float
    """Bytes."""

    @classmethod
    def between(cls, before: Traffic | None, after: Traffic | None, *, steps: int) -> NetworkFigures | None:
        """Return what a step has cost between two looks at a head; None where it is here."""
        if before is None or after is None:
            return None
        waited, worked = after.waited - before.waited, after.worked - before.worked
        counts = (after.messages - before.messages, after.sent - before.sent, after.received - before.received)
        return cls(waited / steps, (waited - worked) / steps, *(count / steps for count in counts))


@dataclass(frozen=True)
class HeadFigures:
    """One head of a step."""

    node: str
    model: str
    device: str
    prompt_tokens: float
    """Mean length of its prompts."""
    prefill_seconds: float
    """Reading all prompts of the batch at once."""
    forward: Spread
    """Reading the ids of one emitted token in every row, the wait for the device included."""
    transfer: Spread
    """Moving its distribution to the fusing device."""
    forward_share: float
    """Of the sum of parts."""
    step_bytes: int | None
    """Weights without the embedding, and keys and values of all rows; None where the model's size is not known."""
    network: NetworkFigures | None = None
    """Where it is elsewhere."""


@dataclass(frozen=True)
class DeviceStep:
    """What one device does with the real step's time, by its own clock; the parts add up to the step."""

    device: str
    models: tuple[str, ...]
    """Of the heads that run there."""
    heads: Spread
    """Their forwards."""
    transfer: Spread
    """Their logits on the way to where slots are chosen."""
    fuse: Spread
    """Choosing slots, where that is done here."""
    wait: Spread
    """For other devices, or for the host."""

    @property
    def seconds(self) -> float:
        """Mean of the step."""
        return self.heads.mean + self.transfer.mean + self.fuse.mean + self.wait.mean


@dataclass(frozen=True)
class WholeFigures:
    """The same step in the real decoder."""

    engine: str
    """reference, packed or text."""
    seconds_per_step: float
    """Per emitted token of all rows; prefill excluded."""
    tokens_per_second: float
    seconds: float
    """From the first prompt to the last token, prefill included."""
    tokens: int
    host_wait_seconds: float | None
    """What the host waited for the device, per step; None where the engine does not count it."""
    drafted: int
    accepted: int
    devices: tuple[DeviceStep, ...] = ()
    """Where whole steps run on devices."""


@dataclass(frozen=True)
class StepFigures:
    """One step of a flow."""

    step: str
    title: str
    batch: int
    steps: int
    """Emitted tokens that were measured, per row."""
    context: float
    """Mean ids of a row and head while measured."""
    heads: tuple[HeadFigures, ...]
    fuse: Spread
    """Lifting to shared probabilities, mixing, and choosing a token in every row."""
    fuse_share: float
    fusers: tuple[str, ...]
    host_fusers: tuple[str, ...]
    """Those of them that work on the host, token by token."""
    fuse_device: str
    """Where distributions are fused."""
    append: Spread
    """Turning the emitted tokens into every head's own ids, on the host."""
    host_wait: Spread
    """What the host waits for devices, within the parts above; 0 on a CPU, which is both."""
    parts: Spread
    """Sum of all parts; heads on different devices counted one after another."""
    slowest: str
    """Model whose forward takes longest; empty without heads."""
    floor_seconds: float | None
    """Bytes over the measured copy bandwidth; the slowest device where there are several."""
    whole: WholeFigures

    @property
    def step_bytes(self) -> int | None:
        """Bytes that one step cannot but read."""
        found = [head.step_bytes for head in self.heads]
        return sum(one or 0 for one in found) if found and None not in found else None

    @property
    def side_by_side(self) -> float:
        """Seconds of all parts where every device works through its own heads while the others do the same."""
        by_device: dict[str, float] = {}
        for head in self.heads:
            by_device[head.device] = by_device.get(head.device, 0.0) + head.forward.mean
        return self.parts.mean - sum(by_device.values()) + max(by_device.values(), default=0.0)

    def times_floor(self, seconds: float) -> float | None:
        """Return seconds over the floor."""
        return seconds / self.floor_seconds if self.floor_seconds else None


@dataclass(frozen=True)
class DeviceFigures:
    """A device and its memory's speed."""

    name: str
    copy_bytes_per_second: float
    """Of a large copy, read and written bytes counted."""


@dataclass(frozen=True)
class Profile:
    """Where a flow's time goes."""

    flow: str
    zoo: str
    batch: int
    devices: tuple[DeviceFigures, ...]
    steps: tuple[StepFigures, ...]
    notes: tuple[str, ...]
