"""Checkpoints of four bits, AWQ and GPTQ, read from their safetensors without the libraries that wrote them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowinfer.backends.int4 import Int4Linear, from_awq, from_gptq
from flowinfer.errors import LoadError
from flowinfer.packing import WORDS, Packing


class _Stored:
    """The tensors of a checkpoint's files, read one by one."""

    def __init__(self, files: tuple[Path, ...], stack: ExitStack) -> None:
        opened: list[Any] = [stack.enter_context(safe_open(path, framework="pt")) for path in files]  # untyped
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118  # it has no iterator

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def get(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            LoadError: there is none of that name.
        """
        if name not in self._files:
            raise LoadError(
                f"the weight files lack {name}", help="the download is incomplete, or a file is another model's"
            )
        return self._files[name].get_tensor(name)  # type: ignore[no-any-return]

    def find(self, name: str) -> Tensor | None:
        """Return a tensor, None where there is none of that name."""
        return self.get(name) if name in self._files else None


def load_packed(
    config: Any, files: tuple[Path, ...], packing: Packing, device: str, dtype: str, *, is_unpacked: bool
) -> tuple[Any, Mapping[str, Any]]:  # a transformers config, model and what it tells of its loading
    """Load a model whose weights are packed.

    Linear layers keep their weights packed; what else is packed, such as experts, is unpacked. Transformers loads the
    model as any other: a weight that stays packed is a single zero there, seen as a matrix, until its layer is put in
    its place.

    Args:
        config: the checkpoint's.
        files: its weight files.
        packing: how they are packed.
        device: `cpu` or `cuda:N`; only what stays packed goes there.
        dtype: of what is not packed; "auto" = what the config says.
        is_unpacked: unpack linear layers too.
    Raises:
        LoadError: a layer lacks a part, or its parts do not fit.
    """
    from flowinfer.backends.theirs import AutoModelForCausalLM

    config = copy.deepcopy(config)
    del config.quantization_config
    wanted = (config.dtype or torch.float16) if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    linears = {name for name, module in network.named_modules() if type(module) is nn.Linear}
    kept: dict[str, Int4Linear] = {}
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stored = _Stored(files, stack)
        packed = [name.removesuffix(WORDS) for name in stored.names if name.endswith(WORDS)]
        parts = {f"{layer}.{part}" for layer in packed for part in ("qweight", "qzeros", "scales", "g_idx")}
        for name in stored.names:
            if name not in parts:
                weights[name] = stored.get(name)
        for layer in packed:
            own = _read(stored, layer, packing, device)
            if is_unpacked or layer not in linears:
                weights[f"{layer}.weight"] = own.unpacked(wanted).to("cpu")
            else:
                kept[layer] = own
                weights[f"{layer}.weight"] = torch.zeros((), dtype=wanted).expand(own.out_features, own.in_features)
        model, told = type(network).from_pretrained(
            None, config=config, state_dict=weights, dtype=wanted, output_loading_info=True
        )
        for layer in packed:
            _keep_bias(model, layer, weights.get(f"{layer}.bias"))
        for layer, own in kept.items():
            own.bias = model.get_submodule(layer).bias
            model.set_submodule(layer, own)
    return model, told


def _keep_bias(model: Any, layer: str, bias: Tensor | None) -> None:  # a transformers model
    """Give a layer a bias that its architecture has not: some quantizers store one, mostly of zeros."""
    if bias is not None and bias.any() and layer in dict(model.named_modules()):
        module = model.get_submodule(layer)
        if module.bias is None:
            module.bias = nn.Parameter(bias.to(module.weight.dtype), requires_grad=False)


def _read(stored: _Stored, layer: str, packing: Packing, device: str) -> Int4Linear:
    """Read one layer, to a device.

    Raises:
        LoadError: it lacks a part, or its parts do not fit.
    """
    qweight, qzeros, scales = (stored.get(f"{layer}.{part}").to(device) for part in ("qweight", "qzeros", "scales"))
    index = stored.find(f"{layer}.g_idx")
    try:
        if packing.needs_order and index is None:
            raise ValueError("no groups (g_idx), and desc_act says that they do not lie in order")
        if f"{layer}.weight" in stored.names:
            raise ValueError("a weight that is not packed beside the packed one")
        if packing.method == "awq":
            return from_awq(qweight, qzeros, scales, None, packing.group)
        groups = None if index is None else index.to(device)
        return from_gptq(qweight, qzeros, scales, groups, None, packing.group, is_first_format=packing.is_first_format)
    except ValueError as error:
        raise LoadError(
            f"{layer} is not what config.json says: {error}", help="config.json is another model's"
        ) from error
