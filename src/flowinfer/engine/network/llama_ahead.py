"""Compiling the kernels of models of Llama's kind while their weights are still on the way.

Which kernels a model needs follows from its config and the shapes in its files. Its forward is run over one layer of
tensors without memory, in the forms that checks and a first question take; other forms compile when they are met. What
is compiled already, here before or by the process beside this one, is brought to the device meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.known import merged_names
from flowinfer.backends.remembered import Numbers
from flowinfer.checkpoint import entries_of, read_config, weight_files
from flowinfer.engine.caches.attention import LayerShape
from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.launching import Ahead, hash_triton
from flowinfer.engine.caches.pages import PAGE, PagedForward
from flowinfer.engine.network import beside
from flowinfer.engine.network.llama_weights import LlamaWeights, read_weights
from flowinfer.errors import LoadError
from flowinfer.machine import model_folder
from flowinfer.spec import ModelSpec
from flowinfer.startup import STARTUP

_PROBE, _QUESTION = 4, 64
"""Tokens of the check's forwards, and of a short prompt."""
_POSITIONS = 4096
_META = torch.device("meta")


@dataclass(frozen=True)
class _Network:
    """One layer and the ends of a model, without memory."""

    weights: LlamaWeights
    shape: LayerShape


_begun: dict[torch.device, tuple[threading.Thread, Ahead]] = {}


def begin(models: Iterable[tuple[ModelSpec, str]]) -> None:
    """Begin to compile for models of Llama's kind in bfloat16, by the GPU that each goes to."""
    by_device: dict[torch.device, list[ModelSpec]] = {}
    for spec, name in models:
        by_device.setdefault(torch.device(name), []).append(spec)
    for device, specs in by_device.items():
        if device.type == "cuda" and device not in _begun and find_spec("triton") is not None:
            ahead = Ahead(device)
            thread = threading.Thread(target=_bring, args=(ahead, specs), daemon=True, name="kernels")
            _begun[device] = thread, ahead
            thread.start()


def settle() -> None:
    """Wait until what was begun is compiled, for all devices: no other kernel may be launched first meanwhile."""
    for device in tuple(_begun):
        thread, ahead = _begun.pop(device)
        thread.join()
        ahead.wait()


def _bring(ahead: Ahead, specs: Iterable[ModelSpec]) -> None:
    hash_triton()
    wrong = beside.wait()
    with STARTUP.waiting_for("compile", f"kernels here ({wrong})") if wrong else nullcontext():
        compile_for(ahead, specs)
        ahead.wait()


def compile_for(ahead: Ahead, specs: Iterable[ModelSpec]) -> None:
    """Begin to compile what models need."""
    for spec in specs:
        folder = model_folder(spec.ref, spec.revision) if spec.backend == "hf" and not spec.quantization else None
        try:
            held = {entry.name: entry for file in weight_files(folder) for entry in entries_of(file)} if folder else {}
            config = (read_config(folder) if folder else None) or {}
        except LoadError:
            continue  # the loader says so
        if config.get("model_type") in beside.KINDS and {entry.dtype for entry in held.values()} == {"BF16"}:
            shapes = {name: entry.shape for name, entry in held.items()}
            try:
                network = _without_memory(config, shapes)
            except (KeyError, TypeError, ValueError, ZeroDivisionError):
                continue  # the loader says what is wrong with it, or takes it for another kind
            with ahead.compiling(), torch.inference_mode():
                _run(network)


def _without_memory(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Network:
    """Return a model's first layer and its ends as tensors without memory, layers merged."""
    own = "model.layers.0."
    sizes = {name: tuple(shape) for name, shape in shapes.items() if not name.startswith("model.layers.1")}
    for together, names in list(merged_names(sizes, 0)):
        sizes[together] = (sum(sizes[name][0] for name in names), *sizes[names[0]][1:])
    named = {name: torch.empty(size, dtype=torch.bfloat16, device=_META) for name, size in sizes.items()}
    named.setdefault("lm_head.weight", named["model.embed_tokens.weight"])
    heads = int(config["num_attention_heads"])
    dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_heads = shapes[f"{own}self_attn.k_proj.weight"][0] // dim
    is_windowed = config["model_type"] == "mistral" or config.get("use_sliding_window")
    window = int(config.get("sliding_window") or 0) if is_windowed else 0
    numbers = Numbers(torch.empty(dim // 2, device=_META), 1.0, dim**-0.5, float(config.get("rms_norm_eps", 1e-6)))
    return _Network(read_weights(named, numbers), LayerShape(heads, kv_heads, dim, dim, window, 0.0))


def _run(network: _Network) -> None:
    """Run the forms that checks and a first question take."""
    from flowinfer.engine.network.llama_gpu import GpuLlamaForward

    forward = GpuLlamaForward(network.weights, [network.shape])
    half = network.shape.key_size // 2
    forward.tables.append(torch.empty(_POSITIONS, 2, half, dtype=torch.bfloat16, device=_META))
    most = forward.most_step_tokens
    states = forward.states(*_asked(network, _PROBE, splits_for(_PROBE)))
    forward.logits(states)
    forward.states(*_asked(network, _QUESTION, 1))
    forward.most_step_tokens = 0
    forward.states(*_asked(network, _PROBE, splits_for(_PROBE)))
    forward.states(*_asked(network, most + 1, 1))


def _asked(network: _Network, tokens: int, splits: int) -> tuple[Tensor, Tensor, Tensor, PagedForward]:
    """Return what a forward over so many tokens is asked."""
    shape = network.shape
    flat = torch.empty(tokens, dtype=torch.int64, device=_META)
    pages = torch.empty(1, shape.num_kv_heads, PAGE, shape.key_size, dtype=torch.bfloat16, device=_META)
    table = torch.empty(1, 1, dtype=torch.int32, device=_META)
    cache = PagedForward({0: (pages, pages)}, table, flat.int(), flat.int(), splits)
    return flat, flat, flat, cache
