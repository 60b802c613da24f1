"""Clients that come, stop, break off, dawdle and send rubbish, for minutes: does the server grow, lose or forget?

    python benchmarks/soak.py [--minutes 15] [--clients 24] [--flows s2p,pi,vote] [--seed 5]

`flowinfer serve` runs in a process of its own on the lab's models, the clients in this one, over real sockets. Every
whole answer is compared with what the server said to the same question before any other client came. Told in the end,
with exit 1 where one is not as it should be: answers that differ, requests that got neither answer nor error, statuses
that nobody should have seen, what is still under way when all have gone, open files and threads that are left, and
growth: the median of resident memory over the last third of the time against that over the third before. (Memory of
tensors on a CPU comes and goes; the first third is the time in which it finds its size.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import typed

KINDS = {"whole": 8, "stream": 6, "list": 2, "leave": 5, "half": 2, "rubbish": 4, "dawdle": 1, "idle": 1, "look": 1}
"""What clients do, and how often."""
MOST_GROWTH = 0.05
"""Of resident memory from the second third of the time to the last, in the median."""
SAMPLES = 120
"""Looks at the server's memory."""
QUESTIONS = [f"{7 * k % 90} + {11 * k % 80} = ?" for k in range(16)]
EXPECTED = {"200", "400", "404", "413", "429"}
PATIENCE_SECONDS = 120.0
"""Longest that a client waits for the next bytes before its request counts as stuck."""


@dataclass(frozen=True)
class State:
    """What the server holds."""

    megabytes: float
    files: int
    threads: int

    @classmethod
    def of(cls, process_id: int) -> State:
        """Read it from the system."""
        folder = Path(f"/proc/{process_id}")
        pages = int((folder / "statm").read_text().split()[1])
        return cls(pages * 4096 / 1e6, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))

    def __str__(self) -> str:
        return f"{self.megabytes:.1f} MB resident, {self.files} files, {self.threads} threads"


@dataclass
class Tally:
    """What was seen."""

    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def request(path: str, body: bytes, method: str = "POST") -> bytes:
    """Return a request's bytes."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def asking(flow: str, question: str, **more: Any) -> dict[str, Any]:
    """Return a body that has one answer."""
    return {"model": flow, "messages": [{"role": "user", "content": question}], "max_tokens": 24, **more}


class Clients:
    """All clients of one server."""

    def __init__(self, port: int, flows: list[str], rng: random.Random) -> None:
        self._port, self._flows, self._rng = port, flows, rng
        self.tally = Tally()
        self._known: dict[tuple[str, str], str] = {}

    async def learn(self) -> None:
        """Ask every question once, with nobody beside."""
        for flow in self._flows:
            for question in QUESTIONS:
                _, data = await self._whole(
                    request("/v1/chat/completions", json.dumps(asking(flow, question)).encode())
                )
                self._known[flow, question] = data["choices"][0]["message"]["content"]

    async def come(self, until: float) -> None:
        """Be one client after another."""
        does: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            kind: getattr(self, f"_be_{kind}") for kind in KINDS
        }
        while time.monotonic() < until:
            (kind,) = self._rng.choices(list(KINDS), list(KINDS.values()))
            try:
                await does[kind]()
            except TimeoutError:
                self.tally.problems.append(f"stuck: {kind}")
            except (OSError, ValueError, KeyError, AssertionError) as error:
                self.tally.problems.append(f"{kind}: {type(error).__name__}: {error}"[:200])
            self.tally.done[kind] += 1
            await asyncio.sleep(self._rng.random() * 0.2)

    async def wait_until_idle(self) -> str:
        """Return what the server still does when it has had time to end."""
        for _ in range(100):
            _, metrics = await self._read(request("/metrics", b"", "GET"))
            lines = metrics.decode().splitlines()
            left = [line for line in lines if line.startswith(("flowinfer_questions_", "flowinfer_rows{"))]
            left = [line for line in left if not line.endswith(" 0.0")]
            if not left:
                return ""
            await asyncio.sleep(0.1)
        return "; ".join(left)

    async def _read(self, raw: bytes) -> tuple[str, bytes]:
        """Send a request; return status and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(raw)
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await reader.read()
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = b"".join(_chunks(body))
        return head.split(b" ", 2)[1].decode(), body

    async def _whole(self, raw: bytes) -> tuple[str, Any]:
        status, body = await self._read(raw)
        self.tally.statuses[status] += 1
        return status, json.loads(body)

    def _check(self, flow: str, question: str, text: str) -> None:
        if text != self._known[flow, question]:
            self.tally.problems.append(f"another text of {flow} for '{question}': {text!r}")

    def _one(self) -> tuple[str, str]:
        return self._rng.choice(self._flows), self._rng.choice(QUESTIONS)

    async def _be_whole(self) -> None:
        flow, question = self._one()
        logprobs = {"logprobs": True, "top_logprobs": 3} if self._rng.random() < 0.3 else {}
        body = json.dumps(asking(flow, question, **logprobs)).encode()
        status, data = await self._whole(request("/v1/chat/completions", body))
        if status == "200":
            self._check(flow, question, data["choices"][0]["message"]["content"])

    async def _be_stream(self) -> None:
        flow, question = self._one()
        body = json.dumps(asking(flow, question, stream=True)).encode()
        status, raw = await self._read(request("/v1/chat/completions", body))
        self.tally.statuses[status] += 1
        if status != "200":
            return
        lines = [line.removeprefix("data: ") for line in raw.decode().split("\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]", lines[-1]
        choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
        self._check(flow, question, "".join(choice["delta"].get("content") or "" for choice in choices))

    async def _be_list(self) -> None:
        flow, prompts = self._rng.choice(self._flows), self._rng.sample(QUESTIONS, 3)
        body = json.dumps({"model": flow, "prompt": prompts, "max_tokens": 24}).encode()
        status, data = await self._whole(request("/v1/completions", body))
        if status == "200":
            for prompt, choice in zip(prompts, data["choices"], strict=True):
                self._check(flow, prompt, choice["text"])

    async def _be_leave(self) -> None:
        """Break off in mid-answer, streamed or not, with options that make it long."""
        body = asking(*self._one(), stream=self._rng.random() < 0.5, temperature=2) | {"max_tokens": 600}
        await self._break_off(request("/v1/chat/completions", json.dumps(body).encode()), self._rng.random())

    async def _be_half(self) -> None:
        raw = request("/v1/chat/completions", json.dumps(asking(*self._one())).encode())
        await self._break_off(raw[: self._rng.randrange(1, len(raw))], self._rng.random())

    async def _be_idle(self) -> None:
        await self._break_off(b"", 5 * self._rng.random())

    async def _be_dawdle(self) -> None:
        """Read nothing of a stream for a while."""
        body = asking(*self._one(), stream=True, temperature=2) | {"max_tokens": 900}
        await self._break_off(request("/v1/chat/completions", json.dumps(body).encode()), 5 * self._rng.random())

    async def _break_off(self, raw: bytes, seconds: float) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(raw)
        await asyncio.sleep(seconds)
        writer.transport.abort()

    async def _be_rubbish(self) -> None:
        """Send what is no request for an answer: it must be told so."""
        flow, question = self._one()
        wrong = self._rng.choice(
            [
                json.dumps(asking(flow, question)).encode()[: self._rng.randrange(40)],
                self._rng.randbytes(60),
                json.dumps(asking("nobody", question)).encode(),
                json.dumps(asking(flow, question, temperature=-1)).encode(),
                json.dumps(asking(flow, question, n=3)).encode(),
                json.dumps(asking(flow, "seven " * 3000)).encode(),
                b"[" * 10_000,
            ]
        )
        status, data = await self._whole(request("/v1/chat/completions", wrong))
        assert status != "200", "rubbish was answered"
        assert data["error"]["message"], data

    async def _be_look(self) -> None:
        for path in ("/v1/models", "/ready", "/metrics", "/openapi.json", "/"):
            status, _ = await self._read(request(path, b"", "GET"))
            self.tally.statuses[status] += 1


def _chunks(body: bytes) -> list[bytes]:
    """Return the chunks of a body."""
    found = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        found.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return found


async def soak(process: subprocess.Popen[str], port: int, arguments: argparse.Namespace) -> list[str]:
    """Let clients come; return what was wrong."""
    clients = Clients(port, arguments.flows.split(","), random.Random(arguments.seed))
    await clients.learn()
    begin = time.monotonic()
    end = begin + 60 * arguments.minutes
    first = State.of(process.pid)
    print(f"0 min: {first}", flush=True)
    crowd = asyncio.gather(*(clients.come(end) for _ in range(arguments.clients)))
    seen: list[float] = []
    for number in range(SAMPLES):
        await asyncio.sleep(60 * arguments.minutes / SAMPLES)
        seen.append(State.of(process.pid).megabytes)
        if number % (SAMPLES // 12) == SAMPLES // 12 - 1:
            minutes = (time.monotonic() - begin) / 60
            print(f"{minutes:.1f} min: {State.of(process.pid)}, {clients.tally.done.total()} clients", flush=True)
    await crowd
    left = await clients.wait_until_idle()
    last = State.of(process.pid)
    middle, late = (median(seen[len(seen) * k // 3 : len(seen) * (k + 1) // 3]) for k in (1, 2))
    print(f"end: {last}, {clients.tally.done.total()} clients; medians: {middle:.1f} MB, then {late:.1f} MB")
    print("clients:", dict(clients.tally.done))
    print("statuses:", dict(clients.tally.statuses))
    problems = clients.tally.problems
    problems += [f"status {status}" for status in clients.tally.statuses if status not in EXPECTED]
    problems += [f"still under way: {left}"] if left else []
    if late > middle * (1 + MOST_GROWTH):
        problems.append(f"memory grew from {middle:.1f} to {late:.1f} MB")
    if last.files > first.files + 2 or last.threads > first.threads + 2:
        problems.append(f"it holds more than before: {first}; {last}")
    return problems


def main() -> None:
    """Serve, soak, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--clients", type=typed.number, default=24)
    parser.add_argument("--flows", default="s2p,pi,vote")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "flowinfer", "serve", *arguments.flows.split(","), "--zoo", "lab", "--port", "0"]
    process = subprocess.Popen([*command, "--set", "prompts=plain"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    address = next(line.split()[1] for line in process.stderr if line.startswith("ready: "))
    try:
        problems = asyncio.run(soak(process, int(address.rpartition(":")[2]), arguments))
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    code = process.wait()
    problems += [f"exit {code}"] if code else []
    problems += [f"it said: {line}" for line in said.splitlines() if "Traceback" in line or "Error" in line]
    print("\n".join(["problems:", *problems[:50]]) if problems else "nothing grew, no answer was lost or changed")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
