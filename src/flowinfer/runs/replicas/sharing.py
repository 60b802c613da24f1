"""What each of several replicas has of this machine: GPUs by groups, CPU cores and memory by parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from flowinfer.errors import MemoryShort, RunError, UsageError
from flowinfer.machine import Machine, this_machine
from flowinfer.planning.needs import mapped_bytes
from flowinfer.runs.replicas.hosts import Wanted, own_bytes, part, smallest
from flowinfer.runs.replicas.local import LocalSite
from flowinfer.spec import ModelSpec

if TYPE_CHECKING:
    from flowinfer.runs.replicas.cluster import ClusterSite

P = TypeVar("P")


@dataclass(frozen=True)
class Shares:
    """Equal parts of a machine."""

    machine: Machine
    """What each has, its GPUs numbered from 0. In its CPU's memory files that all of them map count whole."""
    gpus: tuple[str | None, ...]
    """Of each, what CUDA_VISIBLE_DEVICES makes of them; None where there are none."""
    cores: tuple[tuple[int, ...], ...]
    """Of each, its CPU cores."""
    cpu_bytes: int
    """Of the CPU's free memory, what each may count with for itself."""

    def site(self) -> LocalSite:
        """Return where replicas on these parts run."""
        return LocalSite(self.gpus, self.cores, self.cpu_bytes)


def shares(
    machine: Machine, count: int, environment: Mapping[str, str], cores: Sequence[int], mapped: int = 0
) -> Shares:
    """Divide a machine into equal parts; GPUs and cores that are left over stay idle.

    Args:
        machine: GPUs first, the CPU last.
        count: parts.
        environment: says what its GPUs are called.
        cores: that this process may use.
        mapped: bytes of files that all parts map into memory, where they lie once.
    Raises:
        UsageError: it has fewer GPUs, or cores, than parts.
    """
    *gpus, cpu = machine.devices
    for what, there in (("GPUs", len(gpus)), ("CPU cores", len(cores))):
        if 0 < there < count:
            raise UsageError(f"--replicas {count}: this machine has {there} {what}", help=f"at most {there}, or auto")
    size, width = len(gpus) // count, len(cores) // count
    groups = [gpus[index * size : (index + 1) * size] for index in range(count)]
    own = tuple(smallest(f"cuda:{index}", [group[index] for group in groups]) for index in range(size))
    names = _visible(environment, len(gpus))
    return Shares(
        Machine((*own, part(cpu, count, mapped))),
        tuple(",".join(names[index * size : (index + 1) * size]) if size else None for index in range(count)),
        tuple(tuple(cores[index * width : (index + 1) * width]) for index in range(count)),
        own_bytes(cpu, count, mapped),
    )


def sited(
    wanted: Wanted,
    cluster: str | None,
    models: Iterable[ModelSpec],
    place: Callable[[Machine], P],
    fits: Callable[[P], bool],
) -> tuple[LocalSite | ClusterSite | None, P]:
    """Find where replicas run: on the hosts of a cluster, or on parts of this machine; see `divided`.

    Args:
        cluster: its address; None or `here` for this machine.
        models: that a replica loads.
    """
    if cluster in (None, "here"):
        return divided(wanted, this_machine(), place, fits, models)
    from flowinfer.runs.replicas.cluster import clustered

    return clustered(cluster, wanted, models, place, fits)


def divided(
    wanted: Wanted,
    machine: Machine,
    place: Callable[[Machine], P],
    fits: Callable[[P], bool],
    models: Iterable[ModelSpec] = (),
) -> tuple[LocalSite | None, P]:
    """Divide this machine among replicas, and place their plans on one part.

    Args:
        wanted: how many; "auto": as many as have room.
        machine: this one.
        place: places what a replica runs.
        fits: whether all models are in memory at once as it is placed.
        models: that a replica loads.
    Returns:
        Where they run, None for a single one, which runs here; and what was placed on one of them.
    Raises:
        UsageError, MemoryShort: so many have no room.
        LoadError: a model is declared where a part has no device.
    """
    if wanted == 1:
        return None, place(machine)
    mapped = mapped_bytes(models, has_gpus=len(machine.devices) > 1)
    cores = cores_here()
    if wanted == "auto":
        found = most(machine, place, fits, cores, mapped)
        return (found[0].site(), found[1]) if found else (None, place(machine))
    parts = shares(machine, wanted, os.environ, cores, mapped)
    what = ", ".join(device.name for device in parts.machine.devices)
    try:
        placed = place(parts.machine)
    except RunError as error:
        place(machine)  # what all of it cannot run either is told as without replicas
        told = f"--replicas {wanted}, each with {what}: {error.message}"
        raise type(error)(told, help="fewer replicas, or auto") from error
    if not fits(placed):
        cure = "fewer replicas, or auto"
        raise MemoryShort(f"--replicas {wanted}: a copy's models do not fit into its part of the memory", help=cure)
    return parts.site(), placed


def cores_here() -> list[int]:
    """Return the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def most(
    machine: Machine, place: Callable[[Machine], P], fits: Callable[[P], bool], cores: Sequence[int], mapped: int = 0
) -> tuple[Shares, P] | None:
    """Divide a machine into as many parts as hold a copy each; None where that is one or none.

    Args:
        cores: that it has.
        mapped: bytes of files that all parts map into memory, where they lie once.
    Returns:
        The parts, and what was placed on one of them.
    """
    for count in range(min(len(machine.devices) - 1 or len(cores), len(cores)), 1, -1):
        parts = shares(machine, count, os.environ, cores, mapped)
        try:
            placed = place(parts.machine)
        except RunError:
            continue
        if fits(placed):
            return parts, placed
    return None


def _visible(environment: Mapping[str, str], count: int) -> list[str]:
    """Return what the GPUs that this process sees are called, in its order."""
    said = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return said[:count] if len(said) >= count else [str(index) for index in range(count)]
