"""A server whose flows write what they are asked, token by token: the whole of the server but its engine.

A question `N tokens` is answered with N of them; one that ends in `...` is answered without an end.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from flowinfer.engine.base import Alternative, HeadWish, TokenEvent
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.plan import Step, members
from flowinfer.results import HeadTimes, StepResult, Trace
from flowinfer.serving.app import application
from flowinfer.serving.desk import Desk, Limits
from flowinfer.serving.flows import Asking, served
from flowinfer.serving.happenings import Admitted, Answered, Happening, StepEnded, Wrote
from flowinfer.serving.samples import Samples
from flowinfer.serving.service import Service, Ticket

FLOWS = {"s2p": "Yi -> (Qwen | Ds)", "pi": "(Qwen | Ds)", "one": "Qwen"}
_PER_TURN = 20


class Echo(Service):
    """A service without an engine; its event loop is the server's."""

    def __init__(self) -> None:
        flows = {name: check(text, file=f"{name}.flow", zoo="lab") for name, text in FLOWS.items()}
        super().__init__(*served(flows, this_machine()), lambda tell: tell())
        self.loading.state = "ready"
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def submit(
        self, asking: Asking, hear: Callable[[Happening], None], *, wants_tokens: bool = False, num_tops: int = 0
    ) -> Ticket:
        """Begin to write."""
        self._number += 1
        name = f"r{self._number}"
        ticket = Ticket(asking.flow, asking.asked(name), hear, wants_tokens, num_tops)
        self.under_way[name] = ticket
        self._tasks[name] = asyncio.create_task(self._write(ticket, asking.question))
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Write no more."""
        ticket.is_over = True
        name = ticket.asked.question.id
        self._tasks.pop(name).cancel()
        del self.under_way[name]

    async def _write(self, ticket: Ticket, question: str) -> None:
        results = []
        for step in ticket.flow.plan.steps:
            ticket.hear(Admitted(step.id, False))
            pieces = list(_pieces(question, step))
            for index, piece in enumerate(pieces):
                ticket.hear(Wrote(step.id, _event(index, piece, step)))
                if index % _PER_TURN == 0:
                    await asyncio.sleep(0.001)
            if question.endswith("..."):
                await asyncio.Event().wait()
            ticket.hear(Wrote(step.id, _event(len(pieces), None, step)))
            results.append(_result(step, b"".join(pieces).decode(), len(pieces), question))
            ticket.hear(StepEnded(results[-1]))
        ticket.is_over = True
        del self.under_way[ticket.asked.question.id]
        ticket.hear(
            Answered(
                Trace(question_id="q", answer=results[-1].text, finish_reason="eos", seconds=0.5, steps=tuple(results))
            )
        )


def _pieces(question: str, step: Step) -> Iterator[bytes]:
    """Yield tokens: of words, and of single bytes where they are Chinese; a fused step writes one word more."""
    if found := re.fullmatch(r"(\d+) tokens", question):
        yield from (f"word{index} ".encode() for index in range(int(found[1])))
        return
    for word in re.findall(r"\s*\S+|\s+$", question):
        yield from ([bytes([one]) for one in word.encode()] if "\u4e00" <= word[0] <= "\u9fff" else [word.encode()])
    if step.reads:
        yield b" indeed"


def _event(index: int, piece: bytes | None, step: Step) -> TokenEvent:
    """Return a token in every third of which the last of several heads is outvoted."""
    heads = list(members(step.source))
    wishes = []
    for place, head in enumerate(heads):
        is_outvoted = place > 0 and place == len(heads) - 1 and index % 3 == 1
        wanted = b" other" if is_outvoted else piece
        wishes.append(HeadWish(head.node, head.model, wanted, 0.6 if is_outvoted else 0.9, 0.2 if is_outvoted else 0.9))
    probability = sum(wish.probability_of_emitted for wish in wishes) / len(wishes)
    tops = (Alternative(piece, probability), Alternative(b" other", 0.3 if index % 3 == 1 else 0.05))
    return TokenEvent(index, piece, probability, tuple(wishes), tops)


def _result(step: Step, text: str, tokens: int, question: str) -> StepResult:
    heads = list(members(step.source))
    times = tuple(
        HeadTimes(
            node=head.node,
            model=head.model,
            prompt_tokens=5,
            fed_tokens=tokens,
            forward_seconds=0.2,
            transfer_seconds=0.0,
            agreement=0.7,
        )
        for head in heads
    )
    return StepResult(
        step=step.id,
        text=text,
        passed_on=text,
        prompts={head.node: f"Answer this: {question}" for head in heads},
        tokens=tokens,
        finish_reason="eos",
        seconds=0.25,
        heads=times,
        drafted_tokens=8 if step.reads else 0,
        accepted_tokens=6 if step.reads else 0,
    )


@dataclass
class Echoing:
    """A running server."""

    address: str
    echo: Echo


@contextmanager
def echoing(samples: Samples | None = None, *, port: int = 0, keys: Sequence[str] = ()) -> Iterator[Echoing]:
    """Serve in a thread of its own."""
    started, running = threading.Event(), []

    async def serve() -> None:
        desk = Desk(Echo(), Limits(), keys)
        config = uvicorn.Config(application(desk, samples=samples), port=port, log_config=None, lifespan="off")
        config.timeout_graceful_shutdown = 1
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        number = server.servers[0].sockets[0].getsockname()[1]
        running.append((server, Echoing(f"http://127.0.0.1:{number}", desk.service)))
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait()
    server, made = running[0]
    try:
        yield made
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    with echoing(port=int(sys.argv[1])) as running_here:
        print(running_here.address, flush=True)
        threading.Event().wait()
