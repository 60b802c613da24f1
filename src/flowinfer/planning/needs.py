"""What a model asks of a machine: parameters, weights, keys and values; from config and files, never loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowinfer.checkpoint import Held, read_config, read_folder, refuse_larger
from flowinfer.machine import has_weights, hub_snapshot
from flowinfer.packing import loaded_bytes, num_weights, packing_of
from flowinfer.planning.plan import Need
from flowinfer.registry import backends
from flowinfer.spec import ModelSpec
from flowinfer.stores.gguf import read_gguf
from flowinfer.stores.refs import locate
from flowinfer.stores.stored import NotHere

_PROCESS_BYTES, _GPU_PROCESS_BYTES = 1 << 30, 4 << 30
"""Of a process beside its models; one that drives GPUs has more of its libraries in memory."""
_HEAD_ROOM = 1.25
"""Times its weights, that loading a model may take."""
TYPICAL_ROWS, TYPICAL_CONTEXT = 64, 512
"""The batch, and the ids of each row, that steps are weighed by."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KV_BYTES = {"float32": 4, "float16": 2, "q8_0": 34 / 32}
"""Of a number among the keys and values of a GGUF file."""

Config = Mapping[str, Any]
"""A parsed config.json, whose values may be of any JSON type."""


def need_of(spec: ModelSpec, *, device_kind: str = "cpu") -> Need:
    """Read what a model needs from its config, in its folder or the hub cache.

    Args:
        spec: the model.
        device_kind: "cpu" or "cuda"; decides what dtype "auto" means.
    Raises:
        LoadError: its folder is damaged.
    """
    if backends()[spec.backend].is_elsewhere:
        return Need(None, 0, None, 0, "served by an endpoint")
    if spec.backend == "gguf":
        return _from_gguf(spec)
    folder = Path(spec.ref) if os.path.isdir(spec.ref) else hub_snapshot(spec.ref, revision=spec.revision)
    config = read_config(folder) if folder else None
    if folder is not None and config is not None:
        is_whole = os.path.isdir(spec.ref) or has_weights(folder)  # a download may have stopped half way
        held = read_folder(folder) if is_whole else Held((), {})
        return _from_config(spec, config, folder, held, device_kind)
    if Path(spec.ref).is_absolute():
        kept = "its backend knows" if os.path.exists(spec.ref) else f"nothing at {spec.ref} yet"
        return Need(None, None, None, None, kept)
    known = _KNOWN.get(spec.ref)
    if known is None:
        return Need(None, None, None, None, "unknown until downloaded")
    width = _width(spec, "bfloat16", device_kind)
    weight = _quantized(spec, known.parameters * width)
    embedding = known.embedding * width
    download = known.parameters * 2
    return Need(
        known.parameters, weight, known.kv_values * width, download, "published config", known.layers, embedding
    )


def read_bytes(need: Need) -> int:
    """Return what a decoding step of a typical batch reads of a model: its weights, and all rows' keys and values."""
    weights = max(0, (need.weight_bytes or 0) - need.embedding_bytes)
    return weights + TYPICAL_ROWS * TYPICAL_CONTEXT * (need.kv_bytes_per_token or 0)


def _from_config(spec: ModelSpec, config: Config, folder: Path, held: Held, device_kind: str) -> Need:
    counted = count_parameters(config)
    refuse_larger(counted or 0, held, config)
    packing = packing_of(config, held.shapes)
    parameters = counted or (num_weights(held.shapes) if packing else held.num_numbers) or None
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    width = _width(spec, stored, device_kind)
    if held.files and packing:
        weight: int | None = loaded_bytes(held.shapes, width, is_unpacked=device_kind == "cpu")
    elif held.files and "quantization_config" in config:  # packed weights: only the files know
        weight = held.num_bytes
    else:
        weight = _quantized(spec, parameters * width) if parameters else None
    is_here = held.files or os.path.isdir(spec.ref)
    download = 0 if is_here else parameters * _BYTES.get(stored, 4) if parameters else None
    layers, embedding = _layers(config), _embedding_values(config) * width if counted else 0
    return Need(parameters, weight, _kv_bytes(config, width), download, f"config in {folder}", layers, embedding)


def _from_gguf(spec: ModelSpec) -> Need:
    try:
        found = read_gguf(locate(spec.ref, spec.revision).path)
    except NotHere:
        return Need(None, None, None, None, "unknown: not on this machine yet")
    layers, heads, width = (
        found.whole(key) or 0 for key in ("block_count", "attention.head_count", "embedding_length")
    )
    keys = found.whole("attention.key_length") or width // max(1, heads)
    values = found.whole("attention.value_length") or keys
    kind = spec.kv_type if spec.kv_type != "auto" else "float32" if found.is_float32 else "float16"
    per_token = int(layers * (found.whole("attention.head_count_kv") or heads) * (keys + values) * _KV_BYTES[kind])
    source = f"header of {found.parts[0]}"
    return Need(found.num_parameters, found.num_bytes, per_token, 0, source, stored=found.quantization)


def mapped_bytes(models: Iterable[ModelSpec], *, has_gpus: bool) -> int:
    """Return what processes that load the same models share of the files that they map on a CPU, in bytes."""
    found = dict[tuple[Path, ...], int]()
    for one in models:
        if one.backend == "gguf" and one.mmap and (one.device == "cpu" or not has_gpus):
            with suppress(NotHere):
                file = read_gguf(locate(one.ref, one.revision).path)
                found[file.parts] = file.shared_bytes
    return sum(found.values())


def process_bytes(models: Iterable[ModelSpec], *, has_gpus: bool) -> int | None:
    """Return what a process that holds models needs of the CPU's memory for itself, with head-room; None = unknown.

    Files that several processes map are not in it (`mapped_bytes`); keys and values of a typical batch are: where there
    is less, a batch has fewer rows.
    """
    on_cpu = {
        (one.backend, one.ref, one.revision, one.dtype, one.quantization): one
        for one in models
        if not has_gpus or one.device == "cpu"
    }
    found = float(_GPU_PROCESS_BYTES if has_gpus else _PROCESS_BYTES)
    for one in on_cpu.values():
        need = need_of(one)
        if need.weight_bytes is None:
            return None
        own = max(0, need.weight_bytes - mapped_bytes([one], has_gpus=has_gpus))
        found += _HEAD_ROOM * own + TYPICAL_ROWS * TYPICAL_CONTEXT * (need.kv_bytes_per_token or 0)
    return int(found)


def count_parameters(config: Config) -> int | None:
    """Count the parameters of a decoder from its config; None for architectures that it does not know.

    Knows the Llama family (Llama, Mistral, Yi, Qwen2, Qwen3, Gemma, Gemma 2, Phi-3, Granite) and GPT-2.
    """
    kind = config.get("model_type")
    try:
        if kind == "gpt2":
            return _count_gpt2(config)
        return _count_llama(config, kind) if kind in _LLAMA_FAMILY else None
    except (KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None


_LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "granite")


def _count_gpt2(config: Config) -> int:
    shape = _Shape.of(config)
    hidden, layers = shape.hidden, shape.layers
    inner = config.get("n_inner") or 4 * hidden
    attention = 4 * hidden * hidden + 4 * hidden
    feed_forward = 2 * hidden * inner + inner + hidden
    embeddings = (config["vocab_size"] + config.get("n_positions", 1024)) * hidden
    return int(embeddings + layers * (attention + feed_forward + 4 * hidden) + 2 * hidden)


def _count_llama(config: Config, kind: str) -> int:
    shape = _Shape.of(config)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.hidden * (queries + 2 * keys) + queries * shape.hidden
    if kind == "qwen2":
        attention += queries + 2 * keys
    elif config.get("attention_bias"):
        attention += queries + 2 * keys + shape.hidden
    if kind == "qwen3":
        attention += 2 * shape.head_dim
    feed_forward = 3 * shape.hidden * shape.inner
    if config.get("mlp_bias"):
        feed_forward += 2 * shape.inner + shape.hidden
    norms = (4 if kind == "gemma2" else 2) * shape.hidden
    embeddings = config["vocab_size"] * shape.hidden + _embedding_values(config)
    return int(embeddings + shape.layers * (attention + feed_forward + norms) + shape.hidden)


def _embedding_values(config: Config) -> int:
    """Return the numbers of the input embedding of a Llama or GPT-2; 0 where it is the output matrix too."""
    kind = config.get("model_type")
    is_tied = config.get("tie_word_embeddings", kind in ("gemma", "gemma2", "gpt2"))
    return 0 if is_tied else int(config["vocab_size"] * _Shape.of(config).hidden)


def _layers(config: Config) -> int | None:
    try:
        return _Shape.of(config).layers
    except (KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None


@dataclass(frozen=True)
class _Shape:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Config) -> _Shape:
        hidden = config.get("hidden_size") or config["n_embd"]
        heads = config.get("num_attention_heads") or config["n_head"]
        sizes = (
            hidden,
            config.get("intermediate_size") or 4 * hidden,
            config.get("num_hidden_layers") or config["n_layer"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
        )
        if not all(type(size) is int and size > 0 for size in sizes):
            raise TypeError("a size is no number")
        return cls(*sizes)


def _kv_bytes(config: Config, width: int) -> int | None:
    try:
        shape = _Shape.of(config)
    except (KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * width


def _width(spec: ModelSpec, stored: str, device_kind: str) -> int:
    if spec.dtype != "auto":
        return _BYTES[spec.dtype]
    return 4 if device_kind == "cpu" else _BYTES.get(stored, 4)


def _quantized(spec: ModelSpec, weight_bytes: int) -> int:
    share = {"bnb-8bit": 0.55, "bnb-4bit": 0.35}.get(spec.quantization or "", 1.0)
    return int(weight_bytes * share)


@dataclass(frozen=True)
class _Published:
    parameters: int
    kv_values: int
    """Numbers kept per token of context."""
    layers: int
    embedding: int
    """Numbers of the input embedding."""


_KNOWN: Mapping[str, _Published] = {
    "Qwen/Qwen2.5-7B-Instruct": _Published(7_615_616_512, 28_672, 28, 544_997_376),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _Published(7_615_616_512, 28_672, 28, 544_997_376),
    "01-ai/Yi-1.5-9B-Chat": _Published(8_829_407_232, 49_152, 48, 262_144_000),
}
"""The zoo `paper`, from the published configs, for a plan before the download."""
