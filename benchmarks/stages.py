"""Steps side by side against step after step: a serial plan and two independent answers over a data set.

    python benchmarks/stages.py [--questions 320] [--rows 120] [--second-device cuda:1]

`Qwen -> Yi` and `(Qwen & Yi)` over questions with prompts of 150-450 ids and answers of 32-384 tokens for each step,
from fixed seeds; no answer ends by itself. Both ways use the same packed decoders, warmed up by one run of each way,
and take turns; the median counts. Side by side is what `exec` does; step after step hides from the scheduler that the
decoders can be brought on a turn at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dataset import Load, make_load
from flowinfer.engine.base import Completion, Decoder, NoCache, Observer, Row, RowStream
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.decoding import DecodingLoop
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.packing import packed_decoder
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.models import ModelPool
from flowinfer.engine.scheduler import Caching, Scheduler
from flowinfer.engine.work import Asked, trace_of
from flowinfer.planning.merge import merge
from flowinfer.planning.plan import Answer, Member, Plan, Step
from flowinfer.results import Question, Trace
from flowinfer.spec import Decoding, ModelSpec
from measure import Deadline, Missed, release, synchronize
from reporting import Report, options, ratio, setup_of
from shapes import ShapeModel, build

_COLUMNS = ["plan", "way", "seconds", "tokens/s", "first answer", "device steps", "step after step / this"]
_WAYS = ("step after step", "side by side")


@dataclass
class Run:
    """One run of a plan."""

    seconds: float
    first_seconds: float
    """Until the first question had its answer."""
    num_steps: Mapping[str, int]
    """Decoding steps that the device was given, by step of the plan."""
    traces: Sequence[Trace] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return sum(step.tokens for trace in self.traces for step in trace.steps)

    @property
    def texts(self) -> dict[str, list[str]]:
        """All steps' texts by question."""
        return {trace.question_id: [step.text for step in trace.steps] for trace in self.traces}


class LimitedHeads(Heads):
    """Heads whose rows have limits of their own, by question, whoever made the rows."""

    def __init__(self, step: Step, model: ShapeModel, load: Load) -> None:
        super().__init__(step, [model], observer=Observer())
        self._limits = {f"q{k}": length for k, length in enumerate(load.answers)}

    def begin(self, row: Row, batch: int) -> LiveRow | Completion:
        """Begin a row as all heads do, with its own limit."""
        begun = super().begin(row, batch)
        if isinstance(begun, LiveRow):
            begun.decoding = begun.decoding.model_copy(update={"max_tokens": self._limits[row.question_id]})
        return begun


class Whole:
    """A decoder that keeps the host busy."""

    keeps_host_busy = True

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def stream(self) -> RowStream:
        """Return a new run."""
        return self._decoder.stream()


class MadeDecoders(Decoders):
    """Decoders that are made already, by step."""

    def __init__(self, made: Mapping[str, Decoder]) -> None:
        super().__init__(ModelPool(), Observer(), "auto")
        self._ready = made

    def loop(self, name: str, plan: Plan, step: Step) -> DecodingLoop:
        """Return a loop whose decoder is made."""
        loop = super().loop(name, plan, step)
        loop.decoder = self._ready[step.id]
        return loop


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int)
    parser.add_argument("--rows", type=int, default=120, help="most rows of a step at once")
    parser.add_argument("--window", type=int, help="questions on their way at once; 4 x rows if not given")
    parser.add_argument("--second-device", help="where Yi lives, if not on the same device")
    parser.add_argument("--layers", type=int, help="fewer layers, to try things")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    arguments.questions = arguments.questions or (320 if arguments.size == "full" else 24)
    arguments.window = arguments.window or 4 * arguments.rows
    deadline = Deadline(arguments.seconds)
    models = _models(arguments)
    loads = [make_load(arguments.questions, arguments.size, arguments.seed + index) for index in range(2)]
    report = Report("Steps side by side", _setup(arguments, models, loads), _COLUMNS)
    for title, plan in (("Qwen -> Yi", serial_plan(models)), ("(Qwen & Yi)", branches_plan(models))):
        _measure(report, title, plan, models, loads, arguments, deadline)
        release()
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


def serial_plan(models: Sequence[ShapeModel]) -> Plan:
    """Return the plan in which the second model reads what the first one wrote."""
    first = _step("s1", models[0], Member("n1", models[0].name, "draft", "{question}", {}))
    second = Member("n2", models[1].name, "refine", "{question} {prev}", {"prev": ("s1",)})
    return _plan([first, _step("s2", models[1], second, "s1")], Answer("text", ("s2",)))


def branches_plan(models: Sequence[ShapeModel]) -> Plan:
    """Return the plan in which both models answer by themselves."""
    steps = [
        _step(f"s{k}", model, Member(f"n{k}", model.name, "draft", "{question}", {}))
        for k, model in enumerate(models, 1)
    ]
    return _plan(steps, Answer("vote", tuple(step.id for step in steps)))


def _step(step_id: str, model: ShapeModel, member: Member, *reads: str) -> Step:
    return Step(step_id, model.name, member, Decoding(max_tokens=384, speculate="off"), reads)


def _plan(steps: Sequence[Step], answer: Answer) -> Plan:
    names = [member.model for step in steps if isinstance(member := step.source, Member)]
    specs = {name: ModelSpec(name=name, ref=name, think="keep") for name in names}
    return Plan("stages", tuple(steps), answer, specs, "paper")


def _measure(
    report: Report,
    title: str,
    plan: Plan,
    models: Sequence[ShapeModel],
    loads: Sequence[Load],
    arguments: argparse.Namespace,
    deadline: Deadline,
) -> None:
    packed = {
        step.id: _decoder(step, model, load, arguments.rows)
        for step, model, load in zip(plan.steps, models, loads, strict=True)
    }
    made: dict[str, Mapping[str, Decoder]] = {
        "step after step": {name: Whole(decoder) for name, decoder in packed.items()},
        "side by side": packed,
    }
    runs: dict[str, list[Run]] = {way: [] for way in _WAYS}

    def run(way: str) -> float:
        runs[way].append(_run(plan, made[way], packed, models, loads[0], arguments.window))
        return runs[way][-1].seconds

    outcomes = {way: deadline.attempt(_call(run, way)) for way in _WAYS}  # warm-up
    _compare(report, title, runs, arguments.dtype)
    for way in _WAYS:
        runs[way].clear()
    for _ in range(arguments.repeats):
        outcomes = {way: deadline.attempt(_call(run, way)) for way in _WAYS}
    base: float | Missed = _median(runs["step after step"]) or outcomes["step after step"]
    for way in _WAYS:
        median: float | Missed = _median(runs[way]) or outcomes[way]
        if isinstance(median, Missed):
            report.add(title, way, median, None, None, None, None)
            continue
        one = min(runs[way], key=lambda run: abs(run.seconds - median))
        steps = " + ".join(str(count) for count in one.num_steps.values())
        report.add(title, way, median, one.tokens / median, one.first_seconds, steps, ratio(base, median))


def _call(run: Callable[[str], float], way: str) -> Callable[[], float]:
    return lambda: run(way)


def _decoder(step: Step, model: ShapeModel, load: Load, rows: int) -> PackedDecoder:
    made = packed_decoder(LimitedHeads(step, model, load), rows)
    if isinstance(made, str):
        raise RuntimeError(made)
    return made


def _run(
    plan: Plan,
    made: Mapping[str, Decoder],
    packed: Mapping[str, PackedDecoder],
    models: Sequence[ShapeModel],
    load: Load,
    window: int,
) -> Run:
    """Run a plan over all questions."""
    before = {name: decoder.num_steps for name, decoder in packed.items()}
    caching = Caching(lambda *_: NoCache(), lambda *_: "", lambda *_: "", lambda plan, step, prompts: list(prompts))
    merged = merge([plan])
    (uses,) = merged.uses
    scheduler = Scheduler(merged.steps, MadeDecoders(made), caching, Observer())
    asked = (
        Asked(Question(id=f"q{k}", question=f"{k} {length}", reference=""), lambda one: one.question).of(uses)
        for k, length in enumerate(load.prompts)
    )
    _wait(models)
    start = time.perf_counter()
    traces: list[Trace] = []
    first = 0.0
    for finished in scheduler.run(asked, most=window):
        if finished.asked.is_done:
            first = first or time.perf_counter() - start
            traces.append(trace_of(plan, uses, finished.asked))
    _wait(models)
    seconds = time.perf_counter() - start
    steps = {name: decoder.num_steps - before[name] for name, decoder in packed.items()}
    return Run(seconds, first, steps, traces)


def _wait(models: Sequence[ShapeModel]) -> None:
    for model in models:
        synchronize(model.device)


def _compare(report: Report, title: str, runs: Mapping[str, Sequence[Run]], dtype: str) -> None:
    """Tell how many questions have the same texts both ways; in float32 all must."""
    if not all(runs.values()):
        return
    one, other = (runs[way][0].texts for way in _WAYS)
    same = sum(one[key] == other[key] for key in one)
    report.note(f"{title}: {same} of {len(one)} questions have the same texts both ways ({dtype})")
    if dtype == "float32":
        assert one == other, "float32 texts must not depend on the way"


def _median(runs: Sequence[Run]) -> float | None:
    return statistics.median(run.seconds for run in runs) if runs else None


def _models(arguments: argparse.Namespace) -> list[ShapeModel]:
    dtype = getattr(torch, arguments.dtype)
    places = {"Qwen": arguments.device, "Yi": arguments.second_device or arguments.device}
    return [
        build(arguments.size, device, dtype, seed=arguments.seed + index, names=[name], layers=arguments.layers)[0]
        for index, (name, device) in enumerate(places.items())
    ]


def _setup(arguments: argparse.Namespace, models: Sequence[ShapeModel], loads: Sequence[Load]) -> dict[str, object]:
    return setup_of(
        arguments.device,
        arguments.dtype,
        devices=", ".join(f"{model.name} on {model.device}" for model in models),
        shapes=", ".join(f"{model.name} {model.shape.layers} x {model.shape.hidden}" for model in models),
        questions=len(loads[0].prompts),
        tokens=" + ".join(str(load.tokens) for load in loads),
        rows=arguments.rows,
        window=arguments.window,
        repeats=arguments.repeats,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
