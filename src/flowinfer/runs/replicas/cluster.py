"""Replicas on the hosts of a Ray cluster: Ray finds places and starts actors; all else is as on one host.

An actor is a relay: it runs the same process as a replica of one host, and hands its lines on. So it has all heads of
a copy on one host, its GPUs are what Ray gives the actor, and it ends with the actor, whoever ends that.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flowinfer.errors import UsageError
from flowinfer.machine import Machine
from flowinfer.planning.needs import mapped_bytes, process_bytes
from flowinfer.planning.placement import shown_bytes
from flowinfer.registry import backends
from flowinfer.runs.replicas.hosts import Host, Spread, Wanted, spread
from flowinfer.runs.replicas.local import Outbox, Process, threads_for
from flowinfer.runs.replicas.node import Look, differences, look
from flowinfer.runs.replicas.site import ANSWERS, Gone, Hear
from flowinfer.runs.replicas.wire import Notice, line_of
from flowinfer.spec import ModelSpec

_LOOK_SECONDS = 60.0
"""Until a host has said what it has."""
_PLACE_SECONDS, _TELL_SECONDS = 120.0, 10.0
"""Until an actor has found a place, and until it is told that there is none yet."""
PAUSE_SECONDS = 20e-3
"""Between what one actor hands on, times their number: that costs the driver a part of it, however much it is."""
_MOST_PAUSE_SECONDS = 0.05
"""Where somebody reads each token as it comes."""
_KNOCK_SECONDS = 10.0
P = TypeVar("P")
Ray = Any
"""The module; it is an extra, and its types are not checked."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    id: str
    name: str
    cores: int
    num_gpus: int
    memory: int
    """Bytes that Ray lends."""
    look: Look | None
    problems: tuple[str, ...]
    """Why no replica can run there."""

    @property
    def is_refused(self) -> bool:
        """Return whether it would take part and cannot; one that lends nothing may be as it is."""
        return bool(self.problems) and bool(self.cores or self.num_gpus)

    @property
    def host(self) -> Host:
        """Return it as a place for replicas."""
        assert self.look is not None, "one without problems has been looked at"
        *gpus, cpu = self.look.devices
        lent = replace(cpu, free_bytes=min(cpu.free_bytes, self.memory))
        return Host(self.id, self.name, (*gpus[: self.num_gpus], lent), self.cores)


def nodes(address: str, models: Iterable[ModelSpec]) -> list[Node]:
    """Connect to a cluster, and return its nodes as far as they can answer as this host does.

    Args:
        address: `auto` or HOST:PORT.
        models: that replicas are to load; those of endpoints and of heads elsewhere do not count.
    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    ray = _connected(address)
    specs = [spec.model_dump() for spec in models if not backends()[spec.backend].is_elsewhere]
    here = Look.model_validate(look(specs))
    alive = [one for one in ray.nodes() if one["Alive"]]
    asked = [(one, _looking(ray, one["NodeID"]).remote(specs)) for one in alive]
    return [_node(ray, one, reply, here) for one, reply in asked]


def clustered(
    address: str,
    wanted: Wanted,
    models: Iterable[ModelSpec],
    place: Callable[[Machine], P],
    fits: Callable[[P], bool],
) -> tuple[ClusterSite, P]:
    """Spread replicas over a cluster; see `sharing.divided`.

    Raises:
        UsageError: there is no cluster, or a node has other versions or models; names node and difference.
        MemoryShort: so many replicas have no room.
    """
    models = list(models)
    found = nodes(address, models)
    told = [f"node {node.name}: {problem}" for node in found if node.is_refused for problem in node.problems]
    if told:
        raise UsageError("; ".join(told), help="make it the same there, or take the node out of the cluster")
    where, placed = over(found, wanted, models, place, fits)
    return ClusterSite(where), placed


def over(
    found: Iterable[Node],
    wanted: Wanted,
    models: Iterable[ModelSpec],
    place: Callable[[Machine], P],
    fits: Callable[[P], bool],
) -> tuple[Spread, P]:
    """Spread replicas over nodes that have been looked at; see `hosts.spread`.

    Args:
        models: that a replica loads.
    """
    hosts, models = [node.host for node in found if node.look], list(models)
    has_gpus = any(host.gpus for host in hosts)
    mapped, needed = mapped_bytes(models, has_gpus=has_gpus), process_bytes(models, has_gpus=has_gpus)
    return spread(hosts, wanted, place, fits, mapped, needed)


class ClusterSite:
    """The hosts of a cluster that this process is connected to."""

    def __init__(self, where: Spread) -> None:
        self.num_replicas, self.cpu_bytes = len(where.hosts), where.cpu_bytes
        self.hosts: Sequence[str] = tuple(host.id for host in where.hosts)
        self._where = where
        self._links: list[_Link] = []
        self._groups: dict[int, Any] = {}
        """By index of a replica."""

    def begin(self, index: int, program: str, hear: Hear) -> _Link:
        """Start an actor on its own host or, where that has gone, on another with room; see `Site.begin`."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where, pause = self._where, self.num_replicas * PAUSE_SECONDS
        if program != ANSWERS:
            pause = min(pause, _MOST_PAUSE_SECONDS)
        actor = (
            ray.remote(_Relay)
            .options(
                num_gpus=where.num_gpus,
                num_cpus=where.cores,
                memory=min(where.kept_bytes),  # of its group's: no other actor is given it
                max_concurrency=4,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group(index), 0),
            )
            .remote(program, {"OMP_NUM_THREADS": threads_for(where.cores)}, pause)
        )
        kept = shown_bytes(where.kept_bytes[index])
        needs = f"{where.num_gpus} GPUs, {where.cores} CPU cores and {kept} of memory"
        self._links.append(_Link(ray, actor, hear, f"no node has {needs} free"))
        return self._links[-1]

    def _group(self, index: int) -> Any:
        """Return a replica's placement group: what it needs of one host is kept for it while it is started again."""
        from ray.util.placement_group import placement_group

        if index not in self._groups:
            where = self._where
            needs = {"GPU": where.num_gpus, "CPU": where.cores, "memory": where.kept_bytes[index]}
            bundle = {name: count for name, count in needs.items() if count}
            node = where.hosts[index].id
            self._groups[index] = placement_group([bundle], strategy="STRICT_PACK", _soft_target_node_id=node)
        return self._groups[index]

    def close(self) -> None:
        """End all actors, and let go of the cluster."""
        import ray

        for link in self._links:
            link.end()
        ray.shutdown()  # with which Ray takes back what was kept for them


class _Relay:
    """An actor: a replica's process beside it, and its lines.

    Args:
        pause: seconds between what it hands on.
    """

    def __init__(self, program: str, environment: Mapping[str, str], pause: float) -> None:
        self._pause = pause
        self._said: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        self._process = Process(program, self._said.put, self._said.put, environment, ())

    def is_here(self) -> bool:
        """Return True, once the actor has a place."""
        return True

    def write(self, lines: bytes) -> None:
        """Hand lines to the replica."""
        self._process.write(lines)

    def listen(self) -> Iterator[list[bytes | str]]:
        """Yield what the replica says, at once after a silence, else what has come in a pause; text: it has gone."""
        spoke = 0.0
        while True:
            found = [self._said.get()]
            time.sleep(max(0.0, spoke + self._pause - time.monotonic()))
            spoke = time.monotonic()
            with suppress(queue.Empty):
                while True:
                    found.append(self._said.get_nowait())
            yield found


class _Link:
    """An actor as the pool sees it."""

    def __init__(self, ray: Ray, actor: Any, hear: Hear, no_room: str) -> None:
        self._ray, self._actor, self._hear, self._no_room = ray, actor, hear, no_room
        self._outbox = Outbox(self._write)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, message: BaseModel) -> None:
        """Say something to it; to one that has ended, nothing."""
        self._outbox.put(line_of(message))

    def kill(self) -> None:
        """End the actor, and its process with it."""
        self._ray.kill(self._actor)

    def end(self) -> None:
        """End it, and wait until that is heard."""
        self._outbox.end()
        self.kill()
        self._thread.join()

    def _write(self, lines: bytes) -> None:
        """Hand lines on, and wait until they are there: those that come meanwhile go together."""
        with suppress(self._ray.exceptions.RayError):  # that it has gone is heard
            if lines:
                self._ray.get(self._actor.write.remote(lines))

    def _read(self) -> None:
        """Pass on what it says until it has gone."""
        try:
            how = self._listen() if self._has_place() else self._no_room
        except self._ray.exceptions.RayError as error:  # the actor, or its node
            how = f"its actor has ended: {_first_line(error)}"
        self.kill()  # what it has is for the next one
        self._hear(Gone(how))

    def _has_place(self) -> bool:
        """Wait until the actor has a place, and say that it waits; return False if it has none."""
        here = self._actor.is_here.remote()
        if not self._ray.wait([here], timeout=_TELL_SECONDS)[0]:
            self._hear(line_of(Notice(text=f"{self._no_room}: waiting until one has")))
            if not self._ray.wait([here], timeout=_PLACE_SECONDS)[0]:
                return False
        return bool(self._ray.get(here))

    def _listen(self) -> str:
        """Pass on what it says; return how its process has ended."""
        for said in self._actor.listen.options(num_returns="streaming").remote():
            for line in self._ray.get(said):
                if not isinstance(line, bytes):
                    return str(line)
                self._hear(line)
        raise AssertionError("an actor listens until it ends")


def _connected(address: str) -> Ray:
    """Connect to a cluster, with nothing of Ray's own on the terminal.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what it will change
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("a cluster needs Ray, which is not installed", help="pip install 'flowinfer[ray]'") from None
    if ray.is_initialized():
        return ray
    cure = "`ray start --head` on one host, `ray start --address HOST:6379` on the others; run this on one of them"
    where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if where.startswith("ray://"):
        raise UsageError(f"--cluster {where}: Ray's client cannot carry replicas", help="run this on a node, with auto")
    try:
        _knock(where)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster at '{address}': {_first_line(error)}", help=cure) from None
    return ray


def _knock(address: str) -> None:
    """See whether anybody listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
        ValueError: there is no such port.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


def _looking(ray: Ray, node: str) -> Any:
    """Return a task that looks at a node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def at_node(specs: Sequence[Mapping[str, Any]]) -> Any:  # sent as it is: flowinfer may be missing there
        import os

        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from what asks for none
        try:
            from flowinfer.runs.replicas.node import look
        except ImportError as error:
            return f"flowinfer cannot be imported there: {error}"
        return look(specs)

    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(at_node).options(num_cpus=0, scheduling_strategy=place, max_retries=0)


def _node(ray: Ray, said: Mapping[str, Any], reply: Any, here: Look) -> Node:
    found: Look | None = None
    try:
        told = ray.get(reply, timeout=_LOOK_SECONDS)
        found = None if isinstance(told, str) else Look.model_validate(told)
        problems = [told] if found is None else differences(here, found)
    except ValidationError:
        problems = ["another version of flowinfer"]
    except ray.exceptions.RayError as error:
        problems = [f"it does not answer: {_first_line(error)}"]
    resources = said["Resources"]
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    memory = int(resources.get("memory", 0))
    return Node(said["NodeID"], said["NodeManagerAddress"], cores, gpus, memory, found, tuple(problems))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
