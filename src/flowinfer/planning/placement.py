"""Where models live: what each needs against what the machine's devices have free.

Nothing is loaded. Models that cannot be resident together are served in waves: stage by stage over the whole data
set, loaded and freed in turn. Only the heads of one step must be resident together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flowinfer.errors import LoadError, MemoryShort
from flowinfer.machine import Machine
from flowinfer.planning.needs import need_of
from flowinfer.planning.plan import Need, Placement, Plan, Wave, compile, held_models
from flowinfer.registry import backends
from flowinfer.spec import Flow, ModelSpec

_HEADROOM = 1.15
"""Weights times this = room for a model with its keys, values and buffers, at least."""
_MOST_TRIES = 20_000
"""Assignments looked at before giving up; ten models on eight devices stay far below."""


def ready(flow: Flow, machine: Machine) -> Plan:
    """Compile and place a flow that is to run now.

    Raises:
        MemoryShort: see `place`.
        LoadError: a model is declared on a device that is not there.
    """
    plan = place(compile(flow), machine)
    here = [device.name for device in machine.devices]
    for name, spec in plan.models.items():
        placement = plan.placements[name]
        if spec.device != "auto" and placement.device not in (*here, "endpoint"):
            raise LoadError(
                f"model '{name}' is declared on {placement.device}, which this machine does not have",
                help=f"devices here: {', '.join(here)}; device=auto lets flowinfer choose",
            )
    return plan


def place(plan: Plan, machine: Machine) -> Plan:
    """Add needs, placements and waves to a plan.

    Declared devices are kept, also where the machine lacks them; the others go, largest model first, to the device
    with most room left: to a GPU where there is one, else to the CPU. Names of the same weights share one place.

    Raises:
        MemoryShort: a model, or the heads of one step, fit nowhere; says what fits.
    """
    needs = {name: need_of(spec, device_kind=_kind(spec, machine)) for name, spec in plan.models.items()}
    packer = _Packer(plan, needs, machine)
    everything = tuple(step.id for step in plan.steps)
    devices = packer.assign([packer.models_of(everything)])
    if devices is not None:
        waves: tuple[Wave, ...] = (Wave(everything, tuple(plan.models)),)
    else:
        devices = packer.assign([packer.models_of([step]) for step in everything])
        if devices is None:
            raise packer.short()
        waves = packer.waves(devices)
    return replace(plan, needs=needs, placements=packer.placements(devices, waves), waves=waves)


@dataclass(frozen=True)
class _Unit:
    """One set of weights, under all the names that the flow has for it."""

    names: tuple[str, ...]
    size: int
    """Bytes to keep free for it."""
    devices: tuple[str, ...]
    """Where it may go."""


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

    def assign(self, together: Sequence[Sequence[str]]) -> dict[str, str] | None:
        """Return a device for each model so that each of some sets of models fits together, or None."""
        groups = [[unit for unit in self._units if set(unit.names) & set(names)] for names in together]
        used: list[dict[str, int]] = [{} for _ in groups]
        search = _Search(self._units, groups, used, self._free)
        if not search.run(0):
            return None
        return {name: device for unit, device in search.chosen.items() for name in unit.names}

    def waves(self, devices: Mapping[str, str]) -> tuple[Wave, ...]:
        """Join neighbouring steps into waves as long as their models fit together."""
        waves: list[Wave] = []
        for step in self._plan.steps:
            joined = (*waves[-1].steps, step.id) if waves else (step.id,)
            if waves and self._fits(self.models_of(joined), devices):
                waves[-1] = Wave(joined, self.models_of(joined))
            else:
                waves.append(Wave((step.id,), self.models_of([step.id])))
        return tuple(waves)

    def placements(self, devices: Mapping[str, str], waves: Sequence[Wave]) -> dict[str, Placement]:
        """Say for each model where it lives and why."""
        placements: dict[str, Placement] = {}
        for name, spec in self._plan.models.items():
            if _is_remote(spec):
                placements[name] = Placement("endpoint", "-", spec.base_url or "")
                continue
            device = devices[name]
            is_float = spec.dtype == "auto" and device == "cpu"
            placements[name] = Placement(device, "float32" if is_float else spec.dtype, self._why(name, devices, waves))
        return placements

    def short(self) -> MemoryShort:
        """Return the error that names the first step whose models fit nowhere."""
        steps = [step for step in self._plan.steps if self.assign([self.models_of([step.id])]) is None]
        free = ", ".join(f"{device.name} {shown_bytes(device.free_bytes)} free" for device in self._machine.devices)
        step = steps[0] if steps else self._plan.steps[0]
        names = self.models_of([step.id])
        sizes = ", ".join(f"{name} {shown_bytes(self._needs[name].weight_bytes or 0)}" for name in names)
        what = f"the models of step {step.title} do not fit together" if len(names) > 1 else f"{names[0]} does not fit"
        return MemoryShort(
            f"{what}: {sizes}, with {_HEADROOM - 1:.0%} on top for keys and values; {free}",
            help=self._cure(names),
        )

    def _cure(self, names: Sequence[str]) -> str:
        specs = [self._plan.models[name] for name in names]
        wide = [spec.name for spec in specs if spec.dtype == "float32" or (spec.dtype == "auto" and not self._has_gpu)]
        cures = [f"dtype=bfloat16 for {', '.join(wide)}"] if wide else []
        cures += ['quantization="bnb-4bit"'] if self._has_gpu else []
        cures += ["device=auto" if any(spec.device != "auto" for spec in specs) else "", "smaller models"]
        cures += ["device=cpu for one of them"] if self._has_gpu else []
        return "try " + ", ".join(cure for cure in cures if cure)

    @property
    def _has_gpu(self) -> bool:
        return any(name != "cpu" for name in self._free)

    def _why(self, name: str, devices: Mapping[str, str], waves: Sequence[Wave]) -> str:
        device = devices[name]
        if self._plan.models[name].device != "auto":
            return "declared" if device in self._free else "declared; this machine does not have it"
        if self._needs[name].weight_bytes is None:
            return "the device with most room; the model's size is not known yet"
        rest = min(self._rest(device, wave.models, devices) for wave in waves if name in wave.models)
        return f"{shown_bytes(max(rest, 0))} stay free there"

    def _rest(self, device: str, names: Sequence[str], devices: Mapping[str, str]) -> int:
        there = [unit for unit in self._units if set(unit.names) & set(names) and devices[unit.names[0]] == device]
        return self._free.get(device, 0) - sum(unit.size for unit in there)

    def _fits(self, names: Sequence[str], devices: Mapping[str, str]) -> bool:
        used = {devices[name] for name in names} & set(self._free)
        return all(self._rest(device, names, devices) >= 0 for device in used)

    def _make_units(self) -> tuple[_Unit, ...]:
        names: dict[str, list[str]] = {}
        for name, spec in self._plan.models.items():
            if not _is_remote(spec):
                names.setdefault(spec.model_copy(update={"name": "", "think": "strip"}).model_dump_json(), []).append(
                    name
                )
        units = [self._unit(tuple(same)) for same in names.values()]
        return tuple(sorted(units, key=lambda unit: -unit.size))

    def _unit(self, names: tuple[str, ...]) -> _Unit:
        spec = self._plan.models[names[0]]
        size = int((self._needs[names[0]].weight_bytes or 0) * _HEADROOM)
        if spec.device != "auto":
            return _Unit(names, size, ("cuda:0" if spec.device == "cuda" else spec.device,))
        gpus = tuple(name for name in self._free if name != "cpu")
        return _Unit(names, size, gpus or tuple(self._free))


class _Search:
    """Depth-first search for devices, emptiest first, that keeps every group of units within free memory."""

    def __init__(
        self,
        units: Sequence[_Unit],
        groups: Sequence[Sequence[_Unit]],
        used: list[dict[str, int]],
        free: Mapping[str, int],
    ) -> None:
        self._units, self._free, self._used, self._groups = units, free, used, groups
        self._tries = 0
        self.chosen: dict[_Unit, str] = {}

    def run(self, index: int) -> bool:
        """Place the units from an index on; False where that cannot be done."""
        if index == len(self._units):
            return True
        unit = self._units[index]
        mine = [used for used, group in zip(self._used, self._groups, strict=True) if unit in group]
        for device in self._candidates(unit, mine):
            self._tries += 1
            if self._tries > _MOST_TRIES:
                return False
            for used in mine:
                used[device] = used.get(device, 0) + unit.size
            self.chosen[unit] = device
            if self.run(index + 1):
                return True
            for used in mine:
                used[device] -= unit.size
        return False

    def _candidates(self, unit: _Unit, mine: Sequence[Mapping[str, int]]) -> Iterator[str]:
        missing = [device for device in unit.devices if device not in self._free]
        yield from missing  # declared, not there: its memory is not known
        room = {
            device: min((self._free[device] - used.get(device, 0) for used in mine), default=self._free[device])
            for device in unit.devices
            if device in self._free
        }
        for device in sorted(room, key=lambda name: -room[name]):
            if room[device] >= unit.size:
                yield device


def _is_remote(spec: ModelSpec) -> bool:
    return backends()[spec.backend].text_only


def _kind(spec: ModelSpec, machine: Machine) -> str:
    if spec.device != "auto":
        return "cpu" if spec.device == "cpu" else "cuda"
    return "cuda" if any(device.name != "cpu" for device in machine.devices) else "cpu"


def shown_bytes(count: int) -> str:
    """Write a size in memory."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
