"""Copies of a plan: what they win on this machine, what a question costs their driver, and what 1,000 of them would do.

    python benchmarks/scale.py [--replicas 1,2,4] [--nodes 1,2,4] [--questions 40] [--simulated 1000000]
    python benchmarks/scale.py --flow Qwen --zoo zoo.toml --questions 600 --batch 64 --simulated 0

Rates are from runs of some questions and of three times as many, so that starts do not count; a busy machine makes them
worthless. The driver's cost is its CPU time a question where replicas answer at once by rote: both directions of the
wire, the display, the run's folder, and what is summed up at the end, but no waiting. With --nodes it is measured too
what Ray costs the driver beside that. The simulation has 1,000 replicas of several speeds, whose answers take lognormal
times, loses one replica a minute, and lets a driver of that cost take one answer after another. Beside each run stand
the least seconds that any schedule takes: one that knows all lengths before, and one that knows none.
"""

from __future__ import annotations

import gc
import heapq
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

import typed
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.merge import merge
from flowinfer.planning.placement import ready
from flowinfer.results import Record
from flowinfer.runs.answering import Answered, Task
from flowinfer.runs.live import LiveProgress
from flowinfer.runs.replicas.cluster import PAUSE_SECONDS
from flowinfer.runs.replicas.order import Kinds, Order
from flowinfer.runs.replicas.pool import ReplicaPool, Setting
from flowinfer.runs.replicas.site import LOOK_SECONDS, Hear
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
_TOKENS, _CHARACTERS = 250, 200
"""Of an answer and of a question, in the mean."""
_ENDINGS = (
    (0.0, 0.0, True, False),
    (0.0, 0.0, True, True),
    (0.0, 0.0, False, False),
    (0.0, 0.1, True, False),
    (0.0, 0.25, True, False),
    (0.0, 0.5, True, False),
    (0.0, 1.0, True, False),
    (0.05, 0.0, True, False),
    (0.05, 0.0, True, True),
)
"""Share of slow hosts; how far lengths are known, whether replicas are lost, and what others have is asked twice."""
_BOUNDS = ("seconds", "least, lengths unknown", "least of all")
"""What a run takes, and what any schedule takes at least."""
_ACTORS, _TURNS = 8, 100
_REPEATS = 5
"""Of what is measured by CPU time: the least counts, since other work on a core makes it slower and never faster."""


@dataclass(frozen=True)
class Load:
    """What copies are asked: a flow over a data set."""

    work: Path
    """Folder of its runs."""
    questions: int
    command: Sequence[str]

    def seconds(self, questions: int, *where: str) -> float:
        """Run it over so many questions; return how long that took."""
        command = [sys.executable, "-m", "flowinfer", "exec", *self.command, "--limit", str(questions), *where]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        start = time.perf_counter()
        subprocess.run(command, cwd=self.work, check=True, stdout=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - start

    def rate(self, *where: str) -> float | Missed:
        """Return questions a second, without the start."""
        few, many = (self.seconds(number, *where) for number in (self.questions, 3 * self.questions))
        return 2 * self.questions / (many - few) if many > 1.2 * few else Missed("the machine is too busy")


def cluster_rates(load: Load, counts: Sequence[int]) -> dict[int, float | Missed]:
    """Return the rate over Ray clusters of so many nodes of this machine, each with a GPU or, where none is, a core."""
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        return dict.fromkeys(counts, Missed("Ray is not installed"))
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    has_gpus = torch.cuda.is_available()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found: dict[int, float | Missed] = {}
    try:
        for before, count in zip((0, *counts), counts, strict=False):
            for number in range(before, count):
                gpu = {"num_gpus": 1, "env_vars": {"CUDA_VISIBLE_DEVICES": str(number)}} if has_gpus else {}
                cluster.add_node(num_cpus=1, **gpu)
            cluster.wait_for_nodes()
            found[count] = load.rate("--cluster", cluster.address)
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
        self.hosts = ("",) * num_replicas

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


@dataclass(frozen=True)
class World:
    """What a run meets, besides losses."""

    answer_seconds: float
    """Of one answer, in the mean."""
    driver_seconds: float = 0.0
    """That an answer takes the driver, with the next question."""
    pause: float = 0.0
    """Seconds between what a replica hands on; 0: as it comes."""
    slow: float = 0.0
    """Share of replicas, each on a host of its own, that take twice as long for everything."""
    known: float = 0.0
    """Share of the variance of answers' lengths that their questions' lengths explain: the shorter the longer, so that
    it must be learnt first."""
    asks_twice: bool = True
    """Whether replicas that have nothing to do are asked what others have."""
    loses: bool = True
    """Whether a replica is lost every minute."""


class Simulation:
    """1,000 replicas and their driver, by events: an answer is written, or has been taken by the driver.

    Each replica writes some answers at once and has questions ahead, as `ReplicaPool` gives them: up to its part of
    what is left. How long an answer is, is its question's own: whoever is asked it takes as long, but for slow hosts.
    Every minute a replica is lost, is back after a while, and what it had under way is asked again.
    """

    def __init__(self, questions: int, world: World, seed: int) -> None:
        self._dice, self._world, self._num = random.Random(seed), world, questions
        said = [self._dice.gauss(0, 1) for _ in range(questions)]
        signal, noise = _TAIL * math.sqrt(world.known), _TAIL * math.sqrt(1 - world.known)
        middle = -_TAIL * _TAIL / 2
        lengths = [math.exp(middle + signal * one + noise * self._dice.gauss(0, 1)) for one in said]
        self._seconds = [world.answer_seconds * length for length in lengths]
        self._tokens = [round(_TOKENS * length) for length in lengths]
        kinds, characters = Kinds(), [int(_CHARACTERS * math.exp(-_TAIL * one)) for one in said]
        self._kind = [kinds.of(0, size) for size in characters]
        order = sorted(range(questions), key=characters.__getitem__, reverse=True)
        self._left = Order(order, self._kind.__getitem__, (_REPLICAS, _EACH * _WINDOW))
        self._begun, self._open = list[int](), questions
        self._load = [0.0] * _REPLICAS
        self._is_done, self._num_asked = bytearray(questions), bytearray(questions)
        self._ahead: list[deque[int]] = [deque() for _ in range(_REPLICAS)]
        self._has: list[dict[int, None]] = [{} for _ in range(_REPLICAS)]
        """Under way in each, those ahead and those that the driver has not taken too."""
        self._busy = [0] * _REPLICAS
        """Answers that each writes."""
        self._life = [0] * _REPLICAS
        self._spoke = [-self._dice.random() * world.pause for _ in range(_REPLICAS)]
        self._slowness = [2.0 if self._dice.random() < world.slow else 1.0 for _ in range(_REPLICAS)]
        self._events: list[tuple[float, bool, int, int, int]] = []
        """When; whether the driver has taken it (else it is written); replica, and which of its lives; question."""
        self._is_free = 0.0
        self._lost_next = _LOST_EVERY_SECONDS if world.loses else math.inf
        self._look_next = LOOK_SECONDS
        self._down = set[int]()
        """Replicas that are lost and not back."""
        marks = (3 * questions // 4, questions // 4, min(questions // 4, _REPLICAS * _EACH))
        self._at = dict.fromkeys(marks, 0.0)
        """When so many questions were open for the first time."""

    def run(self) -> Rates:
        """Answer all questions."""
        for replica in range(_REPLICAS):
            self._fill(replica, 0.0)
        now = 0.0
        while self._open:
            now, is_taken, replica, life, question = heapq.heappop(self._events)
            if now >= self._lost_next:
                self._lose(now)
            if now >= self._look_next:
                self._look_next = now + LOOK_SECONDS
                self._left.learn()
                self._load = [sum(self._kind[one].cost for one in has) for has in self._has]
                self._ask_twice(now)
            if life != self._life[replica]:
                if life < 0:  # it is back
                    self._down.discard(replica)
                    self._fill(replica, now)
            elif is_taken:
                self._take(replica, question, now)
            else:
                self._write(replica, question, now)
        (begin, started), (end, ended), *_ = self._at.items()
        middle, end_seconds = (begin - end) / (ended - started), now - self._at[min(self._at)]
        return Rates(now, self._num / now, middle, end_seconds, self._least_seconds, self._least_blind_seconds)

    @property
    def _least_seconds(self) -> float:
        """Return what any schedule takes at least: all work shared out without a gap, the longest, the driver."""
        work = sum(self._seconds) / (_REPLICAS * _EACH)
        return max(work, max(self._seconds), self._num * self._world.driver_seconds)

    @property
    def _least_blind_seconds(self) -> float:
        """Return what any schedule takes at least that knows no length before the answer ends.

        To such a schedule questions are alike: whichever it begins as the n-th has the n-th of lengths that were drawn
        before. Then it can begin none earlier than one that begins the next as soon as anybody has ended, loses nobody,
        and has a driver that costs nothing. (An answer that is begun is written to its end.)
        """
        if self._world.known:
            return 0.0
        ends = [0.0] * (_REPLICAS * _EACH)
        last = 0.0
        for question in dict.fromkeys(self._begun):
            end = ends[0] + self._seconds[question]
            last = max(last, end)
            heapq.heapreplace(ends, end)
        return max(last, self._num * self._world.driver_seconds)

    def _take(self, replica: int, question: int, now: float) -> None:
        """Let the driver take an answer: the first counts, and the replica is asked another question."""
        if not self._is_done[question]:
            self._open -= 1
            self._left.answered(question, self._tokens[question])
            self._left.close(question)
            self._is_done[question] = 1
        self._load[replica] -= self._kind[question].cost
        if self._at.get(self._open) == 0.0:
            self._at[self._open] = now
        del self._has[replica][question]
        self._num_asked[question] -= 1
        self._fill(replica, now)

    def _write(self, replica: int, question: int, now: float) -> None:
        """Let an answer be written: the next one is begun, and the driver takes it once it is heard of and free."""
        self._busy[replica] -= 1
        if self._ahead[replica]:
            self._begin(replica, self._ahead[replica].popleft(), now)
        pause = self._world.pause
        if now > self._spoke[replica]:  # else it goes with what is handed on then
            self._spoke[replica] = max(now, self._spoke[replica] + pause) if pause else now
        self._is_free = max(self._is_free, self._spoke[replica]) + self._world.driver_seconds
        heapq.heappush(self._events, (self._is_free, True, replica, self._life[replica], question))

    def _begin(self, replica: int, question: int, now: float) -> None:
        self._busy[replica] += 1
        self._begun.append(question)
        until = now + self._seconds[question] * self._slowness[replica]
        heapq.heappush(self._events, (until, False, replica, self._life[replica], question))

    def _fill(self, replica: int, now: float) -> None:
        has = self._has[replica]
        while self._left and len(has) < _EACH * _WINDOW:
            if has and (self._load[replica] + self._left.next_cost / 2) * _REPLICAS > self._left.open_cost:
                return
            self._ask(replica, self._left.take(), now)

    def _ask(self, replica: int, question: int, now: float) -> None:
        self._has[replica][question] = None
        self._load[replica] += self._kind[question].cost
        self._num_asked[question] += 1
        if self._busy[replica] < _EACH:
            self._begin(replica, question, now)
        else:
            self._ahead[replica].append(question)

    def _ask_twice(self, now: float) -> None:
        """Ask those who have nothing to do what others have, as `ReplicaPool` does."""
        idle = [replica for replica in range(_REPLICAS) if not self._has[replica] and replica not in self._down]
        if self._left or not idle or not self._world.asks_twice:
            return
        part, free = max(1, self._open // _REPLICAS), cycle(idle)
        for question in sorted(one for has in self._has for one in has if self._num_asked[one] == 1):
            if not self._is_done[question] and len(self._has[other := next(free)]) < part:
                self._ask(other, question, now)

    def _lose(self, now: float) -> None:
        """Lose a replica; the others get what it had."""
        self._lost_next += _LOST_EVERY_SECONDS
        lost = self._dice.randrange(_REPLICAS)
        for question in self._has[lost]:
            self._num_asked[question] -= 1
            if not self._is_done[question] and not self._num_asked[question]:
                self._left.put_back([question])
        self._life[lost] += 1
        self._down.add(lost)
        self._ahead[lost].clear()
        self._has[lost].clear()
        self._load[lost], self._busy[lost] = 0.0, 0
        heapq.heappush(self._events, (now + _RESTART_SECONDS, True, lost, -1, -1))
        for replica in range(_REPLICAS):
            if replica != lost:
                self._fill(replica, now)


@dataclass(frozen=True)
class Rates:
    """How long a run takes, and what any takes at least."""

    seconds: float
    """From the first question to the last answer."""
    whole: float
    """Questions a second, from the first question to the last answer."""
    middle: float
    """Questions a second, between a quarter and three quarters of the answers."""
    end_seconds: float
    """From when no more questions are open than all replicas write at once, to the last answer."""
    least_seconds: float
    """Of any schedule."""
    least_blind_seconds: float
    """Of any schedule that knows no length before; 0 where it is known a little."""


def simulate(questions: int, cost: Cost, turn: float | Missed, seed: int) -> Report:
    """Simulate 1,000 replicas of several speeds, as processes and as actors."""
    columns = ["questions / s of a replica", "driver", "questions / s", "in the middle", *_BOUNDS]
    setup = {"driver": f"{1e6 * cost.running:.0f} µs", "lost": "one a minute"}
    future = Report(f"{_REPLICAS} replicas over {questions:,} questions, simulated", setup, columns)
    drivers = {"costs nothing": (0.0, 0.0), "processes": (cost.running, 0.0)}
    if isinstance(turn, float):
        share = min(0.99, turn / PAUSE_SECONDS)
        limit = (1 - share) / cost.whole
        future.note(f"a turn of an actor costs the driver {1e6 * turn:.0f} µs, all of them {share:.0%} of its time")
        future.note(f"at most {limit:,.0f} questions / s over Ray, what is summed up at the end counted")
        drivers["Ray"] = cost.running / (1 - share), _REPLICAS * PAUSE_SECONDS
    for own in (0.5, 2.0, 10.0, 15.0, 20.0):
        for name, (seconds, pause) in drivers.items():
            rates = Simulation(questions, World(_EACH / own, seconds, pause), seed).run()
            future.add(own, name, rates.whole, rates.middle, *bounds(rates))
    return future


def endings(questions: int, cost: Cost, seed: int) -> Report:
    """Simulate what the end of a run waits for, by leaving out one thing after the other."""
    columns = ["slow hosts", "lengths known", "losses", "asked twice", "questions / s", "end, s", *_BOUNDS]
    found = Report(f"What the end of a run of {questions:,} questions waits for, simulated", {}, columns)
    for slow, known, *others in _ENDINGS:
        loses, asks_twice = others
        world = World(_EACH / 10, cost.running, 0.0, slow, known, asks_twice, loses)
        rates = Simulation(questions, world, seed).run()
        words = ["yes" if one else "no" for one in others]
        found.add(f"{slow:.0%}", f"{known:.0%}", *words, rates.whole, rates.end_seconds, *bounds(rates))
    return found


def bounds(rates: Rates) -> tuple[float, float | str, float]:
    """Return what stands below `_BOUNDS`."""
    return rates.seconds, rates.least_blind_seconds or "", rates.least_seconds


def main() -> None:
    """Measure, simulate and print."""
    gc.set_threshold(GARBAGE_OBJECTS)  # as the command does
    parser = options(__doc__ or "")
    parser.add_argument("--replicas", type=typed.numbers, default="1,2,4")
    parser.add_argument("--nodes", type=typed.numbers, default="", help="simulated nodes of a Ray cluster, e.g. 1,2,4")
    parser.add_argument("--questions", type=typed.number, default=40)
    parser.add_argument("--flow", default=_FLOW)
    parser.add_argument("--zoo", default="lab", help="where the flow's models come from")
    parser.add_argument("--dataset", default="ceval")
    parser.add_argument("--tokens", type=typed.number, help="most tokens of an answer")
    parser.add_argument("--batch", default="auto")
    parser.add_argument("--simulated", type=int, default=1_000_000, help="questions; 0: only the rates")
    arguments = parser.parse_args()
    places = torch.cuda.device_count() or os.cpu_count() or 1
    counts = [count for count in arguments.replicas if count <= places]
    nodes = arguments.nodes
    loaded = round(os.getloadavg()[0], 1)
    setup = setup_of(
        arguments.device, arguments.dtype, cores=os.cpu_count(), load=loaded, questions=arguments.questions
    )
    of = "GPU" if torch.cuda.is_available() else "core"
    rates = Report(f"Copies on this machine, a {of} each", setup, ["copies", "questions / s", "of N x one"])
    asked = ["-e", arguments.flow, "--zoo", arguments.zoo, "--dataset", arguments.dataset, "--batch", arguments.batch]
    if arguments.tokens:
        asked += ["--set", f"max_tokens={arguments.tokens}"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        load = Load(work, arguments.questions, [*asked, "--no-cache", "--quiet"])
        found = {count: load.rate("--replicas", str(count)) for count in counts}
        one = scaled(found[counts[0]], 1 / counts[0])
        for count, rate_of in found.items():
            rates.add(f"{count} replicas", rate_of, ratio(scaled(rate_of, 1 / count), one))
        for count, rate_of in (cluster_rates(load, nodes) if nodes else {}).items():
            rates.add(f"{count} nodes", rate_of, ratio(scaled(rate_of, 1 / count), one))
        if not arguments.simulated:
            return rates.finish(arguments)
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
    future = simulate(arguments.simulated, cost, turn, arguments.seed)
    rates.finish(arguments, costs, future, endings(arguments.simulated, cost, arguments.seed))


if __name__ == "__main__":
    main()
