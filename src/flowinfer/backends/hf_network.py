"""A transformers network and its weights: around those that were read ahead, unpacked, or loaded by transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.four_bit import load_packed
from flowinfer.backends.layout import lay_out
from flowinfer.backends.naming import naming
from flowinfer.backends.weights import Reading, network_around, take
from flowinfer.checkpoint import Held, read_folder
from flowinfer.errors import LoadError
from flowinfer.packing import packing_of
from flowinfer.spec import QUANTIZATIONS, QUANTIZERS, ModelSpec, Share


def dtype_of(spec: ModelSpec, device: str, dtype: str) -> str:
    """Return the dtype that a model is to have; "auto" = the checkpoint's own."""
    wanted = spec.dtype if dtype == "auto" else dtype
    return "float32" if wanted == "auto" and device == "cpu" else wanted


def without_weights(config: Any) -> Any:  # both transformers'
    """Return the network that a config describes, without making room for it."""
    from flowinfer.backends.theirs import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def num_numbers(network: Any) -> int:  # a transformers model
    """Count a network's parameters, and what else it makes tables of."""
    return sum(part.numel() for part in (*network.parameters(), *network.buffers()))


def filled(
    spec: ModelSpec,
    config: Any,
    empty: Any,
    held: Held,
    device: str,
    dtype: str,
    options: dict[str, Any],
    split: Sequence[Share],
) -> Any:  # untyped in transformers
    """Return a network with its weights, on its device.

    Args:
        config: transformers'.
        empty: the network without weights, if there is one.
        held: what its weight files hold; nothing = they are not there yet.
        options: for transformers to find it.
        split: where its layers go, if to several devices.
    Raises:
        LoadError: weights are missing, or quantized otherwise than is asked for.
    """
    wanted = dtype_of(spec, device, dtype)
    packing = packing_of(config.to_dict(), held.shapes)
    if packing:
        if spec.quantization:
            raise LoadError(
                f"model '{spec.name}' is stored in four bits already ({packing.method.upper()})",
                help="leave its quantization out",
            )
        held = held if held.files else _downloaded(spec)
        model, told = load_packed(config, held.files, packing, device, wanted, is_unpacked=device == "cpu")
        _refuse_holes(spec, told["missing_keys"])
        return _placed(model, spec, device, split)
    reading = take(spec, device)
    if reading and empty and (ready := _around_read_weights(spec, config, empty, reading, wanted)) is not None:
        return ready
    reading = None  # so that its weights make room for those that come the ordinary way
    arguments = {**options, "config": config, "use_safetensors": True, "dtype": wanted}
    if spec.quantization:
        arguments["quantization_config"] = _quantization(spec, device)
        arguments["device_map"] = {"": device}
    from flowinfer.backends.theirs import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(spec.ref, output_loading_info=True, **arguments)
    model, told = loaded
    _refuse_holes(spec, told["missing_keys"])
    return model.eval() if spec.quantization and not split else _placed(model, spec, device, split)


def around(
    spec: ModelSpec, config: Any, empty: Any, tensors: Mapping[str, Tensor], folder: Path, wanted: str
) -> Any | None:
    """Return a network around weights; None where it would not take them as they are."""
    from flowinfer.backends.theirs import GenerationConfig

    stated = getattr(config, "dtype", None) if wanted == "auto" else getattr(torch, wanted, None)
    if {one.dtype for one in tensors.values()} != {stated}:
        return None
    if not tensors.keys() <= empty.state_dict().keys():
        return None
    made = network_around(type(empty), config, tensors, wanted)
    if made is None:
        return None
    model, told = made
    _refuse_holes(spec, told["missing_keys"])
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.to(next(iter(tensors.values())).device).eval()


def _placed(model: Any, spec: ModelSpec, device: str, split: Sequence[Share]) -> Any:  # untyped in transformers
    """Move a network to its device, or its layers to their devices."""
    if split:
        with naming(spec):
            lay_out(model, split)
        return model.eval()
    return model.to(device).eval()


def _downloaded(spec: ModelSpec) -> Held:
    """Download a model's weights; return what they hold."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(spec.ref, revision=spec.revision, allow_patterns=["*.json", "*.safetensors"])
    return read_folder(Path(folder))


def _around_read_weights(spec: ModelSpec, config: Any, empty: Any, reading: Reading, wanted: str) -> Any | None:
    """Return a network around weights that were read ahead; None where it would not take them as they are."""
    try:
        tensors = reading.tensors()
    except Exception:  # short memory, a file that cannot be read: the ordinary way finds it again and says so
        return None
    return around(spec, config, empty, tensors, reading.files[0].parent, wanted)


def _refuse_holes(spec: ModelSpec, missing: Collection[str]) -> None:
    """Refuse weights that transformers would make up at random."""
    if missing:
        raise LoadError(
            f"model '{spec.name}': {len(missing)} weights are missing in '{spec.ref}', such as {min(missing)}",
            help="the download is incomplete, or config.json is another model's",
        )


def _quantization(spec: ModelSpec, device: str) -> Any:  # untyped in transformers
    from flowinfer.backends.theirs import BitsAndBytesConfig

    if spec.quantization not in QUANTIZATIONS:
        raise LoadError(
            f"model '{spec.name}': unknown quantization '{spec.quantization}'",
            help=f"known: {', '.join(QUANTIZATIONS)}; a checkpoint that is stored quantized needs no option",
        )
    if device == "cpu":
        raise LoadError(
            f"model '{spec.name}': quantization '{spec.quantization}' computes on a GPU, and the model lies on the CPU",
            help="leave its quantization out, or take an AWQ or GPTQ checkpoint, which is unpacked on a CPU",
        )
    if lacking := [name for name in QUANTIZERS if find_spec(name) is None]:
        raise LoadError(
            f"model '{spec.name}': quantization '{spec.quantization}' needs {' and '.join(lacking)}",
            help=f"pip install {' '.join(lacking)}, or take an AWQ or GPTQ checkpoint, which needs neither",
        )
    if spec.quantization == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
