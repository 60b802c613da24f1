"""What a head on another host costs: tokens per second by round trip, with and without drafts, against heads here.

    python benchmarks/remote.py [--delays 0,5,20,50] [--drafts off,auto,Ds] [--batch 1,16] [--questions 16]

A group of two of the lab's models; one of them is a head of another process on this machine (`flowinfer head`), behind
a relay that holds every byte back for half a round trip each way. Drafts are those of `speculate`; Ds is the head that
lies here. Messages are round trips; bytes are those of a token, there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typed
from flowinfer.engine.base import Observer
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.results import Question
from reporting import Report, setup_of

COLUMNS = ["round trip ms", "batch", "drafts", "tokens", "seconds", "tokens/s", "/ here", "messages", "bytes/token"]


class Relay:
    """Passes bytes on between a port of its own and another, late; runs in a thread.

    Args:
        port: of the head.
    """

    def __init__(self, port: int) -> None:
        self._port, self.seconds = port, 0.0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._server = self._loop.run_until_complete(asyncio.start_server(self._attend, "127.0.0.1", 0))
            self.port = self._server.sockets[0].getsockname()[1]
            started.set()
            self._loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        started.wait()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1 << 20):
            self._loop.call_later(self.seconds, writer.write, part)
        self._loop.call_later(self.seconds, writer.close)


@contextmanager
def head(name: str) -> Iterator[int]:
    """Yield the port of a head in a process of its own."""
    command = [sys.executable, "-m", "flowinfer", "head", name, "--zoo", "lab", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.match(r"ready: .*:(\d+)", line):
                break
        else:
            raise SystemExit("the head did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield int(found[1])
        finally:
            process.terminate()


def measured(text: str, arguments: argparse.Namespace, batch: int, drafts: str, pool: ModelPool) -> tuple[Any, ...]:
    """Return the answers, tokens and seconds of a flow over the questions, its models loaded before."""
    options = {"max_tokens": str(arguments.tokens), "speculate": drafts, "prompts": "plain"}
    plan = ready(check(text, zoo="lab", overrides=options), this_machine())
    for name in plan.models:
        pool.get(plan, name, Observer())
    questions = [
        Question(id=f"q{k}", question=f"{7 * k % 90} + {11 * k % 80} = ?", reference="")
        for k in range(arguments.questions)
    ]
    list(execute(plan, questions[:1], batch=1, models=pool))
    start = time.perf_counter()
    traces = list(execute(plan, questions, batch=batch, models=pool))
    seconds = time.perf_counter() - start
    answers = {trace.question_id: trace.answer for trace in traces}
    return answers, sum(trace.steps[-1].tokens for trace in traces), seconds, plan


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--delays", type=partial(typed.numbers, least=0), default=[0, 5, 20, 50], help="round trips in ms"
    )
    parser.add_argument("--drafts", default="off,auto,Ds", help="what guesses tokens ahead")
    parser.add_argument("--questions", type=typed.number, default=16)
    parser.add_argument("--batch", type=typed.numbers, default=[1, 16])
    parser.add_argument("--tokens", type=typed.number, default=48)
    parser.add_argument("--json", type=Path, help="write the table as JSON too")
    parser.add_argument("--markdown", type=Path, help="write the table as Markdown too")
    arguments = parser.parse_args()
    setup = setup_of("cpu", "float32", flow="(Qwen | Ds)", elsewhere="Qwen", questions=arguments.questions)
    report = Report("Heads on other hosts", setup, COLUMNS)
    with head("Qwen") as port:
        relay = Relay(port)
        far = f'model Qwen = "qwen" {{ device="127.0.0.1:{relay.port}" }}\n(Qwen | Ds)'
        for batch in arguments.batch:
            for drafts in arguments.drafts.split(","):
                pool = ModelPool()
                answers, tokens, here, _ = measured("(Qwen | Ds)", arguments, batch, drafts, pool)
                report.add("here", batch, drafts, tokens, round(here, 2), round(tokens / here, 1), 1.0, None, None)
                pool.close()
                for delay in arguments.delays:
                    pool, relay.seconds = ModelPool(), delay / 2000
                    found, tokens, seconds, plan = measured(far, arguments, batch, drafts, pool)
                    model: Any = pool.get(plan, "Qwen", Observer())
                    moved, asked = model.traffic.sent + model.traffic.received, model.traffic.messages
                    speed = round(tokens / seconds, 1)
                    report.add(
                        delay, batch, drafts, tokens, round(seconds, 2), speed, round(here / seconds, 3), asked,
                        round(moved / tokens),
                    )  # fmt: skip
                    if found != answers:
                        differing = sum(found[key] != answers[key] for key in answers)
                        report.note(f"{differing} of {len(answers)} answers differ, batch {batch}, drafts {drafts}")
                    pool.close()
    report.note("messages and bytes include the vocabulary, once, and what was asked before the time was taken")
    report.finish(arguments)


if __name__ == "__main__":
    main()
