"""flowinfer plan: what would run, where, and what it needs; without weights or GPU."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowinfer.cli.inputs import Expression, FlowFile, PromptsOption, SetOption, ZooOption, read_checked, settings
from flowinfer.errors import MemoryShort, UsageError

if TYPE_CHECKING:
    from flowinfer.cli.afar import Afar
    from flowinfer.machine import Machine
    from flowinfer.planning.plan import Plan, Source, Step
    from flowinfer.runs.measured import Measured
    from flowinfer.spec import Flow

_DEVICE = r"\s*(cpu|cuda:(?:0|[1-9]\d{0,3}))\s*=\s*(\d{1,9}(?:\.\d{1,9})?)\s*(GB|GiB|MB)\s*"
"""One of --devices; no machine has what is longer."""


def command(
    file: FlowFile = None,
    expression: Expression = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show prompt templates whole.")] = False,
    devices: Annotated[
        str | None,
        typer.Option(metavar="NAME=SIZE,...", help="Plan for other devices, e.g. cuda:0=24GB,cuda:1=24GB,cpu=64GB."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of run folders; the newest of this flow says how long it takes.")
    ] = Path("runs"),
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
) -> None:
    """Print the plan of a flow: steps, prompts, models, memory, devices."""
    flow = read_checked(file, expression, zoo, settings(set_, prompts))
    show_plan(flow, as_json=json_, full=full, devices=devices, out=out)


def show_plan(
    flow: Flow, *, as_json: bool = False, full: bool = False, devices: str | None = None, out: Path = Path("runs")
) -> None:
    """Print a flow's plan."""
    from flowinfer.cli.afar import estimates, heads_afar
    from flowinfer.machine import this_machine
    from flowinfer.planning.bounds import bounds
    from flowinfer.planning.placement import device_reads, place
    from flowinfer.planning.plain import to_json
    from flowinfer.planning.plan import compile
    from flowinfer.runs.measured import measured

    machine = this_machine() if devices is None else _machine(devices)
    compiled = compile(flow)
    try:
        plan = place(compiled, machine)
    except MemoryShort as error:
        if devices is None:
            error.help = f"{error.help}; --devices cuda:0=24GB,cpu=64GB plans for another machine"
        raise
    afar = heads_afar(plan)
    took = measured(plan, out) if devices is None else None
    copies = _copies(plan, machine, None if devices is None else len(machine.gpus))
    if as_json:
        question = asdict(bounds(plan, took.seconds if took else {})) | {"measured": asdict(took) if took else None}
        said = to_json(plan) | {"reads": device_reads(plan), "zoo": flow.zoo, "zoo_why": flow.zoo_why}
        said |= {"elsewhere": {name: one.to_json() for name, one in afar.items()}} if afar else {}
        said |= {"question": question, "copies": copies.count}
        print(json.dumps(said, ensure_ascii=False, indent=1))
        return
    count = f"{len(plan.steps)} step{'s' * (len(plan.steps) > 1)}"
    print(f"flow {flow.name}: {count}, {flow.words}")
    if flow.zoo_note:
        print(f"note: {flow.zoo_note}")
    for step in plan.steps:
        _show_step(step, full)
    _show_selections(plan)
    _show_question(plan, took)
    kind = "majority vote of" if plan.answer.kind == "vote" else "text of"
    print(f"\nanswer: {kind} {', '.join(plan.answer.texts)}")
    _show_models(plan, machine, afar)
    _show_copies(plan, machine, copies)
    if afar:
        print("\nheads elsewhere")
    for line in estimates(plan, afar):
        print(f"    {line}")


def _show_step(step: Step, full: bool) -> None:
    from flowinfer.planning.plan import Mixture, members

    reads = f"  reads {', '.join(step.reads)}" if step.reads else ""
    for when in step.when[-1:]:
        what = f"picks {when.tried + 1}" if when.picks else f"accepts none of {when.tried}"
        reads += f"  if {when.selection} {what}"
    decoding = step.decoding
    how = "greedy" if decoding.temperature == 0 else f"temperature {decoding.temperature:g}, top_p {decoding.top_p:g}"
    how += "" if decoding.speculate == "auto" else f", speculate {decoding.speculate}"
    print(f"\n{step.id}  {step.title}{reads}  (max_tokens {decoding.max_tokens}, {how})")
    if isinstance(step.source, Mixture):
        print(f"    ⊕ {_fuser(step.source)}")
    for member in members(step.source):
        template = member.template if full else _short(member.template)
        print(f"    {member.node} {member.model}, {member.role}: {template}")


def _show_selections(plan: Plan) -> None:
    """Print what is chosen while a question runs."""
    if plan.selections:
        print()
    for one in plan.selections:
        texts = [" & ".join(candidate) for candidate in one.candidates]
        if one.quorum is not None:
            waits = {"timeout": one.quorum.timeout, "wait": one.quorum.wait}
            said = "".join(f", {name} {value:g} s" for name, value in waits.items() if value is not None)
            print(f"{one.id}  {one.title}: {one.quorum.least} of {', '.join(texts)} will do{said}")
            continue
        if one.routes is not None:
            print(f"{one.id}  {one.title}: one of {', '.join(texts)}, picked by {one.routes.name} before any runs")
            continue
        print(f"{one.id}  {one.title}: the first of {', '.join(texts)} that is accepted ({one.rule}), else the last")


def _show_question(plan: Plan, took: Measured | None) -> None:
    """Print the least and the most that a question may cost, and its seconds where they were measured."""
    from flowinfer.planning.bounds import bounds

    found = bounds(plan, took.seconds if took else {})
    least, most = found.least, found.most
    if plan.selections:
        tokens, depth = _range(least.tokens, most.tokens), _range(least.depth, most.depth)
        calls = f"{_range(least.calls, most.calls)} model call{'s' * (most.calls > 1)}"
        print(f"\na question takes {calls}, and writes at most {tokens} tokens;")
        print(f"its longest chain of steps has {depth}")
    if took is None or least.seconds is None:
        return
    seconds = f"at least {least.seconds:.3g}" if most.seconds is None else _range(least.seconds, most.seconds)
    never = ", ".join(step.id for step in plan.steps if step.id not in took.seconds)
    print(f"\na question takes about {seconds} s{f'; {never} never ran' if never else ''}: means of {took.questions}")
    print(f"questions in run {took.run} (batch {took.batch})")


def _range(least: float, most: float) -> str:
    shown = [f"{one}" if isinstance(one, int) else f"{one:.3g}" for one in (least, most)]
    return " to ".join(dict.fromkeys(shown))


def _fuser(source: Source) -> str:
    from flowinfer.planning.plan import Member

    if isinstance(source, Member):
        return f"{source.model}:{source.weight:.3g}"
    options = "".join(f" {key}={value}" for key, value in source.fuse_options.items() if value not in ("", None))
    least = "" if source.least is None else f", {source.least} of {len(source.sources)} will do"
    return f"{source.fuse}{options} (" + " | ".join(_fuser(inner) for inner in source.sources) + f"){least}"


def _short(template: str, width: int = 70) -> str:
    text = " ".join(template.split())
    return text if len(text) <= width else text[: width // 2 - 2] + " ... " + text[-width // 2 :]


def _show_models(plan: Plan, machine: Machine, afar: Mapping[str, Afar]) -> None:
    from flowinfer.planning.placement import shown_bytes

    print("\nmodels")
    for name, spec in plan.models.items():
        need, placement = plan.needs[name], plan.placements[name]
        if name in afar:
            print(f"    {name} = {spec.ref}: elsewhere\n        {afar[name]}")
            continue
        parameters = "unknown size" if need.parameters is None else f"{_count(need.parameters)} parameters"
        memory = "" if not need.weight_bytes else f", {shown_bytes(need.weight_bytes)} as {placement.dtype}"
        per_token = "" if not need.kv_bytes_per_token else f", {need.kv_bytes_per_token / 1024:.1f} KiB/token of cache"
        download = ", download size unknown"
        if need.download_bytes is not None:
            download = f", downloads {shown_bytes(need.download_bytes)}" if need.download_bytes else ""
        print(f"    {name} = {spec.ref}: {parameters}{memory}{per_token}{download}")
        print(f"        on {placement.where} ({placement.why})")
    if len(plan.waves) > 1:
        print("\nwaves, since the models do not fit together")
        for number, wave in enumerate(plan.waves, start=1):
            print(f"    {number}. steps {', '.join(wave.steps)} with {', '.join(wave.models)}")
    free = ", ".join(f"{device.name} {shown_bytes(device.free_bytes)} free" for device in machine.devices)
    print(f"\ndevices: {free}")
    _show_reads(plan, machine.slowness)


def _show_reads(plan: Plan, slowness: Mapping[str, float]) -> None:
    """Print what each device reads, where heads or steps are on several."""
    from flowinfer.planning.needs import TYPICAL_CONTEXT, TYPICAL_ROWS
    from flowinfer.planning.placement import device_reads

    reads = device_reads(plan)
    if len({device for own in reads.values() for device in own}) < 2:
        return
    print(f"\nread for one token of each of {TYPICAL_ROWS} rows of {TYPICAL_CONTEXT} ids; the slowest device decides")
    together: Counter[str] = Counter()
    for step_id, own in reads.items():
        print(f"    {step_id}  {_slowest(own, slowness)}")
        together.update(own)
    if len(reads) > 1:
        steps = "all steps at once" if len(plan.waves) == 1 else "all steps"
        print(f"    {steps}: {_slowest(together, slowness)}")


@dataclass(frozen=True)
class _Copies:
    """What `--replicas auto` makes of a machine."""

    count: int = 1
    gpus: int = 0
    """That each copy has."""
    used: int = 0
    """Of these, those that hold a model."""


def _copies(plan: Plan, machine: Machine, cores: int | None) -> _Copies:
    """Return how many copies of a placed plan have room on a machine.

    Args:
        cores: of its CPU; None for those of this one.
    """
    from flowinfer.machine import Device, Machine
    from flowinfer.planning.needs import mapped_bytes
    from flowinfer.planning.placement import place, refuse_absent
    from flowinfer.runs.replicas.sharing import cores_here, most

    def placed(part: Machine) -> Plan:
        refuse_absent(plan, part)
        return place(plan, part, plan.needs)

    gpus = machine.gpus
    cpu = next((device for device in machine.devices if device not in gpus), Device("cpu", "", 0, 0))
    own = cores_here() if cores is None else range(cores)
    mapped = mapped_bytes(plan.models.values(), has_gpus=bool(gpus))
    found = most(Machine((*gpus, cpu)), placed, lambda copy: len(copy.waves) == 1, own, mapped)
    if found is None:
        return _Copies()
    parts, copy = found
    own_gpus = parts.machine.gpus
    return _Copies(len(parts.gpus), len(own_gpus), len(_used(copy) & {gpu.name for gpu in own_gpus}))


def _used(plan: Plan) -> set[str]:
    """Return the devices that hold a model."""
    return {device for placement in plan.placements.values() for device in placement.parts}


def _show_copies(plan: Plan, machine: Machine, copies: _Copies) -> None:
    """Print which of several GPUs have nothing to do, and how many copies of the plan have room where that is known."""
    used = _used(plan)
    idle = [device.name for device in machine.gpus if device.name not in used]
    if idle and len(machine.gpus) > 1 and used != {"endpoint"}:
        print(f"\nwithout a model: {', '.join(idle)}")
    if copies.used and all(need.weight_bytes is not None for need in plan.needs.values()):
        each = "a GPU each" if copies.gpus == 1 else f"{copies.gpus} GPUs each"
        busy, there = copies.count * copies.used, len(machine.gpus)
        gain = "keeps all GPUs busy" if busy == there else f"keeps {busy} of {there} GPUs busy"
        print(f"\n{copies.count} copies have room, with {each}: over many questions --replicas {copies.count} {gain}")


def _slowest(reads: Mapping[str, int], slowness: Mapping[str, float]) -> str:
    """Return what devices read, the slowest marked."""
    from flowinfer.planning.placement import shown_bytes

    most = max(reads, key=lambda device: reads[device] * slowness.get(device, 1.0))
    marked = {most: " (slowest)"} if len(reads) > 1 else {}
    return ", ".join(f"{name} {shown_bytes(count)}{marked.get(name, '')}" for name, count in sorted(reads.items()))


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _machine(text: str) -> Machine:
    from flowinfer.machine import Device, Machine

    found: list[Device] = []
    for part in text.split(","):
        match = re.fullmatch(_DEVICE, part, re.I | re.ASCII)
        if not match:
            raise UsageError(f"--devices '{part.strip()}'", help="for example cuda:0=24GB,cpu=64GB")
        if match[1].lower() in (device.name for device in found):
            raise UsageError(
                f"--devices names {match[1].lower()} twice", help="each device once, with what is free on it"
            )
        size = int(float(match[2]) * {"gb": 1e9, "gib": 2**30, "mb": 1e6}[match[3].lower()])
        found.append(Device(match[1].lower(), "as given", size, size))
    return Machine(tuple(found))
