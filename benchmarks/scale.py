"""Copies of a plan: what they win on this machine, what a question costs their driver, and what 1,000 of them would do.

    python benchmarks/scale.py [--replicas 1,2,4] [--questions 40] [--simulated 1000000]

Rates are from runs of some questions and of three times as many, so that starts do not count; a busy machine makes them
worthless. The driver's cost is its CPU time a question where replicas answer at once by rote: both directions of the
wire, verdict and record, but no waiting. The simulation has 1,000 replicas of several speeds, whose answers take
log-normal times, loses one replica a minute, and lets a driver of that cost take one answer after the other.
"""

from __future__ import annotations

import heapq
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from flowinfer.engine.base import Observer
from flowinfer.engine.execute import execute
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.merge import merge
from flowinfer.planning.placement import ready
from flowinfer.results import Record
from flowinfer.runs.experiment import judged, majority
from flowinfer.runs.replicas.pool import Hear, ReplicaPool, Setting
from flowinfer.runs.replicas.wire import Ask, Ended, Ready, Start, line_of, said
from flowinfer.runs.store import Run, read_records
from flowinfer.tasks.base import question_text
from measure import Missed
from reporting import Report, options, ratio, scaled, setup_of

_FLOW = "Yi -> (Qwen | Ds)"
_REPLICAS, _LOST_EVERY_SECONDS, _RESTART_SECONDS = 1000, 60.0, 30.0
_EACH = 64
"""Questions under way in a simulated replica."""
_TAIL = 0.5
"""Sigma of the log-normal time of an answer."""


def run(work: Path, replicas: int, questions: int) -> float:
    """Run the lab's models over questions; return the seconds."""
    flow = ("exec", "-e", _FLOW, "--zoo", "lab", "--dataset", "ceval", "--limit", str(questions))
    command = [sys.executable, "-m", "flowinfer", *flow, "--no-cache", "--quiet", "--replicas", str(replicas)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


class Rote:
    """A replica that answers at once with what one has answered before."""

    def __init__(self, hear: Hear, records: Sequence[Record], shared: Sequence[str]) -> None:
        self._hear, self._shared = hear, shared
        self._records = {record.question.question: record for record in records}

    def send(self, message: BaseModel) -> None:
        """Answer."""
        if isinstance(message, Start):
            self._hear(Ready())
        elif isinstance(message, Ask):
            line_of(message)
            steps = self._records[message.question.question].trace.steps
            for shared, result in zip(self._shared, steps, strict=True):
                ended = Ended(number=message.number, shared=shared, is_fresh=True, result=result)
                self._hear(said(line_of(ended)))


class RoteSite:
    """As many of them as wanted."""

    cpu_bytes = 0

    def __init__(self, num_replicas: int, records: Sequence[Record], shared: Sequence[str]) -> None:
        self.num_replicas, self._records, self._shared = num_replicas, records, shared

    def start(self, index: int, hear: Hear) -> Rote:
        """Make one."""
        return Rote(hear, self._records, self._shared)

    def close(self) -> None:
        """Do nothing."""


def driver_seconds(records: Sequence[Record], num_replicas: int, questions: int, work: Path) -> float:
    """Return the driver's CPU seconds a question, with so many replicas."""
    plan = ready(check(_FLOW, zoo="lab"), this_machine())
    site = RoteSite(num_replicas, records, [step.id for step in merge([plan]).steps])
    asked = {
        f"q{number}": records[number % len(records)].question.model_copy(update={"id": f"q{number}"})
        for number in range(questions)
    }
    kept = Run.create(work / "driver", check(_FLOW, zoo="lab"), plan, {}, datetime.now(UTC))
    pool = ReplicaPool(site, [plan], Setting({}), Observer(), on_pause=kept.sync)
    start = time.process_time()
    for trace in execute(plan, list(asked.values()), runner=pool, vote=majority, question_text=question_text):
        kept.write(judged(asked[trace.question_id], trace))
    spent = time.process_time() - start
    kept.close()
    return spent / questions


def simulated_seconds(questions: int, answer_seconds: float, driver_seconds: float, seed: int) -> float:
    """Return how long 1,000 replicas take, by events: an answer is ready, the driver takes it and asks the next."""
    dice = random.Random(seed)
    left, lost_next, now = questions, _LOST_EVERY_SECONDS, 0.0
    ready: list[float] = []

    def ask(at: float) -> None:
        heapq.heappush(ready, at + answer_seconds * dice.lognormvariate(-_TAIL * _TAIL / 2, _TAIL))

    for _ in range(min(questions, _REPLICAS * _EACH)):
        left -= 1
        ask(0.0)
    while ready:
        now = max(now, heapq.heappop(ready)) + driver_seconds
        if now >= lost_next and len(ready) >= _EACH:  # what one replica had under way is asked again
            lost_next += _LOST_EVERY_SECONDS
            again = [ready.pop() for _ in range(_EACH)]
            heapq.heapify(ready)
            for _ in again:
                ask(now + _RESTART_SECONDS)
        if left:
            left -= 1
            ask(now)
    return now


def main() -> None:
    """Measure, simulate and print."""
    parser = options(__doc__ or "")
    parser.add_argument("--replicas", default="1,2,4")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--simulated", type=int, default=1_000_000)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.replicas.split(",") if int(count) <= (os.cpu_count() or 1)]
    setup = setup_of(
        "cpu", "float32", cores=os.cpu_count(), load=round(os.getloadavg()[0], 1), questions=arguments.questions
    )
    rates = Report("Copies on this machine, a core each", setup, ["replicas", "questions / s", "of N x one"])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found: dict[int, float | Missed] = {}
        for count in counts:
            few, many = (run(work, count, number) for number in (arguments.questions, 3 * arguments.questions))
            is_steady = many > 1.2 * few
            found[count] = 2 * arguments.questions / (many - few) if is_steady else Missed("the machine is too busy")
            rates.add(count, found[count], ratio(scaled(found[count], 1 / count), found[counts[0]]))
        records = [record for path in sorted((work / "runs").iterdir())[:1] for record in read_records(path)]
        costs = Report(
            "What a question costs the driver", setup, ["replicas", "CPU ms / question", "questions / s at most"]
        )
        for count in (1, 8, _REPLICAS):
            cost = driver_seconds(records, count, max(2000, 2 * count), work)
            costs.add(count, 1e3 * cost, 1 / cost)
    title = f"{_REPLICAS} replicas over {arguments.simulated:,} questions, simulated"
    columns = ["questions / s of a replica", "of all, if the driver cost nothing", "of all", "of those"]
    future = Report(title, {"driver": f"{1e3 * cost:.2f} ms", "lost": "one a minute"}, columns)
    for own in (0.5, 2.0, 10.0):
        free, real = (
            arguments.simulated / simulated_seconds(arguments.simulated, _EACH / own, driver, arguments.seed)
            for driver in (0.0, cost)
        )
        future.add(own, free, real, real / free)
    rates.finish(arguments, costs, future)


if __name__ == "__main__":
    main()
