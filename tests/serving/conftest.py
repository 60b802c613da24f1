"""A server of the lab zoo in the suite's own process, its engine's thread and its event loop kept for a module."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from starlette.types import ASGIApp

from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import Machine, this_machine
from flowinfer.serving.app import application
from flowinfer.serving.desk import Desk, Limits
from flowinfer.serving.flows import served
from flowinfer.serving.responder import Responder
from flowinfer.serving.service import Service
from tests.serving.asgi import Reply, ask

FLOWS = {
    "one": "Qwen",
    "pi": "(Qwen | Ds | Yi)",
    "s2p": "Yi -> (Qwen | Ds)",
    "vote": "(Qwen & Ds & Yi)",
    "drawn": "Ds[temperature=0.9, top_p=0.9, seed=3] -> Yi",
    "shown": 'Qwen[prompt="{system}|{history}|{question}"]',
}
SETS = {"max_tokens": "24", "prompts": "plain"}
Result = TypeVar("Result")


@dataclass
class Served:
    """A server in this process."""

    app: ASGIApp
    desk: Desk
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def ask(self, method: str, path: str, body: Any = b"", **options: Any) -> Reply:
        """Send a request and read the whole reply."""
        return self.run(ask(self.app, method, path, body, **options))

    def chat(self, model: str, question: str, **body: Any) -> Reply:
        """Ask one question as a chat."""
        messages = [{"role": "user", "content": question}]
        return self.ask("POST", "/v1/chat/completions", {"model": model, "messages": messages, **body})

    def complete(self, model: str, prompt: Any, **body: Any) -> Reply:
        """Ask one question as a completion."""
        return self.ask("POST", "/v1/completions", {"model": model, "prompt": prompt, **body})

    async def is_idle(self) -> None:
        """Wait until nothing is under way."""
        while self.desk.service.under_way or self.desk.service.num_waiting:
            await asyncio.sleep(0.001)


Serve = Callable[..., Served]


@pytest.fixture(scope="package")
def pool() -> Iterator[ModelPool]:
    """The lab's models, loaded once."""
    pool = ModelPool()
    yield pool
    pool.close()


@pytest.fixture(scope="package")
def serve(pool: ModelPool) -> Iterator[Serve]:
    """Start servers over the loaded models; all are stopped in the end."""
    started: list[Served] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def start(
        flows: dict[str, str] | None = None,
        *,
        limits: Limits | None = None,
        keys: Sequence[str] = (),
        cors_origins: Sequence[str] = (),
        models: ModelPool | None = None,
        zoo: Any = "lab",
        sets: Mapping[str, str] = SETS,
        machine: Machine | None = None,
        swaps: bool = False,
        log: Callable[[str], None] | None = None,
        waits: bool = True,
        responder: Callable[..., Responder] | None = None,
        **options: Any,
    ) -> Served:
        checked = {
            name: check(text, file=f"{name}.flow", zoo=zoo, overrides=dict(sets))
            for name, text in (flows or FLOWS).items()
        }
        ready, steps = served(checked, machine or this_machine(), swaps=swaps)
        options = {"models": models or pool, **options}

        async def make() -> Desk:
            deliver = loop.call_soon_threadsafe
            service = responder(ready, deliver) if responder else Service(ready, steps, deliver, **options)
            return Desk(service, limits or Limits(), keys, log)

        desk = asyncio.run_coroutine_threadsafe(make(), loop).result()
        desk.service.start()
        if waits:
            desk.service.changed.wait()
        started.append(Served(application(desk, cors_origins), desk, loop))
        return started[-1]

    yield start
    for one in started:
        one.desk.service.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="package")
def server(serve: Serve) -> Served:
    """A server of all flows."""
    return serve()
