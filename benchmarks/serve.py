"""A flow over the server against `exec` over the same questions: requests, first tokens, gaps, and the server's share.

    python benchmarks/serve.py [--size lab|tiny|full] [--clients 1,8,32,64] [--questions 128] [--memory 1000,10000]
    python benchmarks/serve.py --size lab --device cpu --replicas 1,2 [--clients 1,16] [--questions 128]

The server and its engine run in this process, the clients in another, over real sockets: each asks, reads the stream to
its end, and asks again. "Engine": the same questions put to the same engine without a server, as many at once as there
are clients. "exec": through `execute`, on a CPU only, where a second loop takes no memory from the first. Share =
1 - the seconds of exec (on a GPU: of the engine) / the server's. Sizes: the lab's models, or the paper's shapes with
random weights (`shapes.py`). "Server's cores": processor time of the thread that listens and answers, by wall
clock. Memory: this process's resident bytes after so many requests of one token. With --replicas the server is the
command, with the lab's models, in so many copies, a core each; one is a process of its own as well, bound to a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import uvicorn

import typed
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import Device, Machine, this_machine
from flowinfer.planning.plan import Placement, Plan
from flowinfer.results import Question
from flowinfer.serving.app import application
from flowinfer.serving.desk import Desk, Limits
from flowinfer.serving.flows import Asking, ServedFlow, served
from flowinfer.serving.happenings import Ended, Happening
from flowinfer.serving.run import Server
from flowinfer.serving.service import Service
from flowinfer.spec import Flow
from reporting import Report, options, setup_of
from shapes import ShapePool

FLOW = "(Qwen | Ds | Yi)"
COLUMNS = [
    *("clients", "requests/s", "tokens/s", "first token p50 ms", "p95", "between p50 ms", "p95"),
    *("engine tokens/s", "exec tokens/s", "share", "server's cores"),
]


@dataclass(frozen=True)
class Heard:
    """What the clients report."""

    seconds: float
    tokens: int
    firsts: list[float]
    gaps: list[float]


def prompts(size: str, count: int) -> list[str]:
    """Return questions; to a shape, "SEED LENGTH" is a prompt of that length."""
    if size == "lab":
        return [f"{7 * k % 90} + {11 * k % 80} = ?" for k in range(count)]
    length = 300 if size == "full" else 16
    return [f"{k} {length}" for k in range(count)]


def flow_of(size: str, device: str, max_tokens: int) -> tuple[Flow, Machine]:
    """Return the flow, and a machine that has room for whatever is loaded already."""
    flow = check(FLOW, zoo="lab", overrides={"prompts": "plain", "max_tokens": str(max_tokens)})
    if size == "lab" and device == "cpu":
        return flow, this_machine()
    return flow, Machine((Device(device, device, 10**12, 10**12),))


def exec_seconds(plan: Plan, pool: ModelPool, texts: list[str], rows: int) -> tuple[float, int]:
    """Return how long `execute` takes, and how many tokens it writes."""
    questions = [Question(id=f"q{k}", question=text, reference="") for k, text in enumerate(texts)]
    start = time.perf_counter()
    traces = list(execute(plan, questions, batch=rows, models=pool))
    return time.perf_counter() - start, sum(trace.steps[-1].tokens for trace in traces)


async def engine_seconds(service: Service, flow: ServedFlow, texts: list[str], rows: int) -> float:
    """Return how long the server's engine takes alone."""
    left = list(reversed(texts))

    async def client() -> None:
        while left:
            ended = asyncio.Event()

            def hear(happening: Happening, ended: asyncio.Event = ended) -> None:
                if isinstance(happening, Ended):
                    ended.set()

            service.submit(Asking(flow, left.pop()), hear)
            await ended.wait()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(rows)))
    return time.perf_counter() - start


async def ask_all(port: int, clients: int, texts: list[str], max_tokens: int) -> Heard:
    """Run the clients in a process of their own."""
    arguments = json.dumps({"port": port, "clients": clients, "texts": texts, "max_tokens": max_tokens})
    command = [sys.executable, __file__, "--as-clients"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    out, _ = await process.communicate(arguments.encode())
    if process.returncode:
        raise SystemExit(f"the clients ended with {process.returncode}")
    return Heard(**json.loads(out))


def be_clients() -> None:
    """Ask, as many at once as are wanted; print what was heard."""
    wanted = json.loads(sys.stdin.read())
    left, firsts, gaps, tokens = list(reversed(wanted["texts"])), [], [], 0

    async def client() -> None:
        nonlocal tokens
        while left:
            messages = [{"role": "user", "content": left.pop()}]
            reader, writer = await asyncio.open_connection("127.0.0.1", wanted["port"])
            body = {"model": "flow", "messages": messages, "max_tokens": wanted["max_tokens"], "stream": True}
            raw = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(raw)}"
            before, is_first = time.perf_counter(), True
            writer.write(f"{head}\r\n\r\n".encode() + raw)
            async for line in reader:
                if b'"content":' in line and b'"role"' not in line:
                    now = time.perf_counter()
                    (firsts if is_first else gaps).append(now - before)
                    before, is_first = now, False
                elif b'"total_tokens"' in line:
                    usage = json.loads(line.removeprefix(b"data: "))["usage"]
                    tokens += usage["completion_tokens"] // usage["flowinfer"]["steps"][0]["calls"]
            writer.close()

    async def every() -> float:
        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(wanted["clients"])))
        return time.perf_counter() - start

    seconds = asyncio.run(every())
    print(json.dumps({"seconds": seconds, "tokens": tokens, "firsts": firsts, "gaps": gaps}))


def quantile(values: list[float], share: float) -> float | None:
    """Return a quantile in milliseconds."""
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 2) if values else None


async def measure(arguments: argparse.Namespace, report: Report, pool: ModelPool) -> None:
    """Serve, and let clients ask."""
    loop, begin = asyncio.get_running_loop(), time.perf_counter()
    flow, machine = flow_of(arguments.size, arguments.device, arguments.tokens)
    (one,), steps = served({"flow": flow}, machine)
    if arguments.size != "lab":
        placed = {name: Placement(arguments.device, arguments.dtype, "") for name in one.plan.models}
        one = ServedFlow(one.name, one.flow, replace(one.plan, placements=placed), one.uses)
        steps = [replace(step, plan=one.plan) for step in steps]
    rows = max(arguments.clients)
    service = Service([one], steps, loop.call_soon_threadsafe, batch=rows, models=pool)
    desk = Desk(service, Limits(questions=4096))
    config = uvicorn.Config(application(desk), port=0, log_config=None, access_log=False, lifespan="off")
    server = Server(config)  # signals end this process as any other
    service.start()
    await asyncio.to_thread(service.changed.wait)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    texts = prompts(arguments.size, arguments.questions)
    for clients in arguments.clients:
        if time.perf_counter() - begin > arguments.seconds:
            report.note(f"no time was left for {clients} clients and more")
            break
        own = texts[: min(len(texts), clients * arguments.each)]
        await ask_all(port, clients, texts[-clients:], min(8, arguments.tokens))  # graphs of so many rows, caches
        bare = await engine_seconds(service, one, own, clients)
        before = time.thread_time()
        heard = await ask_all(port, clients, own, arguments.tokens)
        busy = time.thread_time() - before
        alone = None
        if arguments.device == "cpu":
            alone, written = await asyncio.to_thread(exec_seconds, one.plan, pool, own, clients)
            assert heard.tokens == written, "the same questions have the same answers"
        report.add(
            clients,
            round(len(own) / heard.seconds, 2),
            round(heard.tokens / heard.seconds, 1),
            quantile(heard.firsts, 0.5),
            quantile(heard.firsts, 0.95),
            quantile(heard.gaps, 0.5),
            quantile(heard.gaps, 0.95),
            round(heard.tokens / bare, 1),
            round(heard.tokens / alone, 1) if alone else None,
            round(1 - (alone or bare) / heard.seconds, 3),
            round(busy / heard.seconds, 3),
        )
    await remember(arguments, report, port)
    server.should_exit = True
    await serving
    await asyncio.to_thread(service.close)


async def remember(arguments: argparse.Namespace, report: Report, port: int) -> None:
    """Note how much memory is taken after so many requests."""
    done = 0
    for count in arguments.memory:
        await ask_all(port, 32, prompts(arguments.size, count - done), 1)
        done = count
        report.note(f"resident after {count} requests: {resident() / 1e6:.1f} MB")


async def measure_replicas(arguments: argparse.Namespace, report: Report) -> None:
    """Let clients ask a server of each number of replicas."""
    texts = prompts("lab", arguments.questions)
    for count in arguments.replicas:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "flow.flow").write_text(FLOW, encoding="utf-8")
            command = [sys.executable, "-m", "flowinfer", "serve", "flow.flow", "--zoo", "lab", "--port", "0"]
            options = ("--replicas", str(count), "--set", "prompts=plain", "--set", f"max_tokens={arguments.tokens}")
            server = await asyncio.create_subprocess_exec(
                *command,
                *options,
                cwd=folder,
                stderr=asyncio.subprocess.PIPE,
                preexec_fn=partial(os.sched_setaffinity, 0, {0}) if count == 1 else None,
            )
            port = await _ready(server, count)
            for clients in arguments.clients:
                own = texts[: min(len(texts), clients * arguments.each)]
                await ask_all(port, clients, texts[-clients:], min(8, arguments.tokens))
                heard = await ask_all(port, clients, own, arguments.tokens)
                report.add(
                    *(count, clients, round(len(own) / heard.seconds, 2), round(heard.tokens / heard.seconds, 1)),
                    *(quantile(heard.firsts, 0.5), quantile(heard.firsts, 0.95)),
                    *(quantile(heard.gaps, 0.5), quantile(heard.gaps, 0.95)),
                )
            server.terminate()
            await server.wait()


async def _ready(server: asyncio.subprocess.Process, count: int) -> int:
    """Wait until all replicas are ready; return the port."""
    assert server.stderr is not None
    async for line in server.stderr:
        if line.startswith(b"ready: "):
            address = line.split()[1].decode()
            break
    else:
        raise SystemExit("the server has ended")
    while count > 1 and any(one["status"] != "ready" for one in httpx.get(f"{address}/ready").json()["replicas"]):
        await asyncio.sleep(0.1)
    return int(address.rpartition(":")[2])


def resident() -> int:
    """Return this process's resident bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def main() -> None:
    """Measure and print."""
    if sys.argv[1:] == ["--as-clients"]:
        be_clients()
        return
    parser = options(__doc__ or "", sizes=("full", "tiny", "lab"))
    parser.add_argument("--clients", type=typed.numbers, default=[1, 8, 32, 64])
    parser.add_argument("--questions", type=typed.number, default=256, help="most of a row of the table")
    parser.add_argument("--each", type=typed.number, default=4, help="questions of each client")
    parser.add_argument("--tokens", type=typed.number, default=32)
    parser.add_argument("--memory", type=typed.numbers, default=[])
    parser.add_argument("--replicas", type=typed.numbers, default=[])
    arguments = parser.parse_args()
    if arguments.replicas:
        setup = setup_of(arguments.device, arguments.dtype, cores=os.cpu_count(), flow=FLOW, tokens=arguments.tokens)
        copies = Report("Replicas behind one address", setup, ["replicas", *COLUMNS[:7]])
        asyncio.run(measure_replicas(arguments, copies))
        copies.finish(arguments)
        return
    pool = ModelPool() if arguments.size == "lab" else ShapePool(arguments.size, arguments.device, arguments.dtype)
    sys.setswitchinterval(0.001)
    more = {"models": arguments.size, "flow": FLOW, "tokens": arguments.tokens}
    report = Report("A flow over the server", setup_of(arguments.device, arguments.dtype, **more), COLUMNS)
    asyncio.run(measure(arguments, report, pool))
    report.finish(arguments)


if __name__ == "__main__":
    main()
