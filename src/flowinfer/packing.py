"""How a checkpoint's weights of four bits are packed, from its config and the names of its tensors; nothing is loaded.

AWQ and GPTQ checkpoints are read by flowinfer itself. What is stored otherwise is refused here with its reason, or left
to transformers and the library that it asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowinfer.errors import LoadError

WORDS = ".qweight"
"""How the names of packed weights end; a layer's other parts lie beside them."""
GROUPS = (32, 64, 128, 256)
"""Inputs that may share a scale, beside all of a layer."""
WHOLE = 1 << 30
"""A group of all inputs, however many."""
_CURE = 'take an AWQ or GPTQ checkpoint of four bits, or the model\'s own weights with quantization="bnb-4bit"'
_FORMATS = {"awq": ("gemm",), "gptq": ("gptq", "gptq_v2")}


@dataclass(frozen=True)
class Packing:
    """How the weights of four bits of one checkpoint are stored."""

    method: Literal["awq", "gptq"]
    group: int
    """Inputs that share a scale and a zero point; WHOLE = all of a layer."""
    is_first_format: bool
    """Whether one was taken off every zero point (GPTQ's first format)."""
    needs_order: bool = False
    """Whether inputs that share a scale lie apart, so that a layer must say which (`g_idx`)."""


def packing_of(config: Mapping[str, Any], names: Mapping[str, object]) -> Packing | None:
    """Return how a checkpoint's weights of four bits are packed, None where they are not, or others read them.

    Args:
        config: its config.json.
        names: of its tensors, as far as they are known.
    Raises:
        LoadError: it is packed as flowinfer does not read it.
    """
    told = config.get("quantization_config")
    if not isinstance(told, Mapping):
        if any(name.endswith(WORDS) for name in names):
            raise LoadError(
                "the weights are packed, and config.json does not say how",
                help="put the checkpoint's quantization_config into config.json (it may lie in quantize_config.json)",
            )
        return None
    method = told.get("quant_method")
    if not isinstance(told.get("quant_method"), str):
        raise LoadError(
            f"the quantization_config of its config.json has the quant_method {method!r}",
            help='it must be a word, such as "awq" or "gptq"',
        )
    if method not in _FORMATS:
        return None
    bits, group = told.get("bits"), told.get("group_size", 128)
    form = str(told.get("version" if method == "awq" else "checkpoint_format") or _FORMATS[method][0]).lower()
    if bits != 4:
        raise LoadError(f"its {method.upper()} weights have {bits} bits, flowinfer reads four", help=_CURE)
    if told.get("is_marlin_format") or form not in _FORMATS[method]:
        form = "marlin" if told.get("is_marlin_format") else form
        raise LoadError(
            f"its {method.upper()} weights are packed as '{form}', "
            f"flowinfer reads {' and '.join(repr(one) for one in _FORMATS[method])}",
            help=_CURE,
        )
    if not isinstance(group, int) or group not in (-1, *GROUPS):
        known = ", ".join(map(str, GROUPS))
        raise LoadError(
            f"its {method.upper()} weights have groups of {group}, flowinfer reads {known} and -1", help=_CURE
        )
    needs_order = method == "gptq" and bool(told.get("desc_act")) and group != -1
    return Packing(method, WHOLE if group == -1 else group, form == "gptq", needs_order)


def num_weights(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the weights that a packed checkpoint stands for."""
    plain = (shape for name, shape in shapes.items() if not name.endswith((WORDS, ".qzeros", ".scales", ".g_idx")))
    return sum(map(math.prod, plain)) + sum(8 * math.prod(shape) for name, shape in shapes.items() if _is_packed(name))


def loaded_bytes(shapes: Mapping[str, tuple[int, ...]], width: int, *, is_unpacked: bool) -> int:
    """Return the bytes that a packed checkpoint takes once it is loaded.

    Args:
        shapes: of its tensors.
        width: bytes of a number that is not packed.
        is_unpacked: whether all is unpacked when it is loaded, as on a CPU; experts are anywhere.
    """
    if is_unpacked:
        return width * num_weights(shapes)
    total = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if ".experts." in name:
            total += 8 * width * count if _is_packed(name) else 0
        else:
            total += count * (4 if _is_packed(name) else 8 if name.endswith((".qzeros", ".g_idx")) else width)
    return total


def _is_packed(name: str) -> bool:
    return name.endswith(WORDS)
