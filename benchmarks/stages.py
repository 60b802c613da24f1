"""Stages side by side: serial and parallel plans over a data set, on as many GPUs as there are, beside their limits.

    python benchmarks/stages.py [--questions 320] [--rows 64] [--devices cuda:0,cuda:1] [--plans "Qwen -> Yi"]

Prompts of 150-450 ids and answers of 32-384 tokens for each step, from fixed seeds; no answer ends by itself. The
placement is that of `flowinfer plan`, and so are the rows that a step decodes at once, unless they are given. First all
steps run side by side, as `exec` does; then the same rows go through each step alone, with nothing beside it.

Roofline of a step on a device: prefill FLOPs / measured matrix rate + decoding at the larger of memory floor and FLOPs,
in tokens / rows steps, or as many as the longest answer has tokens, summed over its heads there; of a plan: the sum
over its steps on the device that has most to do. "Alone" is what the busiest device would take if each of its steps ran
as fast as alone: alone / this = 1 where nothing is lost, more where steps fill one another's gaps. The matrix rate is
that of a burst of some milliseconds; a note says what the roofline is with the rate that the device holds for a second.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

import typed
from dataset import Load, make_load, roofline
from flowinfer.engine.base import Completion, NoCache, Observer, Row, decode
from flowinfer.engine.budget import Budget, auto_batch, budgets
from flowinfer.engine.caching import Caching
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.decoding import DecodingLoop
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.packing import packed_decoder
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.models import ModelPool
from flowinfer.engine.scheduler import Scheduler
from flowinfer.engine.work import Asked, trace_of
from flowinfer.machine import Device, Machine
from flowinfer.planning.merge import merge
from flowinfer.planning.placement import place
from flowinfer.planning.plan import Answer, Member, Mixture, Need, Plan, Step, members
from flowinfer.results import Question, StepResult, Trace
from flowinfer.spec import Decoding, ModelSpec
from flowinfer.startup import GARBAGE_OBJECTS
from measure import Ceilings, Deadline, Missed, ceilings, held_matrix_rate, release, synchronize
from reporting import Report, options, ratio, setup_of
from shapes import NAMES, ShapeModel, build, shapes

_COLUMNS = [
    *("plan", "what", "on", "rows", "prompt ids", "tokens", "device steps", "seconds", "tokens/s", "first answer"),
    *("roofline, s", "x roofline", "alone / this"),
]
_PLANS = ("Qwen -> Yi", "(Qwen & Yi)", "Qwen -> (Ds | Yi)", "(Ds | Yi) -> Qwen")


@dataclass
class Run:
    """One run of a plan."""

    seconds: float
    first_seconds: float
    """Until the first question had its answer."""
    num_steps: Mapping[str, int]
    """Decoding steps that the devices were given, by step of the plan."""
    traces: Sequence[Trace] = field(repr=False)

    def results(self, step: str) -> dict[str, StepResult]:
        """Return a step's results by question."""
        return {trace.question_id: one for trace in self.traces for one in trace.steps if one.step == step}


@dataclass
class Alone:
    """The rows of one step, decoded with nothing beside them."""

    seconds: float
    num_steps: int
    texts: dict[str, str] = field(repr=False)


class LimitedHeads(Heads):
    """Heads whose rows have limits of their own, by question, whoever made the rows."""

    def __init__(self, step: Step, models: Sequence[ShapeModel], load: Load) -> None:
        super().__init__(step, models, observer=Observer())
        self._limits = {f"q{k}": length for k, length in enumerate(load.answers)}

    def begin(self, row: Row, batch: int) -> LiveRow | Completion:
        """Begin a row as all heads do, with its own limit."""
        begun = super().begin(row, batch)
        if isinstance(begun, LiveRow):
            begun.decoding = begun.decoding.model_copy(update={"max_tokens": self._limits[row.question_id]})
        return begun


class MadeDecoders(Decoders):
    """Decoders that are made already, by step."""

    def __init__(self, made: Mapping[str, PackedDecoder], rows: Mapping[str, int]) -> None:
        super().__init__(ModelPool(), Observer(), "auto")
        self._ready, self._rows = made, rows

    def loop(self, name: str, plan: Plan, step: Step) -> DecodingLoop:
        """Return a loop whose decoder is made."""
        loop = super().loop(name, plan, step)
        loop.decoder, loop.batch = self._ready[step.id], self._rows[step.id]
        return loop


class Bench:
    """One plan, its models where placement puts them, and its decoders."""

    def __init__(
        self, plan: Plan, models: Mapping[str, ShapeModel], loads: Sequence[Load], arguments: argparse.Namespace
    ) -> None:
        self.plan, self._models, self._load = plan, models, loads[0]
        shares = budgets(plan, plan.steps, lambda name: True)
        self.rows = {
            step.id: arguments.rows or auto_batch(plan, step, self._heads(step), is_packed=True, budget=shares[step.id])
            for step in plan.steps
        }
        self._window = arguments.window or (4 * arguments.rows if arguments.rows else 512)
        self._decoders = {
            step.id: _decoder(LimitedHeads(step, self._heads(step), load), self.rows[step.id], shares[step.id])
            for step, load in zip(plan.steps, loads, strict=False)
        }

    def run(self) -> Run:
        """Run the plan over all questions."""
        before = {name: decoder.num_steps for name, decoder in self._decoders.items()}
        caching = Caching(lambda *_: NoCache(), lambda *_: "", lambda *_: "", lambda plan, step, prompts: list(prompts))
        merged = merge([self.plan])
        (uses,) = merged.uses
        scheduler = Scheduler(merged.steps, MadeDecoders(self._decoders, self.rows), caching, Observer())
        asked = (
            Asked(Question(id=f"q{k}", question=f"{k} {length}", reference=""), lambda one: one.question).of(uses)
            for k, length in enumerate(self._load.prompts)
        )
        self._wait()
        start, first = time.perf_counter(), 0.0
        traces: list[Trace] = []
        for finished in scheduler.run(asked, most=self._window):
            if finished.asked.is_done:
                first = first or time.perf_counter() - start
                traces.append(trace_of(self.plan, uses, finished.asked))
        self._wait()
        seconds = time.perf_counter() - start
        steps = {name: decoder.num_steps - before[name] for name, decoder in self._decoders.items()}
        return Run(seconds, first, steps, traces)

    def alone(self, step: Step, run: Run) -> Alone:
        """Decode the rows that a step had in a run, with nothing beside them."""
        decoder, results = self._decoders[step.id], run.results(step.id)
        rows = [Row(question_id, step.id, one.prompts) for question_id, one in results.items()]
        before = decoder.num_steps
        self._wait()
        start = time.perf_counter()
        texts = {done.row.question_id: done.result.text for done in decode(decoder, rows) if done.result}
        self._wait()
        return Alone(time.perf_counter() - start, decoder.num_steps - before, texts)

    def devices(self, step: Step) -> list[str]:
        """Return the devices of a step's heads, each once."""
        return list(dict.fromkeys(str(model.device) for model in self._heads(step)))

    def floors(self, step: Step, run: Run, limits: Mapping[str, Ceilings]) -> dict[str, float]:
        """Return the least seconds that a step's rows take on each of its devices."""
        results = list(run.results(step.id).values())
        floors = dict.fromkeys(self.devices(step), 0.0)
        for k, model in enumerate(self._heads(step)):
            load = Load(tuple(one.heads[k].prompt_tokens for one in results), tuple(one.tokens for one in results))
            floors[str(model.device)] += sum(roofline([model], load, self.rows[step.id], limits[str(model.device)]))
        return floors

    def _heads(self, step: Step) -> list[ShapeModel]:
        return [self._models[member.model] for member in members(step.source)]

    def _wait(self) -> None:
        for model in self._models.values():
            synchronize(model.device)


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--questions", type=typed.number)
    parser.add_argument("--tokens", type=typed.number, help="most tokens of an answer; 384 if not given")
    parser.add_argument("--rows", type=typed.number, help="most rows of a step; what memory allows if not given")
    parser.add_argument("--window", type=typed.number, help="questions on their way at once; as exec has if not given")
    parser.add_argument("--devices", type=typed.devices, help="e.g. cuda:0,cuda:1; all GPUs if not given")
    parser.add_argument("--plans", type=plans, default=";".join(_PLANS), help="of Qwen, Ds and Yi, separated by ;")
    parser.add_argument("--layers", type=typed.number, help="fewer layers, to try things")
    parser.add_argument("--repeats", type=typed.number, default=3)
    arguments = parser.parse_args()
    arguments.questions = arguments.questions or (320 if arguments.size == "full" else 24)
    deadline = Deadline(arguments.seconds)
    gc.set_threshold(GARBAGE_OBJECTS)  # as the command does
    loads = [
        make_load(arguments.questions, arguments.size, arguments.seed + index, most_tokens=arguments.tokens)
        for index in range(2)
    ]
    names = _devices(arguments)
    limits = {name: ceilings(torch.device(name), getattr(torch, arguments.dtype)) for name in names}
    report = Report("Stages side by side", _setup(arguments, loads, names), _COLUMNS)
    built: dict[str, ShapeModel] = {}
    for title in arguments.plans:
        outcome = deadline.attempt(partial(_measure, report, title, loads, limits, built, arguments))
        if isinstance(outcome, Missed):
            report.add(title, "side by side", *[None] * 5, outcome, *[None] * 5)
        release()
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


def plans(text: str) -> list[str]:
    """Read plans that semicolons separate, for an option."""
    for title in (found := [part.strip() for part in text.split(";")]):
        names = re.findall(r"\w+", title)
        forms = r"\w+ -> \w+|\(\w+ & \w+\)|\w+ -> \(\w+( \| \w+)+\)|\(\w+( \| \w+)+\) -> \w+"
        if not re.fullmatch(forms, title) or not set(names) <= set(NAMES):
            raise argparse.ArgumentTypeError(f"'{title}' is no plan like {'; '.join(_PLANS)}, of {', '.join(NAMES)}")
    return found


def plan_of(title: str, arguments: argparse.Namespace, devices: Sequence[str]) -> Plan:
    """Return a plan of one or two stages, `A -> B`, `(A & B)`, `A -> (B | C)` or `(A | B) -> C`, placed."""
    steps: list[Step] = []
    answers = re.fullmatch(r"\((\w+) & (\w+)\)", title)
    for stage in answers.groups() if answers else title.split(" -> "):
        earlier = [] if answers else [step.id for step in steps]
        steps.append(_step(f"s{len(steps) + 1}", re.findall(r"\w+", stage), earlier[-1:]))
    answer = Answer("vote", tuple(step.id for step in steps)) if answers else Answer("text", (steps[-1].id,))
    table = {shape.name: shape for shape in shapes(arguments.size, layers=arguments.layers)}
    names = dict.fromkeys(member.model for step in steps for member in members(step.source))
    specs = {name: ModelSpec(name=name, ref=name, think="keep") for name in names}
    width = getattr(torch, arguments.dtype).itemsize
    needs = {
        name: Need(table[name].weight_values, table[name].weight_values * width, table[name].kv_values * width, 0, "")
        for name in names
    }
    return place(Plan("stages", tuple(steps), answer, specs, "paper"), _machine(devices), needs)


def _step(step_id: str, names: Sequence[str], reads: Sequence[str]) -> Step:
    template, fields = ("{question} {prev}", {"prev": tuple(reads)}) if reads else ("{question}", {})
    heads = tuple(
        Member(f"{step_id}n{k}", name, "draft", template, fields, 1 / len(names)) for k, name in enumerate(names)
    )
    source = Mixture(f"{step_id}g", "mean", {}, heads) if len(heads) > 1 else heads[0]
    return Step(step_id, " | ".join(names), source, Decoding(max_tokens=384, speculate="off"), tuple(reads))


def _machine(devices: Sequence[str]) -> Machine:
    return Machine(tuple(Device(name, "", *_memory(name)) for name in devices))


def _memory(device: str) -> tuple[int, int]:
    return torch.cuda.mem_get_info(device) if device.startswith("cuda") else (1 << 40, 1 << 40)


def _measure(
    report: Report,
    title: str,
    loads: Sequence[Load],
    limits: Mapping[str, Ceilings],
    built: dict[str, ShapeModel],
    arguments: argparse.Namespace,
) -> float:
    """Measure a plan side by side and its steps alone; return the seconds of the former.

    Args:
        built: models of plans before, by name; those on other devices now give way.
    """
    plan = plan_of(title, arguments, list(limits))
    _build(plan, built, arguments)
    bench = Bench(plan, built, loads, arguments)
    warm = bench.run()
    runs: list[Run] = []
    alone: dict[str, list[Alone]] = {step.id: [] for step in plan.steps}
    for _ in range(arguments.repeats):
        runs.append(bench.run())
        for step in plan.steps:
            alone[step.id].append(bench.alone(step, warm))
    _compare(report, title, warm, {step: own[-1] for step, own in alone.items()}, arguments.dtype)
    run = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    floors, held, lone = (dict.fromkeys(limits, 0.0) for _ in range(3))
    rates = {name: held_matrix_rate(torch.device(name), getattr(torch, arguments.dtype)) for name in limits}
    held_limits = {name: replace(limits[name], matmul_flops_per_second=rate) for name, rate in rates.items()}
    for step in plan.steps:
        own, on = bench.floors(step, run, limits), bench.devices(step)
        own_held = bench.floors(step, run, held_limits)
        seconds = statistics.median(one.seconds for one in alone[step.id])
        for device in on:
            floors[device] += own[device]
            held[device] += own_held[device]
            lone[device] += seconds
        figures = (bench.rows[step.id], *_counts(run, [step]), alone[step.id][-1].num_steps, seconds)
        _add(report, title, f"{step.title} alone", on, figures, None, max(own.values()), None)
    rows = " + ".join(str(bench.rows[step.id]) for step in plan.steps)
    figures = (rows, *_counts(run, plan.steps), sum(run.num_steps.values()), run.seconds)
    on = [device for device in floors if floors[device]]
    bound = max(lone.values()) / run.seconds
    _add(report, title, "side by side", on, figures, run.first_seconds, max(floors.values()), bound)
    burst = ", ".join(f"{limits[name].matmul_flops_per_second / 1e12:.0f}" for name in limits)
    told = ", ".join(f"{rate / 1e12:.0f}" for rate in rates.values())
    report.note(
        f"{title}: with the matrix rate that is held for a second ({told} TFLOPS, in a burst {burst}) the roofline is"
        f" {max(held.values()):.2f} s, and side by side {run.seconds / max(held.values()):.2f} x that"
    )
    return run.seconds


def _counts(run: Run, steps: Sequence[Step]) -> tuple[int, int]:
    """Return the prompt ids, of all heads, and the tokens of steps."""
    results = [one for step in steps for one in run.results(step.id).values()]
    return sum(head.prompt_tokens for one in results for head in one.heads), sum(one.tokens for one in results)


def _add(
    report: Report,
    title: str,
    what: str,
    on: Sequence[str],
    figures: tuple[int | str, int, int, int, float],
    first: float | None,
    floor: float,
    bound: float | None,
) -> None:
    rows, ids, tokens, steps, seconds = figures
    rest = (seconds, tokens / seconds, first, floor, ratio(seconds, floor), bound)
    report.add(title, what, " ".join(on), rows, ids, tokens, steps, *rest)


def _decoder(heads: Heads, rows: int, budget: Budget) -> PackedDecoder:
    made = packed_decoder(heads, rows, budget)
    if isinstance(made, str):
        raise RuntimeError(made)
    return made


def _compare(report: Report, title: str, run: Run, alone: Mapping[str, Alone], dtype: str) -> None:
    """Tell how many answers have the same texts side by side and alone; in float32 all must."""
    pairs = [(one.text, alone[step].texts[question]) for step in alone for question, one in run.results(step).items()]
    same = sum(one == other for one, other in pairs)
    report.note(f"{title}: {same} of {len(pairs)} answers are the same side by side and alone ({dtype})")
    if dtype == "float32":
        assert same == len(pairs), "float32 texts must not depend on the way"


def _build(plan: Plan, built: dict[str, ShapeModel], arguments: argparse.Namespace) -> None:
    """Build the models that are not where the plan has them."""
    for index, name in enumerate(("Qwen", "Ds", "Yi")):
        device = plan.placements[name].device if name in plan.placements else ""
        if name in built and str(built[name].device) != device:
            del built[name]
            release()
        if device and name not in built:
            seed, dtype = arguments.seed + index, getattr(torch, arguments.dtype)
            made = build(arguments.size, device, dtype, seed=seed, names=[name], layers=arguments.layers)
            built[name] = made[0]


def _devices(arguments: argparse.Namespace) -> list[str]:
    if arguments.devices or not arguments.device.startswith("cuda"):
        return arguments.devices or [arguments.device]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _setup(arguments: argparse.Namespace, loads: Sequence[Load], devices: Sequence[str]) -> dict[str, object]:
    return setup_of(
        devices[0],
        arguments.dtype,
        devices=len(devices),
        questions=len(loads[0].prompts),
        tokens=" + ".join(str(load.tokens) for load in loads),
        rows=arguments.rows or "auto",
        repeats=arguments.repeats,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
