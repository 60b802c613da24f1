"""Copies of a plan: what they win on this machine, what a question costs their driver, and what 1,000 of them would do.

    python benchmarks/scale.py [--replicas 1,2,4] [--nodes 1,2,4] [--questions 40] [--simulated 1000000]

Rates are from runs of some questions and of three times as many, so that starts do not count; a busy machine makes them
worthless. The driver's cost is its CPU time a question where replicas answer at once by rote: both directions of the
wire, the display, the run's folder, and what is summed up at the end, but no waiting. With --nodes it is measured too
what Ray costs the driver beside that. The simulation has 1,000 replicas of several speeds, whose answers take lognormal
times, loses one replica a minute, and lets a driver of that cost take one answer after another.
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
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from flowinfer.runs.replicas.wire import Ask, Done, Ready, Reply, Start, line_of
from flowinfer.runs.run_on import run_on
from flowinfer.runs.store import Run, read_records, record_line
from flowinfer.runs.summary import counting, summarize
from flowinfer.startup import GARBAGE_OBJECTS
from measure import Missed
from reporting import Report, options, ratio, scaled, setup_of

_FLOW = "Yi -> (Qwen | Ds)"
_REPLICAS, _LOST_EVERY_SECONDS, _RESTART_SECONDS = 1000, 60.0, 30.0
_EACH, _WINDOW = 64, 4
"""Answers that a simulated replica writes at once, and questions that it has under way, times that."""
_TAIL = 0.5
"""Sigma of the log-normal time of an answer."""
_ACTORS, _TURNS = 8, 100
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


def turn_seconds() -> float | Missed:
    """Return the CPU seconds that a turn of an actor costs the driver: it hands on answers, and is asked more."""
    try:
        import ray
    except ModuleNotFoundError:
        return Missed("Ray is not installed")

    class Actor:
        def listen(self, pause: float) -> Iterator[list[bytes]]:
            for _ in range(_TURNS):
                time.sleep(pause)
                yield [b"x" * 3500] * 4

        def write(self, lines: bytes) -> None:
            pass

    def turns(actor: Any) -> None:
        for said in actor.listen.options(num_returns="streaming").remote(_ACTORS * PAUSE_SECONDS):
            ray.get(said)
            ray.get(actor.write.remote(b"x" * 3000))

    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        actors = [ray.remote(Actor).options(num_cpus=0, max_concurrency=4).remote() for _ in range(_ACTORS)]
        ray.get([actor.write.remote(b"") for actor in actors])
        threads = [threading.Thread(target=turns, args=(actor,)) for actor in actors]
        start = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.process_time() - start) / (_ACTORS * _TURNS)
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
            self._hear(line_of(Ready()))
        elif isinstance(message, Ask):
            line_of(message)
            self._hear(self._told[message.question.id].replace(b"0", b"%d" % message.number, 1))

    def kill(self) -> None:
        """Do nothing."""


class RoteSite:
    """As many of them as wanted."""

    cpu_bytes = 0

    def __init__(self, num_replicas: int, told: Mapping[str, bytes]) -> None:
        self.num_replicas, self._told = num_replicas, told

    def begin(self, index: int, program: str, hear: Hear) -> Rote:
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
        one.question.id: line_of(Reply(Done(number=0, plan=0, steps=steps, broken={}), record_line(one), one))
        for one in asked
    }
    kept = Run.create(work / "driver", flow, plan, {}, datetime.now(UTC))
    live = LiveProgress(questions, is_quiet=True)
    pool = ReplicaPool(RoteSite(num_replicas, told), [plan], Setting({}), live, on_pause=kept.sync)
    start = time.process_time()
    sums, answers = counting(plan), {}
    for event in pool.run([Task(one.question) for one in asked]):
        if isinstance(event, Answered):
            sums.add(event.record)
            answers[event.record.question.id] = event.record.trace.answer
            live.answered(event.record)
            kept.write(event.line or record_line(event.record))
    done = time.process_time()
    found = run_on(answers, {}, "")
    summarize(flow, plan, "", sums, wall_seconds=1.0, batch="auto", run=None, run_on=found)
    end = time.process_time()
    kept.close()
    return Cost((done - start) / questions, (end - done) / questions)


class Simulation:
    """1,000 replicas and their driver, by events: an answer is written, or has been taken by the driver.

    Each replica writes some answers at once and has questions ahead, as `ReplicaPool` gives them: up to its part of
    what is left. Every minute one is lost, is back after a while, and what it had under way is asked again.

    Args:
        answer_seconds: of one answer, in the mean.
        driver_seconds: that an answer takes the driver, with the next question.
        pause: seconds between what a replica hands on; 0: as it comes.
    """

    def __init__(self, questions: int, answer_seconds: float, driver_seconds: float, pause: float, seed: int) -> None:
        self._dice, self._mean = random.Random(seed), answer_seconds
        self._driver_seconds, self._pause = driver_seconds, pause
        self._left = self._open = questions
        self._questions = questions
        self._ahead, self._busy, self._under_way = [0] * _REPLICAS, [0] * _REPLICAS, [0] * _REPLICAS
        self._life, self._spoke = [0] * _REPLICAS, [-dice for dice in self._phases()]
        self._events: list[tuple[float, bool, int, int]] = []
        """When; whether the driver has taken it (else it is written); replica, and which of its lives."""
        self._is_free, self._lost_next = 0.0, _LOST_EVERY_SECONDS
        self._middle: list[float] = []

    def _phases(self) -> list[float]:
        return [self._dice.random() * self._pause for _ in range(_REPLICAS)]

    def run(self) -> Rates:
        """Answer all questions."""
        for replica in range(_REPLICAS):
            self._fill(replica, 0.0)
        now = 0.0
        while self._open:
            now, is_taken, replica, life = heapq.heappop(self._events)
            if now >= self._lost_next:
                self._lose(now)
            if life != self._life[replica]:
                if life < 0:  # it is back
                    self._fill(replica, now)
            elif is_taken:
                self._open -= 1
                self._under_way[replica] -= 1
                if self._open in (3 * self._questions // 4, self._questions // 4):
                    self._middle.append(now)
                self._fill(replica, now)
            else:
                self._write(replica, now)
        begin, end = self._middle
        return Rates(self._questions / now, (3 * self._questions // 4 - self._questions // 4) / (end - begin))

    def _write(self, replica: int, now: float) -> None:
        """Let an answer be written: the next one is begun, and the driver takes it once it is heard of and free."""
        self._busy[replica] -= 1
        if self._ahead[replica]:
            self._ahead[replica] -= 1
            self._begin(replica, now)
        heard = now
        if self._pause and now > self._spoke[replica]:  # else it goes with what is handed on then
            self._spoke[replica] = max(now, self._spoke[replica] + self._pause)
        heard = max(now, self._spoke[replica]) if self._pause else now
        self._is_free = max(self._is_free, heard) + self._driver_seconds
        heapq.heappush(self._events, (self._is_free, True, replica, self._life[replica]))

    def _begin(self, replica: int, now: float) -> None:
        self._busy[replica] += 1
        seconds = self._mean * self._dice.lognormvariate(-_TAIL * _TAIL / 2, _TAIL)
        heapq.heappush(self._events, (now + seconds, False, replica, self._life[replica]))

    def _fill(self, replica: int, now: float) -> None:
        while self._left and self._under_way[replica] < _EACH * _WINDOW:
            if self._under_way[replica] and (self._under_way[replica] + 0.5) * _REPLICAS > self._open:
                return
            self._left -= 1
            self._under_way[replica] += 1
            if self._busy[replica] < _EACH:
                self._begin(replica, now)
            else:
                self._ahead[replica] += 1

    def _lose(self, now: float) -> None:
        """Lose a replica; the others get what it had."""
        self._lost_next += _LOST_EVERY_SECONDS
        lost = self._dice.randrange(_REPLICAS)
        self._left += self._under_way[lost]
        self._life[lost] += 1
        self._ahead[lost] = self._busy[lost] = self._under_way[lost] = 0
        heapq.heappush(self._events, (now + _RESTART_SECONDS, True, lost, -1))
        for replica in range(_REPLICAS):
            if replica != lost:
                self._fill(replica, now)


@dataclass(frozen=True)
class Rates:
    """Questions a second."""

    whole: float
    """From the first question to the last answer."""
    middle: float
    """Between a quarter and three quarters of the answers."""


def simulate(questions: int, cost: Cost, turn: float | Missed, seed: int) -> Report:
    """Simulate 1,000 replicas of several speeds, as processes and as actors."""
    columns = ["questions / s of a replica", "driver", "questions / s", "in the middle"]
    setup = {"driver": f"{1e6 * cost.running:.0f} µs", "lost": "one a minute"}
    future = Report(f"{_REPLICAS} replicas over {questions:,} questions, simulated", setup, columns)
    drivers = {"costs nothing": (0.0, 0.0), "processes": (cost.running, 0.0)}
    if isinstance(turn, float):
        share = min(0.99, turn / PAUSE_SECONDS)
        limit = (1 - share) / cost.whole
        future.note(f"a turn of an actor costs the driver {1e6 * turn:.0f} µs, all of them {share:.0%} of its time")
        future.note(f"at most {limit:,.0f} questions / s over Ray, what is summed up at the end counted")
        drivers["Ray"] = cost.running / (1 - share), _REPLICAS * PAUSE_SECONDS
    for own in (0.5, 2.0, 10.0):
        for name, (seconds, pause) in drivers.items():
            rates = Simulation(questions, _EACH / own, seconds, pause, seed).run()
            future.add(own, name, rates.whole, rates.middle)
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
    turn = turn_seconds() if nodes else Missed("not asked for")
    rates.finish(arguments, costs, simulate(arguments.simulated, cost, turn, arguments.seed))


if __name__ == "__main__":
    main()
