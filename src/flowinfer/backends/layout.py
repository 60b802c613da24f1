"""A model larger than one GPU: its layers on several, one after another.

Embedding, last norm and output matrix stay on the first device, where ids go in and logits come out. What a layer reads
is moved to its device before it runs, and what the last one writes is brought back. A cache of keys and values needs
nothing: each layer's own begin where its keys are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from flowinfer.errors import LoadError
from flowinfer.spec import Share


def lay_out(model: Any, split: Sequence[Share]) -> None:  # a transformers model
    """Move a model that is on the CPU to several devices, so that it can be called as before.

    Raises:
        LoadError: its layers are not to be found.
    """
    layers = layers_of(model)
    homes = _homes(len(layers), split)
    if homes is None:
        raise LoadError(
            f"its {len(layers)} layers cannot be split over {', '.join(share.device for share in split)}",
            help="name one device, or fewer of them",
        )
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            module._apply(partial(_moved, device=homes[0]), recurse=False)
    for layer, home in zip(layers, homes, strict=True):
        layer.to(home)
        if home != homes[0]:
            layer.register_forward_pre_hook(partial(_bring, home), with_kwargs=True)
    layers[-1].register_forward_hook(partial(_bring_back, homes[0]))


def layers_of(model: Any) -> Sequence[nn.Module]:
    """Return the decoder layers of a transformers model, in their order; nothing where they are not in one list."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    stacks = (tuple(one) for one in model.modules() if isinstance(one, nn.ModuleList))
    return next((stack for stack in stacks if len(stack) == count), ())


def _homes(num_layers: int, split: Sequence[Share]) -> list[torch.device] | None:
    """Return each layer's device; evenly where the plan did not know the layers, None where they cannot be split."""
    counts = [share.layers for share in split]
    if not all(counts):
        counts = [num_layers * (k + 1) // len(split) - num_layers * k // len(split) for k in range(len(split))]
    if sum(counts) != num_layers or not all(counts):
        return None
    return [torch.device(share.device) for share, count in zip(split, counts, strict=True) for _ in range(count)]


def _bring(home: torch.device, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """Move what a layer is called with."""
    del layer
    return _moved(arguments, home), _moved(named, home)


def _bring_back(home: torch.device, layer: nn.Module, arguments: object, output: Any) -> Any:
    """Move what the last layer returns."""
    del layer, arguments
    return _moved(output, home)


def _moved(value: Any, device: torch.device) -> Any:
    """Return a value with all tensors in it on a device; what is no tensor, tuple, list or mapping stays."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if type(value) in (tuple, list):
        return type(value)(_moved(one, device) for one in value)
    if type(value) is dict:
        return {key: _moved(one, device) for key, one in value.items()}
    return value
