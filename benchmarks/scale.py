"""Copies of a plan: what they win on this machine, what a question costs their driver, and what 1,000 of them would do.

    python benchmarks/scale.py [--replicas 1,2,4] [--nodes 1,2,4] [--questions 40] [--simulated 1000000]

Rates are from runs of some questions and of three times as many, so that starts do not count; a busy machine makes them
worthless. The driver's cost is its CPU time a question where replicas answer at once by rote: both directions of the
wire, the display, the run's folder, and what is summed up at the end, but no waiting. The simulation has 1,000 replicas
of several speeds, whose answers take log-normal times, loses one replica a minute, and lets a driver of that cost take
one answer after the other.
"""

from __future__ import annotations

import gc
import heapq
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.merge import merge
from flowinfer.planning.placement import ready
from flowinfer.results import Record
from flowinfer.runs.answering import Answered, Task
from flowinfer.runs.live import LiveProgress
from flowinfer.runs.replicas.cluster import PAUSE_SECONDS
from flowinfer.runs.replicas.pool import ReplicaPool, Setting
from flowinfer.runs.replicas.site import Hear
from flowinfer.runs.replicas.wire import Ask, Done, Ready, Reply, Start, line_of, said
from flowinfer.runs.run_on import run_on
from flowinfer.runs.store import Run, read_records, record_line
from flowinfer.runs.summary import summarize
from flowinfer.startup import GARBAGE_OBJECTS
from measure import Missed
from reporting import Report, options, ratio, scaled, setup_of

_FLOW = "Yi -> (Qwen | Ds)"
_REPLICAS, _LOST_EVERY_SECONDS, _RESTART_SECONDS = 1000, 60.0, 30.0
_EACH = 64
"""Questions under way in a simulated replica."""
_TAIL = 0.5
"""Sigma of the log-normal time of an answer."""
_CALLS = 500
_REPEATS = 5
"""Of what is measured by CPU time: the least counts, since other work on a core makes it slower and never faster."""


def run(work: Path, questions: int, *where: str) -> float:
    """Run the lab's models over questions; return the seconds."""
    flow = ("exec", "-e", _FLOW, "--zoo", "lab", "--dataset", "ceval", "--limit", str(questions))
    command = [sys.executable, "-m", "flowinfer", *flow, "--no-cache", "--quiet", *where]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def rate(work: Path, questions: int, *where: str) -> float | Missed:
    """Return questions a second, without the start."""
    few, many = (run(work, number, *where) for number in (questions, 3 * questions))
    return 2 * questions / (many - few) if many > 1.2 * few else Missed("the machine is too busy")


def cluster_rates(work: Path, questions: int, counts: Sequence[int]) -> dict[int, float | Missed]:
    """Return the rate over Ray clusters of so many nodes of this machine, a core each."""
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        return dict.fromkeys(counts, Missed("Ray is not installed"))
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found: dict[int, float | Missed] = {}
    try:
        for before, count in zip((0, *counts), counts, strict=False):
            for _ in range(count - before):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            found[count] = rate(work, questions, "--cluster", cluster.address)
    finally:
        cluster.shutdown()
    return found


def call_seconds() -> float | Missed:
    """Return the CPU seconds that a call of an actor costs the driver, with some answers in the reply."""
    try:
        import ray
    except ModuleNotFoundError:
        return Missed("Ray is not installed")

    class Actor:
        def read(self) -> list[bytes]:
            return [b"x" * 3500] * 4

    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        actor = ray.remote(Actor).remote()
        ray.get([actor.read.remote() for _ in range(_CALLS)])
        start = time.process_time()
        for _ in range(_CALLS):
            ray.get(actor.read.remote())
        return (time.process_time() - start) / _CALLS
    finally:
        ray.shutdown()


class Rote:
    """A replica that answers at once with what one has answered before.

    Args:
        hear: takes what it says.
        told: by question, what it says of it but for the number by which it was asked.
    """

    def __init__(self, hear: Hear, told: Mapping[str, bytes]) -> None:
        self._hear, self._told = hear, told

    def send(self, message: BaseModel) -> None:
        """Answer."""
        if isinstance(message, Start):
            self._hear(Ready())
        elif isinstance(message, Ask):
            line_of(message)
            self._hear(said(self._told[message.question.id].replace(b"0", b"%d" % message.number, 1)))

    def kill(self) -> None:
        """Do nothing."""


class RoteSite:
    """As many of them as wanted."""

    cpu_bytes = 0

    def __init__(self, num_replicas: int, told: Mapping[str, bytes]) -> None:
        self.num_replicas, self._told = num_replicas, told

    def start(self, index: int, hear: Hear) -> Rote:
        """Make one."""
        return Rote(hear, self._told)

    def close(self) -> None:
        """Do nothing."""


def named(record: Record, name: str) -> Record:
    """Return the record as that of a question of another name."""
    question = record.question.model_copy(update={"id": name})
    return Record(question=question, trace=record.trace.model_copy(update={"question_id": name}), score=record.score)


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the driver a question."""

    running: float
    summing: float
    """Once all are answered."""

    @property
    def whole(self) -> float:
        """Return both."""
        return self.running + self.summing


def driver_cost(records: Sequence[Record], num_replicas: int, questions: int, work: Path) -> Cost:
    """Return what a question costs the driver of so many replicas."""
    flow = check(_FLOW, zoo="lab")
    plan = ready(flow, this_machine())
    asked = [named(records[number % len(records)], f"q{number}") for number in range(questions)]
    steps = tuple((step.id, True) for step in merge([plan]).steps)
    told = {
        one.question.id: line_of(Reply(Done(number=0, plan=0, steps=steps, broken={}), record_line(one)))
        for one in asked
    }
    kept = Run.create(work / "driver", flow, plan, {}, datetime.now(UTC))
    live = LiveProgress(questions, is_quiet=True)
    pool = ReplicaPool(RoteSite(num_replicas, told), [plan], Setting({}), live, on_pause=kept.sync)
    start = time.process_time()
    heard: list[Record] = []
    for event in pool.run([Task(one.question) for one in asked]):
        if isinstance(event, Answered):
            heard.append(event.record)
            live.answered(event.record)
            kept.write(event.line or record_line(event.record))
    done = time.process_time()
    found = run_on(heard, {}, "")
    summarize(flow, plan, "", heard, wall_seconds=1.0, batch="auto", run=None, run_on=found)
    end = time.process_time()
    kept.close()
    return Cost((done - start) / questions, (end - done) / questions)


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


def simulate(questions: int, cost: Cost, call: float | Missed, seed: int) -> Report:
    """Simulate 1,000 replicas of several speeds, as processes and as actors."""
    columns = ["questions / s of a replica", "of all, if the driver cost nothing", "of all", "of those", "on Ray"]
    setup = {"driver": f"{1e6 * cost.running:.0f} µs", "lost": "one a minute"}
    future = Report(f"{_REPLICAS} replicas over {questions:,} questions, simulated", setup, columns)
    calls = call if isinstance(call, Missed) else min(0.99, 2 * call / PAUSE_SECONDS)
    if isinstance(calls, float):
        future.note(f"a call of an actor costs the driver {1e6 * call:.0f} µs, all of them {calls:.0%} of its time")
    for own in (0.5, 2.0, 10.0):
        drivers = [0.0, cost.running] + ([cost.running / (1 - calls)] if isinstance(calls, float) else [])
        free, real, *ray = (questions / simulated_seconds(questions, _EACH / own, driver, seed) for driver in drivers)
        future.add(own, free, real, real / free, ray[0] if ray else calls)
    return future


def main() -> None:
    """Measure, simulate and print."""
    gc.set_threshold(GARBAGE_OBJECTS)  # as the command does
    parser = options(__doc__ or "")
    parser.add_argument("--replicas", default="1,2,4")
    parser.add_argument("--nodes", default="", help="simulated nodes of a Ray cluster, e.g. 1,2,4")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--simulated", type=int, default=1_000_000)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.replicas.split(",") if int(count) <= (os.cpu_count() or 1)]
    nodes = [int(count) for count in arguments.nodes.split(",") if count]
    setup = setup_of(
        "cpu", "float32", cores=os.cpu_count(), load=round(os.getloadavg()[0], 1), questions=arguments.questions
    )
    rates = Report("Copies on this machine, a core each", setup, ["copies", "questions / s", "of N x one"])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = {count: rate(work, arguments.questions, "--replicas", str(count)) for count in counts}
        for count, rate_of in found.items():
            rates.add(f"{count} replicas", rate_of, ratio(scaled(rate_of, 1 / count), found[counts[0]]))
        for count, rate_of in (cluster_rates(work, arguments.questions, nodes) if nodes else {}).items():
            rates.add(f"{count} nodes", rate_of, ratio(scaled(rate_of, 1 / count), found[counts[0]]))
        records = [record for path in sorted((work / "runs").iterdir())[:1] for record in read_records(path)]
        costs = Report(
            "What a question costs the driver",
            setup,
            ["replicas", "CPU µs / question", "to sum up", "questions / s at most", "while answers come"],
        )
        for count in (1, 8, _REPLICAS):
            costs_of = (driver_cost(records, count, max(2000, 2 * count), work) for _ in range(_REPEATS))
            cost = min(costs_of, key=lambda one: one.whole)
            costs.add(count, 1e6 * cost.running, 1e6 * cost.summing, 1 / cost.whole, 1 / cost.running)
    call = call_seconds() if nodes else Missed("not asked for")
    rates.finish(arguments, costs, simulate(arguments.simulated, cost, call, arguments.seed))


if __name__ == "__main__":
    main()
