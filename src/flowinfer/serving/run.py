"""A server from its start to its end: models loaded beside an open door, signals, draining."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import uvicorn

from flowinfer.engine.loops.choice import Engine
from flowinfer.errors import RunError
from flowinfer.runs.replicas.sharing import sited
from flowinfer.serving.app import application
from flowinfer.serving.desk import Desk, Limits
from flowinfer.serving.flows import ServedFlow, served
from flowinfer.serving.replicas.router import Router
from flowinfer.serving.responder import Deliver, Responder
from flowinfer.serving.samples import Samples
from flowinfer.serving.service import SWITCH_SECONDS, Service
from flowinfer.spec import Flow
from flowinfer.zoos.toy import provide

_IDLE_CONNECTION_SECONDS = 75
_TELLING_SECONDS = 0.5
"""Between two times that those who listen are told how far the models are."""
_LAST_SECONDS = 5
"""For clients to be told that there is no answer, and for connections to close."""
_MOST_FILES = 1 << 16


@dataclass(frozen=True)
class Settings:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 8000
    load: Literal["all", "lazy"] = "all"
    batch: int | Literal["auto"] = "auto"
    engine: Engine = "auto"
    limits: Limits = field(default_factory=Limits)
    drain_seconds: float = 30.0
    keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    swaps: bool = False
    replicas: int | Literal["auto"] = 1
    """Copies of the engine, each a process with devices of its own."""
    cluster: str | None = None
    """Address of a Ray cluster that they run on; None: this machine."""
    run: Path | None = None
    """A run folder that the page shows."""


def serve(
    flows: Mapping[str, Flow],
    settings: Settings,
    *,
    say: Callable[[str], None],
    on_ready: Callable[[str, str | None], None] = lambda address, name: None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Serve flows until a signal ends it.

    Args:
        flows: by the names of the models that they are to be.
        settings: how.
        say: tells the user something.
        log: see `Desk`.
        on_ready: hears the address, and the name of a model there, once questions are answered.
    Raises:
        RunError: the address cannot be taken, or a model cannot be loaded.
        UsageError: there is no room for so many replicas, or no cluster.
        DataError: the run is damaged.
    """
    samples = None if settings.run is None else Samples(settings.run)
    provide(spec for flow in flows.values() for spec in flow.models.values())
    left_out: dict[str, str] = {}
    responder = _responder(flows, settings, say, left_out)
    door = _door(settings.host, settings.port)
    sys.setswitchinterval(SWITCH_SECONDS)
    _allow_connections()

    async def main() -> None:
        service = responder(_deliverer(asyncio.get_running_loop()))
        desk = Desk(service, settings.limits, settings.keys, log, left_out)
        config = uvicorn.Config(
            application(desk, settings.cors_origins, samples),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_IDLE_CONNECTION_SECONDS,
            server_header=False,
            timeout_graceful_shutdown=_LAST_SECONDS,
        )
        await _Serving(desk, config, door, settings.drain_seconds, say).run(on_ready)

    asyncio.run(main())


def _responder(
    flows: Mapping[str, Flow], settings: Settings, say: Callable[[str], None], left_out: dict[str, str]
) -> Callable[[Deliver], Responder]:
    """Place flows on this machine, or on what each of several replicas has; return what makes their responder.

    Args:
        left_out: to which is added which flows cannot run here, and why, where others can.
    """
    has_copies = settings.replicas != 1 or settings.cluster is not None

    def leave_out(name: str, why: str) -> None:
        left_out[name] = why
        say(f"warning: '{name}' is not served: {why}")

    site, (ready_flows, steps) = sited(
        settings.replicas,
        settings.cluster,
        [spec for flow in flows.values() for spec in flow.models.values()],
        lambda machine: served(flows, machine, None if has_copies else leave_out, swaps=settings.swaps),
        lambda placed: True,  # what does not fit is refused
    )
    loads_at_once = settings.load == "all"
    if site is None:
        _tell_of_shifts(ready_flows, say)
        return partial(
            Service,
            ready_flows,
            steps,
            batch=settings.batch,
            engine=settings.engine,
            loads_at_once=loads_at_once,
            on_notice=say,
        )
    say(f"{site.num_replicas} replicas")
    return partial(
        Router,
        ready_flows,
        site,
        batch=settings.batch,
        engine=settings.engine,
        loads_at_once=loads_at_once,
        on_notice=say,
    )


def _tell_of_shifts(flows: Sequence[ServedFlow], say: Callable[[str], None]) -> None:
    """Say which flows are served in turn, and what a change of turns has to load."""
    shifts = [
        [flow for flow in flows if flow.shift == shift]
        for shift in range(1 + max((flow.shift for flow in flows), default=0))
    ]
    if len(shifts) == 1:
        return
    sizes = [
        sum({name: flow.plan.needs[name].weight_bytes or 0 for flow in own for name in flow.plan.models}.values())
        for own in shifts
    ]
    told = "; ".join(
        f"{', '.join(flow.name for flow in own)} ({size / 1e9:.1f} GB)" for own, size in zip(shifts, sizes, strict=True)
    )
    say(f"note: the models of these flows do not fit together and are swapped, which takes seconds: {told}")


def _deliverer(loop: asyncio.AbstractEventLoop) -> Deliver:
    def deliver(tell: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it all who listened
            loop.call_soon_threadsafe(tell)

    return deliver


def _door(host: str, port: int) -> socket.socket:
    """Take the address."""
    door = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        door = socket.socket(family, socket.SOCK_STREAM)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
        return door
    except OSError as error:
        if door is not None:
            door.close()
        reason = (error.strerror or str(error)).lower()
        raise RunError(f"cannot listen at {host}:{port}: {reason}", help="another --port, or --host") from error


def _allow_connections() -> None:
    """Let this process have as many connections as it may: 1,024 is a common limit that anybody can raise."""
    try:
        import resource
    except ModuleNotFoundError:  # it is no Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MOST_FILES)), hard))


class Server(uvicorn.Server):
    """Uvicorn's server without its own signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to who has started it."""
        yield


class _Serving:
    """One run of a server."""

    def __init__(
        self, desk: Desk, config: uvicorn.Config, door: socket.socket, drain_seconds: float, say: Callable[[str], None]
    ) -> None:
        self._desk, self._door, self._drain_seconds, self._say = desk, door, drain_seconds, say
        self._server = Server(config)
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    async def run(self, on_ready: Callable[[str, str | None], None]) -> None:
        """Serve until a signal comes; then let go of what is under way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with suppress(NotImplementedError, RuntimeError):  # not everywhere, and not in every thread
                loop.add_signal_handler(number, self._signalled)
        service = self._desk.service
        service.start()
        serving = asyncio.create_task(self._server.serve([self._door]))
        loaded = asyncio.create_task(asyncio.to_thread(service.changed.wait))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            waited_for = {serving, loaded, stopped}
            while not (await asyncio.wait(waited_for, timeout=_TELLING_SECONDS, return_when=asyncio.FIRST_COMPLETED))[
                0
            ]:
                self._desk.tell_loading()  # bytes are read
            if loaded.done() and service.loading.problem is None:
                host, port = self._door.getsockname()[:2]
                on_ready(
                    f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
                    next(iter(service.flows), None),
                )
                await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            self._desk.events.close()
            service.changed.set()
            await self._close()
            await self._answer_the_rest()
            self._server.should_exit = True
            with suppress(asyncio.CancelledError):
                await serving
            stopped.cancel()
        if service.loading.problem is not None:
            raise service.loading.problem

    def _signalled(self) -> None:
        """Stop at the first signal, at once at the second."""
        (self._now if self._stop.is_set() else self._stop).set()

    async def _drain(self) -> None:
        """Take nothing more in, and let what is under way end, for a while."""
        self._desk.is_draining = True
        empty = asyncio.create_task(self._desk.emptied())
        now = asyncio.create_task(self._now.wait())
        if not empty.done() and self._stop.is_set() and self._desk.service.under_way:
            self._say(f"stopping: what is under way has {self._drain_seconds:g} s; a second signal ends it at once")
        await asyncio.wait({empty, now}, timeout=self._drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (empty, now):
            task.cancel()

    async def _close(self) -> None:
        """Close the service; where it waits for a model that is being loaded, a second signal ends all as it is."""
        closed = asyncio.create_task(asyncio.to_thread(self._desk.service.close))
        now = asyncio.create_task(self._now.wait())
        await asyncio.wait({closed, now}, return_when=asyncio.FIRST_COMPLETED)
        if not (await asyncio.wait({closed}, timeout=_LAST_SECONDS))[0]:
            os._exit(0)  # a thread that reads weights hears nothing
        now.cancel()
        await closed

    async def _answer_the_rest(self) -> None:
        """Let those who still wait be told that there is no answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._desk.emptied()
