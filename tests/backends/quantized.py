"""Checkpoints of four bits as AWQ and GPTQ write them, made from tiny models; and what their weights stand for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.backends import tiny
from tests.fusion import toys

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantized."""

    method: str
    group: int = 32
    """-1 = all inputs of a layer."""
    is_symmetric: bool = False
    is_first_format: bool = True
    has_order: bool = False
    """Inputs are sorted into groups by how much they matter (act-order): at random, here."""

    @property
    def config(self) -> dict[str, Any]:
        if self.method == "awq":
            zero = {"zero_point": not self.is_symmetric, "version": "gemm"}
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, **zero}
        form = "gptq" if self.is_first_format else "gptq_v2"
        told = {"sym": self.is_symmetric, "desc_act": self.has_order, "checkpoint_format": form}
        return {"quant_method": "gptq", "bits": 4, "group_size": self.group, **told}


SCHEMES = (
    Scheme("awq", 32),
    Scheme("awq", 64, is_symmetric=True),
    Scheme("gptq", 32),
    Scheme("gptq", 128, is_symmetric=True),
    Scheme("gptq", 32, has_order=True),
    Scheme("gptq", 64, is_first_format=False, has_order=True, is_symmetric=True),
    Scheme("gptq", -1, is_first_format=False),
)


def words(numbers: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Pack eight neighbours along a dimension into an int32 word; place i holds neighbour order[i]."""
    eight = numbers.long().unflatten(dim, (-1, 8))
    word = torch.stack([eight.select(dim + 1, neighbour) << 4 * place for place, neighbour in enumerate(order)]).sum(0)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).int()


def quantized(weight: Tensor, scheme: Scheme, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize a weight (N, K); return a layer's tensors as they are stored, and the weight that they stand for."""
    outputs, inputs = weight.shape
    size = inputs if scheme.group == -1 else scheme.group
    index = torch.arange(inputs) // size
    if scheme.has_order:
        index = index[torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))]
    numbers, zeros, scales = [torch.empty(inputs, outputs)], [], []
    for group in range(int(index.max()) + 1):
        part = weight.T[index == group]  # (k, N)
        if scheme.is_symmetric:
            scale, zero = (part.abs().amax(0) / 7).half(), torch.full((outputs,), 8.0)
        else:
            least, most = part.amin(0).clamp(max=0), part.amax(0).clamp(min=0)
            scale = ((most - least) / 15).half()
            zero = (-least / scale).round().clamp(0, 15)
        numbers[0][index == group] = (part / scale + zero).round().clamp(0, 15)
        scales.append(scale)
        zeros.append(zero)
    number, zero, scale = numbers[0], torch.stack(zeros), torch.stack(scales)  # (K, N), (G, N), (G, N)
    if scheme.method == "awq":
        stored = {"qweight": words(number, 1, AWQ_ORDER), "qzeros": words(zero, 1, AWQ_ORDER), "scales": scale}
    else:
        shift = 0x11111111 if scheme.is_first_format else 0
        stored = {"qweight": words(number, 0), "qzeros": words(zero, 1) - shift, "scales": scale}
        stored["g_idx"] = index.int()
    return stored, ((number - zero[index]) * scale[index].float()).T.contiguous()


def folders(
    to: Path, scheme: Scheme, *, kind: str = "qwen2", network: Any = None, layers: str = r".*_proj\.weight"
) -> tuple[Path, Path]:
    """Write a tiny model quantized, and the same with the weights that it stands for; return both folders."""
    made = network or tiny.network(kind, toys.byte_level().get_vocab_size() + 3)
    packed, plain = to / "packed", to / "plain"
    for folder in (packed, plain):
        made.save_pretrained(folder)
        tiny.wrapped(toys.byte_level(), eos_token="<|im_end|>", chat_template=tiny.CHAT).save_pretrained(folder)
    weights = load_file(plain / "model.safetensors")
    stored: dict[str, Tensor] = dict(weights)
    for name, weight in weights.items():
        if re.fullmatch(layers, name):
            del stored[name]
            own, weights[name] = quantized(weight, scheme)
            stored |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in own.items()}
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    configure(packed, quantization_config=scheme.config)
    return packed, plain


def configure(folder: Path, **changes: Any) -> None:
    """Change a folder's config."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
