"""Where models live: what each needs, read from its config, against what the machine's devices have free.

Nothing is loaded. Models that cannot be resident together are served in waves: stage by stage over the whole data
set, loaded and freed in turn. Only the heads of one step must be resident together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowinfer.errors import MemoryShort
from flowinfer.machine import Device, Machine, hub_folder
from flowinfer.plan import Need, Placement, Plan, Wave, members
from flowinfer.registry import backends
from flowinfer.spec import ModelSpec

_HEADROOM = 1.15
"""Weights times this = room for a model with its keys, values and buffers, at least."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def place(plan: Plan, machine: Machine) -> Plan:
    """Add needs, placements and waves to a plan.

    Declared devices are kept; the others go, largest model first, to the device with most room left.

    Raises:
        MemoryShort: a model, or the heads of one step, fit nowhere; says what fits.
    """
    needs = {name: need_of(spec, device_kind=_kind(spec, machine)) for name, spec in plan.models.items()}
    local = [name for name in plan.models if not backends()[plan.models[name].backend].text_only]
    packer = _Packer(plan, needs, machine)
    whole = packer.try_pack(local)
    if whole is not None:
        waves: tuple[Wave, ...] = (Wave(tuple(step.id for step in plan.steps), tuple(plan.models)),)
        return replace(plan, needs=needs, placements=packer.with_remote(whole), waves=waves)
    placements, waves = packer.waves()
    return replace(plan, needs=needs, placements=packer.with_remote(placements), waves=waves)


def need_of(spec: ModelSpec, *, device_kind: str = "cpu") -> Need:
    """Read what a model needs from its config, in its folder or the hub cache."""
    if backends()[spec.backend].text_only:
        return Need(None, 0, None, 0, "served by an endpoint")
    folder = Path(spec.ref) if Path(spec.ref).is_dir() else hub_folder(spec.ref, revision=spec.revision)
    config = _config(folder)
    if folder is None or config is None:
        known = _KNOWN.get(spec.ref)
        if known is None:
            return Need(None, None, None, None, "unknown until downloaded")
        parameters, kv = known
        return Need(
            parameters,
            parameters * _width(spec, "bfloat16", device_kind),
            kv,
            parameters * 2,
            "known figures",
        )
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    counted = count_parameters(config)
    width = _width(spec, str(config.get("dtype") or config.get("torch_dtype") or "float32"), device_kind)
    per_token = _kv_bytes(config, width)
    weight = counted * width if counted else stored
    return Need(counted, _quantized(spec, weight), per_token, 0, f"config in {folder}")


def count_parameters(config: Mapping[str, Any]) -> int | None:
    """Count the parameters of a decoder from its config; None for architectures that it does not know.

    Knows the Llama family (Llama, Mistral, Yi, Qwen2, Qwen3, Gemma, Phi-3) and GPT-2.
    """
    kind = config.get("model_type")
    if kind == "gpt2":
        hidden, layers = config["n_embd"], config["n_layer"]
        inner = config.get("n_inner") or 4 * hidden
        layer = 4 * hidden * hidden + 4 * hidden + 2 * hidden * inner + inner + hidden + 4 * hidden
        positions = config.get("n_positions", 1024)
        return int((config["vocab_size"] + positions) * hidden + layers * layer + 2 * hidden)
    if kind not in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"):
        return None
    shape = _Shape.of(config)
    attention = shape.hidden * shape.head_dim * (shape.heads + 2 * shape.kv_heads)
    attention += shape.heads * shape.head_dim * shape.hidden
    if kind == "qwen2" or config.get("attention_bias"):
        attention += shape.head_dim * (shape.heads + 2 * shape.kv_heads)
        attention += shape.hidden if config.get("attention_bias") and kind != "qwen2" else 0
    norms = 4 if kind == "gemma2" else 2
    layer = attention + 3 * shape.hidden * shape.inner + norms * shape.hidden
    layer += 2 * shape.head_dim if kind == "qwen3" else 0
    if config.get("mlp_bias"):
        layer += 2 * shape.inner + shape.hidden
    tied = config.get("tie_word_embeddings", kind in ("gemma", "gemma2"))
    embeddings = config["vocab_size"] * shape.hidden * (1 if tied else 2)
    return int(embeddings + shape.layers * layer + shape.hidden)


@dataclass(frozen=True)
class _Shape:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Shape:
        hidden = config.get("hidden_size") or config["n_embd"]
        heads = config.get("num_attention_heads") or config["n_head"]
        return cls(
            hidden,
            config.get("intermediate_size") or 4 * hidden,
            config.get("num_hidden_layers") or config["n_layer"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
        )


class _Packer:
    """Try to fit models into devices."""

    def __init__(self, plan: Plan, needs: Mapping[str, Need], machine: Machine) -> None:
        self._plan, self._needs, self._machine = plan, needs, machine

    def try_pack(self, names: Sequence[str]) -> dict[str, Placement] | None:
        """Place models together, or return None where they do not fit."""
        room = {device.name: device.free_bytes for device in self._machine.devices}
        placements: dict[str, Placement] = {}
        for name in sorted(names, key=lambda n: -(self._needs[n].weight_bytes or 0)):
            spec, size = self._plan.models[name], int((self._needs[name].weight_bytes or 0) * _HEADROOM)
            device = self._choose(spec, size, room)
            if device is None:
                return None
            room[device] = room.get(device, 0) - size
            why = "declared" if spec.device != "auto" else f"{_gigabytes(max(room[device], 0))} stay free there"
            placements[name] = Placement(device, _dtype(spec, device), why)
        return placements

    def waves(self) -> tuple[dict[str, Placement], tuple[Wave, ...]]:
        """Group steps into waves whose models fit together."""
        placements: dict[str, Placement] = {}
        waves: list[Wave] = []
        for step in self._plan.steps:
            own = self._local(step.id)
            joined = tuple(dict.fromkeys([*(waves[-1].models if waves else ()), *own]))
            if waves and (together := self.try_pack(joined)) is not None and _agree(placements, together, waves[-1]):
                waves[-1] = Wave((*waves[-1].steps, step.id), joined)
                placements |= together
                continue
            alone = self.try_pack(own)
            if alone is None:
                raise self._short(own, step.title)
            moved = {name: placements.get(name, placement) for name, placement in alone.items()}
            placements |= moved
            waves.append(Wave((step.id,), tuple(own)))
        return placements, tuple(waves)

    def with_remote(self, placements: Mapping[str, Placement]) -> dict[str, Placement]:
        """Add the models that endpoints serve."""
        remote = {
            name: Placement("endpoint", "-", spec.base_url or "")
            for name, spec in self._plan.models.items()
            if name not in placements
        }
        return {name: (dict(placements) | remote)[name] for name in self._plan.models}

    def _local(self, step_id: str) -> list[str]:
        names = dict.fromkeys(member.model for member in members(self._plan.step(step_id).source))
        return [name for name in names if not backends()[self._plan.models[name].backend].text_only]

    def _choose(self, spec: ModelSpec, size: int, room: Mapping[str, int]) -> str | None:
        if spec.device != "auto":
            declared = "cuda:0" if spec.device == "cuda" else spec.device
            return declared if room.get(declared, size) >= size else None
        gpus = [name for name in room if name != "cpu"]
        fits = [name for name in gpus or room if room[name] >= size]
        return max(fits, key=lambda name: room[name]) if fits else None

    def _short(self, names: Sequence[str], title: str) -> MemoryShort:
        sizes = ", ".join(f"{name} {_gigabytes(self._needs[name].weight_bytes or 0)}" for name in names)
        free = ", ".join(f"{device.name} {_gigabytes(device.free_bytes)} free" for device in self._machine.devices)
        return MemoryShort(
            f"the models of step {title} do not fit together: {sizes}; {free}",
            help="use dtype=bfloat16, quantization, smaller models, or device=cpu for one of them",
        )


def _agree(before: Mapping[str, Placement], after: Mapping[str, Placement], wave: Wave) -> bool:
    return all(before[name].device == after[name].device for name in wave.models if name in before)


def _kind(spec: ModelSpec, machine: Machine) -> str:
    if spec.device != "auto":
        return "cpu" if spec.device == "cpu" else "cuda"
    return "cuda" if any(_is_gpu(device) for device in machine.devices) else "cpu"


def _is_gpu(device: Device) -> bool:
    return device.name != "cpu"


def _dtype(spec: ModelSpec, device: str) -> str:
    return "float32" if spec.dtype == "auto" and device == "cpu" else spec.dtype


def _width(spec: ModelSpec, stored: str, device_kind: str) -> int:
    wanted = spec.dtype if spec.dtype != "auto" else ("float32" if device_kind == "cpu" else stored)
    return _BYTES.get(wanted.removeprefix("torch."), 4)


def _quantized(spec: ModelSpec, weight_bytes: int) -> int:
    share = {"bnb-8bit": 0.55, "bnb-4bit": 0.35}.get(spec.quantization or "", 1.0)
    return int(weight_bytes * share)


def _kv_bytes(config: Mapping[str, Any], width: int) -> int | None:
    try:
        shape = _Shape.of(config)
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * width


def _config(folder: Path | None) -> Mapping[str, Any] | None:
    path = folder / "config.json" if folder else None
    if path is None or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


_KNOWN: Mapping[str, tuple[int, int]] = {
    "Qwen/Qwen2.5-7B-Instruct": (7_615_616_512, 57_344),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (7_615_616_512, 57_344),
    "01-ai/Yi-1.5-9B-Chat": (8_829_407_232, 98_304),
}
"""Parameters, and bytes of keys and values per token in bfloat16, of the zoo `paper`, from the published configs."""
