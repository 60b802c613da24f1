"""Which weights go to which devices: within memory, and so that the busiest device has as little to read as can be.

Longest processing time first (Graham, 1969): the weights of which most is read go first, each to the device that has
least to do so far; at most 4/3 of the optimum where memory is ample. Then other assignments are tried, a bounded number
of them, and the best one counts. Pure: sizes in, device names out, and the order in which units come decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flowinfer.spec import Share

_MOST_TRIES = 20_000
"""Placings of a unit until no assignment is looked for any more."""
_MOST_BETTER = 2_000
"""The same until no better one is looked for."""


@dataclass(frozen=True)
class Layers:
    """How the bytes of a model that can lie on several devices are made up."""

    count: int
    each: int
    """Bytes of one layer."""
    ends: int
    """Bytes before and behind the layers, on the first device: input embedding and output matrix."""


@dataclass(frozen=True)
class Unit:
    """One set of weights, under all the names that the flow has for it."""

    names: tuple[str, ...]
    key: str
    """What it is; orders units of equal size."""
    size: int
    """Bytes to keep free for it."""
    reads: Mapping[str, int]
    """Step -> bytes that one step of it reads of these weights and their keys and values."""
    devices: tuple[str, ...]
    """Where it may go."""
    layers: Layers | None = None
    """None = it cannot be split."""
    is_split: bool = False
    """Whether it is to lie on all of its devices."""


Lie = tuple[Share, ...]
"""How a unit lies on devices, its first layers first; one share where it is whole."""


@dataclass(frozen=True, order=True)
class _Cost:
    """What an assignment costs; the first of two that differ counts."""

    busiest: int
    """Bytes that the busiest device reads while every step that runs at once makes one, summed over waves; of a slower
    device, as many as the fastest would read in the same time."""
    steps: int
    """Sum over steps of what the busiest device of each reads."""


def assign(
    units: Sequence[Unit],
    groups: Sequence[Sequence[str]],
    held: Sequence[Sequence[Unit]],
    free: Mapping[str, int],
    slowness: Mapping[str, float] | None = None,
) -> dict[str, Lie] | None:
    """Return where each unit lies, by its key, or None where they do not fit.

    Args:
        units: all of them.
        groups: the steps that run at once, for each set of steps that does.
        held: the units that must be in memory together, for each of these sets.
        free: bytes by device, in the order of preference.
        slowness: how many times as long as on the fastest a byte takes, by device; 1 where it is missing.
    """
    search = _Search(sorted(units, key=_order), groups, held, free, slowness or {})
    search.run(0)
    return search.best


def split(unit: Unit, devices: Sequence[str], room: Mapping[str, int]) -> Lie | None:
    """Return a unit's layers over devices, in proportion to their room; None where one of them has too little.

    Args:
        unit: has layers.
        devices: in the order in which layers lie on them; each gets one at least.
        room: bytes by device; one that is missing has any.
    """
    layers = unit.layers
    if layers is None or layers.count < len(devices):
        return None
    total = layers.ends + layers.count * layers.each
    scale = unit.size / total if total else 1.0  # the room that weights want for what goes with them
    rooms = [room.get(device, unit.size) / scale for device in devices]
    ends = [layers.ends, *[0] * (len(devices) - 1)]
    share = total / max(1.0, sum(rooms))
    counts = [1] * len(devices)
    for _ in range(layers.count - len(devices)):  # each layer to the device that is furthest below its share
        used = [end + count * layers.each for end, count in zip(ends, counts, strict=True)]
        lacking = [share * own - taken for own, taken in zip(rooms, used, strict=True)]
        counts[lacking.index(max(lacking))] += 1
    taken = [end + count * layers.each for end, count in zip(ends, counts, strict=True)]
    if any(own < used for own, used in zip(rooms, taken, strict=True)):
        return None
    return tuple(
        Share(device, count, used / total if total else 1 / len(devices))
        for device, count, used in zip(devices, counts, taken, strict=True)
    )


def _evenly(devices: Sequence[str]) -> Lie:
    """Return the lie of a model whose layers are not known yet."""
    return tuple(Share(device, 0, 1 / len(devices)) for device in devices)


def _order(unit: Unit) -> tuple[bool, int, int, str]:
    """Order units: those that have no choice first, then by what is read of them."""
    return len(unit.devices) > 1 and not unit.is_split, -sum(unit.reads.values()), -unit.size, unit.key


class _Search:
    """Depth-first search for the best assignment; the first one that it finds is that of longest time first."""

    def __init__(
        self,
        units: Sequence[Unit],
        groups: Sequence[Sequence[str]],
        held: Sequence[Sequence[Unit]],
        free: Mapping[str, int],
        slowness: Mapping[str, float],
    ) -> None:
        self._units, self._groups, self._free, self._slowness = units, groups, free, slowness
        self._held = [{unit.key for unit in group} for group in held]
        self._used: list[dict[str, int]] = [{} for _ in held]
        """By group: bytes by device."""
        self._reads: dict[str, dict[str, int]] = {step: {} for group in groups for step in group}
        """By step: bytes by device, as the fastest would read in the same time."""
        self._tries = 0
        self._chosen: dict[str, Lie] = {}
        self._best_cost: _Cost | None = None
        self.best: dict[str, Lie] | None = None

    def run(self, index: int) -> None:
        """Place the units from an index on in all ways that may be better than the best so far."""
        cost = self._cost()
        if self._best_cost is not None and cost >= self._best_cost:
            return
        if index == len(self._units):
            self.best, self._best_cost = dict(self._chosen), cost
            return
        unit = self._units[index]
        for lie in self._candidates(unit):
            self._tries += 1
            if self._tries > (_MOST_TRIES if self.best is None else _MOST_BETTER):
                return
            self._put(unit, lie, 1)
            self._chosen[unit.key] = lie
            self.run(index + 1)
            self._put(unit, lie, -1)

    def _put(self, unit: Unit, lie: Lie, sign: int) -> None:
        for share in lie:
            for used in self._mine(unit):
                used[share.device] = used.get(share.device, 0) + sign * int(share.part * unit.size)
            for step, count in unit.reads.items():
                if step in self._reads:
                    reads = self._reads[step]
                    spent = int(share.part * count * self._slowness.get(share.device, 1.0))
                    reads[share.device] = reads.get(share.device, 0) + sign * spent

    def _candidates(self, unit: Unit) -> Iterator[Lie]:
        """Yield where a unit may lie: the device with least to do first, then that with most room."""
        room = {device: self._room(unit, device) for device in unit.devices if device in self._free}
        if unit.is_split:
            lie = split(unit, unit.devices, room) if unit.layers else _evenly(unit.devices)
            yield from [lie] if lie else []
            return
        for device in unit.devices:
            if device not in self._free:  # declared, not there: its memory is not known
                yield (Share(device, 0, 1.0),)
        for device in sorted(room, key=lambda name: (self._load(name), self._together(unit, name), -room[name])):
            if room[device] >= unit.size:
                yield (Share(device, 0, 1.0),)
        if all(self._free[device] < unit.size for device in room):
            yield from self._splits(unit, room)

    def _splits(self, unit: Unit, room: Mapping[str, int]) -> Iterator[Lie]:
        """Yield the split over as few devices as hold a unit that fits on none."""
        roomy = sorted(room, key=lambda name: -room[name])
        for count in range(2, len(roomy) + 1):
            lie = split(unit, [name for name in room if name in roomy[:count]], room)
            if lie:
                yield lie
                return

    def _mine(self, unit: Unit) -> list[dict[str, int]]:
        return [used for used, keys in zip(self._used, self._held, strict=True) if unit.key in keys]

    def _room(self, unit: Unit, device: str) -> int:
        return min((self._free[device] - used.get(device, 0) for used in self._mine(unit)), default=self._free[device])

    def _load(self, device: str) -> int:
        return sum(reads.get(device, 0) for reads in self._reads.values())

    def _together(self, unit: Unit, device: str) -> int:
        """Return what a device reads already in the steps that a unit takes part in."""
        return sum(self._reads.get(step, {}).get(device, 0) for step in unit.reads)

    def _cost(self) -> _Cost:
        busiest = 0
        for group in self._groups:
            loads: dict[str, int] = {}
            for step in group:
                for device, count in self._reads[step].items():
                    loads[device] = loads.get(device, 0) + count
            busiest += max(loads.values(), default=0)
        return _Cost(busiest, sum(max(reads.values(), default=0) for reads in self._reads.values()))
