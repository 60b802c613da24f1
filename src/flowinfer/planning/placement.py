"""Where models live: what each needs against what the machine's devices have free.

Nothing is loaded. Models that cannot be resident together are served in waves: stage by stage over the whole data
set, loaded and freed in turn. Only the heads of one step must be resident together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flowinfer.errors import LoadError, MemoryShort
from flowinfer.machine import Machine
from flowinfer.planning.assignment import Layers, Lie, Unit, assign
from flowinfer.planning.needs import need_of, read_bytes
from flowinfer.planning.plan import Need, Placement, Plan, Step, Wave, compile, held_models, members
from flowinfer.registry import backends
from flowinfer.spec import Flow, ModelSpec

_HEADROOM = 1.15
"""Weights times this = room for a model with its keys, values and buffers, at least."""


def ready(flow: Flow, machine: Machine) -> Plan:
    """Compile and place a flow that is to run now.

    Raises:
        MemoryShort: see `place`.
        LoadError: a model is declared on a device that is not there.
    """
    plan = compile(flow)
    refuse_absent(plan, machine)
    return place(plan, machine)


def refuse_absent(plan: Plan, machine: Machine) -> None:
    """Refuse a machine that lacks a declared device.

    Raises:
        LoadError: it does; says which.
    """
    here = [device.name for device in machine.devices]
    for name, spec in plan.models.items():
        declared = [spec.device] if isinstance(spec.device, str) else spec.device
        missing = [device for device in declared if _number(device) not in (*here, "auto")]
        if missing and not _is_remote(spec):
            raise LoadError(
                f"model '{name}' is declared on {', '.join(missing)}, which this machine does not have",
                help=f"devices here: {', '.join(here)}; device=auto lets flowinfer choose",
            )


def place(plan: Plan, machine: Machine, needs: Mapping[str, Need] | None = None) -> Plan:
    """Add needs, placements and waves to a plan.

    Args:
        plan: what runs.
        machine: where.
        needs: of every model, by name; read from configs if not given.

    Declared devices are kept, also where the machine lacks them. The others go to GPUs where there are any, else to the
    CPU, so that the busiest device reads as little as can be: heads of one step run side by side, and so do the stages
    of a flow over a data set. A model that fits on no GPU alone is split by layers over as few as hold it. Names of the
    same weights share one place.

    Raises:
        MemoryShort: a model, or the heads of one step, fit nowhere; says what fits.
    """
    needs = needs or {name: need_of(spec, device_kind=_kind(spec, machine)) for name, spec in plan.models.items()}
    packer = _Packer(plan, needs, machine)
    everything = tuple(step.id for step in plan.steps)
    lies = packer.assign([everything])
    if lies is not None:
        waves: tuple[Wave, ...] = (Wave(everything, tuple(plan.models)),)
    else:
        lies = packer.assign([[step] for step in everything])
        if lies is None:
            raise packer.short()
        waves = packer.waves(lies)
    return replace(plan, needs=needs, placements=packer.placements(lies, waves), waves=waves)


def device_reads(plan: Plan) -> dict[str, dict[str, int]]:
    """Return for each step of a placed plan what each device reads for one token of every row of a typical batch.

    Only steps of local models whose size is known are there.
    """
    found: dict[str, dict[str, int]] = {}
    for step in plan.steps:
        for name, count in _calls(plan, step).items():
            placement = plan.placements[name]
            if placement.device != "endpoint" and plan.needs[name].weight_bytes:
                own = found.setdefault(step.id, {})
                for device, part in placement.parts.items():
                    own[device] = own.get(device, 0) + int(part * count * read_bytes(plan.needs[name]))
    return found


class _Packer:
    """Fits a plan's models into a machine's devices."""

    def __init__(self, plan: Plan, needs: Mapping[str, Need], machine: Machine) -> None:
        self._plan, self._needs, self._machine = plan, needs, machine
        self._free = {device.name: device.free_bytes for device in machine.devices}
        self._units = self._make_units()

    def models_of(self, step_ids: Sequence[str]) -> tuple[str, ...]:
        """Return the models that some steps hold in memory, in order of appearance."""
        found = (name for step in step_ids for name in held_models(self._plan, self._plan.step(step)))
        return tuple(name for name in dict.fromkeys(found) if not _is_remote(self._plan.models[name]))

    def assign(self, groups: Sequence[Sequence[str]]) -> dict[str, Lie] | None:
        """Return how each model lies on devices so that the models of each of some sets of steps fit together."""
        held = [self._units_of(self.models_of(steps)) for steps in groups]
        units = [unit for unit in self._units if any(unit in group for group in held)]
        found = assign(units, groups, held, self._free, self._machine.slowness)
        return None if found is None else {name: found[unit.key] for unit in units for name in unit.names}

    def waves(self, lies: Mapping[str, Lie]) -> tuple[Wave, ...]:
        """Join neighbouring steps into waves as long as their models fit together."""
        waves: list[Wave] = []
        for step in self._plan.steps:
            joined = (*waves[-1].steps, step.id) if waves else (step.id,)
            if waves and min(self._rest(self.models_of(joined), lies).values(), default=0) >= 0:
                waves[-1] = Wave(joined, self.models_of(joined))
            else:
                waves.append(Wave((step.id,), self.models_of([step.id])))
        return tuple(waves)

    def placements(self, lies: Mapping[str, Lie], waves: Sequence[Wave]) -> dict[str, Placement]:
        """Say for each model where it lives and why."""
        placements: dict[str, Placement] = {}
        for name, spec in self._plan.models.items():
            if _is_remote(spec):
                placements[name] = Placement("endpoint", "-", spec.base_url or "")
                continue
            device = lies[name][0].device
            dtype = "float32" if spec.dtype == "auto" and device == "cpu" else spec.dtype
            stored = self._needs[name].stored or dtype
            split = lies[name] if len(lies[name]) > 1 else ()
            placements[name] = Placement(device, stored, self._why(name, lies, waves), split)
        return placements

    def short(self) -> MemoryShort:
        """Return the error that names the first step whose models fit nowhere."""
        steps = [step for step in self._plan.steps if self.assign([[step.id]]) is None]
        free = ", ".join(f"{device.name} {shown_bytes(device.free_bytes)} free" for device in self._machine.devices)
        step = steps[0] if steps else self._plan.steps[0]
        names = self.models_of([step.id])
        sizes = ", ".join(
            f"{name} {shown_bytes(self._needs[name].weight_bytes or 0)}{self._told(name)}" for name in names
        )
        what = f"the models of step {step.title} do not fit together" if len(names) > 1 else f"{names[0]} does not fit"
        return MemoryShort(
            f"{what}: {sizes}, with {_HEADROOM - 1:.0%} on top for keys and values; {free}{self._alone(step, names)}",
            help=self._cure(step, names),
        )

    def _alone(self, step: Step, names: Sequence[str]) -> str:
        """Return which of several models would fit alone, in words."""
        if len(names) == 1:
            return ""
        alone = {name: self._units_of([name]) for name in names}
        fitting = [name for name, own in alone.items() if assign(own, [[step.id]], [own], self._free)]
        return "; each alone fits" if fitting == list(names) else f"; alone fit: {', '.join(fitting) or 'none'}"

    def _told(self, name: str) -> str:
        """Return where a model is declared, in words."""
        device = self._plan.models[name].device
        return "" if device == "auto" else f" on {device if isinstance(device, str) else ' and '.join(device)}"

    def _cure(self, step: Step, names: Sequence[str]) -> str:
        specs = [self._plan.models[name] for name in names]
        wide = [spec.name for spec in specs if spec.dtype == "float32" or (spec.dtype == "auto" and not self._gpus)]
        wide = [name for name in wide if not self._needs[name].stored]
        cures = [self._freed(step, names)] if any(spec.device != "auto" for spec in specs) else []
        cures += [f"dtype=bfloat16 for {', '.join(wide)}"] if wide else []
        cures += (
            ['quantization="bnb-4bit"'] if self._gpus and not any(self._needs[name].stored for name in names) else []
        )
        cures += ["smaller models"]
        cures += ["device=cpu for one of them"] if self._gpus else []
        return "try " + ", ".join(cures)

    def _freed(self, step: Step, names: Sequence[str]) -> str:
        """Return the cure that no device is declared, and how the models then fit if they do."""
        models = {name: spec.model_copy(update={"device": "auto"}) for name, spec in self._plan.models.items()}
        plan = replace(self._plan, models=models)
        lies = _Packer(plan, self._needs, self._machine).assign([[step.id]])
        where = ", ".join(f"{name} on {' and '.join(share.device for share in lies[name])}" for name in names if lies)
        return f"device=auto ({where})" if lies else "device=auto"

    @property
    def _gpus(self) -> tuple[str, ...]:
        return tuple(name for name in self._free if name != "cpu")

    def _why(self, name: str, lies: Mapping[str, Lie], waves: Sequence[Wave]) -> str:
        devices = [share.device for share in lies[name]]
        if self._plan.models[name].device != "auto":
            missing = any(device not in self._free for device in devices)
            return "declared; this machine does not have it" if missing else "declared"
        if self._needs[name].weight_bytes is None:
            return "the device with most room; the model's size is not known yet"
        if len(devices) > 1:
            return "it fits on no GPU alone"
        rest = min(self._rest(wave.models, lies)[devices[0]] for wave in waves if name in wave.models)
        return f"{shown_bytes(max(rest, 0))} stay free there"

    def _rest(self, names: Sequence[str], lies: Mapping[str, Lie]) -> dict[str, int]:
        """Return what some models leave free on each device of this machine."""
        rest = dict(self._free)
        for unit in self._units_of(names):
            for share in lies[unit.names[0]]:
                if share.device in rest:
                    rest[share.device] -= int(share.part * unit.size)
        return rest

    def _units_of(self, names: Sequence[str]) -> list[Unit]:
        return [unit for unit in self._units if set(unit.names) & set(names)]

    def _make_units(self) -> tuple[Unit, ...]:
        names: dict[str, list[str]] = {}
        for name, spec in self._plan.models.items():
            if not _is_remote(spec):
                names.setdefault(self._weights(spec), []).append(name)
        return tuple(self._unit(content, tuple(same)) for content, same in names.items())

    def _weights(self, spec: ModelSpec) -> str:
        """Return what names with the same weights in memory have in common; heads that map one file share its pages."""
        if self._needs[spec.name].stored and spec.mmap:
            return f"{self._needs[spec.name].source} on {spec.device}"
        return spec.model_copy(update={"name": "", "think": "strip"}).model_dump_json()

    def _unit(self, content: str, names: tuple[str, ...]) -> Unit:
        need, device = self._needs[names[0]], self._plan.models[names[0]].device
        size = int((need.weight_bytes or 0) * _HEADROOM)
        reads = {
            step.id: read_bytes(need) * count
            for step in self._plan.steps
            if (count := sum(_calls(self._plan, step)[name] for name in names))
        }
        if not isinstance(device, str):
            return Unit(names, content, size, reads, device, _layers_of(need), is_split=True)
        if device != "auto":
            return Unit(names, content, size, reads, (_number(device),))
        layers = _layers_of(need) if backends()[self._plan.models[names[0]].backend].splits else None
        return Unit(names, content, size, reads, self._gpus or tuple(self._free), layers)


def _calls(plan: Plan, step: Step) -> Counter[str]:
    """Count how often a step calls each model: as its heads, and once as the one that drafts for them."""
    called = Counter(member.model for member in members(step.source))
    return called + Counter(name for name in held_models(plan, step) if name not in called)


def _layers_of(need: Need) -> Layers | None:
    """Return what of a model can lie apart; its output matrix is as large as its input embedding, if it has both."""
    if not need.layers:
        return None
    ends = 2 * need.embedding_bytes
    return Layers(need.layers, max(0, (need.weight_bytes or 0) - ends) // need.layers, ends)


def _number(device: str) -> str:
    """Return the name of a declared device on a machine, where all GPUs have numbers."""
    return "cuda:0" if device == "cuda" else device


def _is_remote(spec: ModelSpec) -> bool:
    return backends()[spec.backend].is_elsewhere


def _kind(spec: ModelSpec, machine: Machine) -> str:
    if spec.device != "auto":
        return "cpu" if spec.device == "cpu" else "cuda"  # splits are of GPUs
    return "cuda" if machine.gpus else "cpu"


def shown_bytes(count: int) -> str:
    """Write a size in memory."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
