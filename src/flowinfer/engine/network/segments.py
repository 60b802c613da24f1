"""A model whose layers lie on several devices, as a chain: each link runs on one device and hands hidden states on.

A link is a view of the model: the same modules, without the layers of other links. The first one reads ids, the last
one, which may have no layers of its own, ends in the logits. That the chain gives the model's own logits is checked at
load like everything else.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from flowinfer.engine.network.probing import NotPackable


@dataclass(frozen=True)
class Segment:
    """A link of the chain; a model on one device is a chain of one."""

    device: torch.device
    first: int
    """Its first layer."""
    layers: Sequence[Any]
    """Transformers' modules, without hooks of the whole model."""
    network: Any
    """A view of the whole model of the last link, of its base model of the others."""
    is_last: bool


def segments_of(model: Any, cuts: Sequence[int] = ()) -> list[Segment]:  # a transformers model
    """Return a model's chain; of a model on one device nothing, it runs as it is.

    Args:
        model: whose layers may lie on several devices.
        cuts: the first layer of each further link, beside those that begin where the device changes.
    Raises:
        NotPackable: its layers are not to be found.
    """
    base, ends_at = model.base_model, model.get_output_embeddings().weight.device
    devices = list(dict.fromkeys(weight.device for weight in model.parameters()))
    if len(devices) == 1 and not cuts:
        return []
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    name = next((k for k, one in base.named_children() if isinstance(one, nn.ModuleList) and len(one) == count), None)
    if name is None:
        raise NotPackable("its layers are on several devices, and not to be found")
    layers = [_without_hooks(layer) for layer in getattr(base, name)]
    places = [(_device(layer), sum(index >= cut for cut in cuts)) for index, layer in enumerate(layers)]
    links = [
        (device, [index for index, _ in own]) for (device, _), own in groupby(enumerate(places), lambda one: one[1])
    ]
    found = []
    for device, indices in links:
        is_last = indices[-1] == count - 1 and device == ends_at
        own = [layers[index] for index in indices]
        found.append(_segment(model, name, device, indices[0], own, is_last=is_last))
    if not found[-1].is_last:
        found.append(_segment(model, name, ends_at, count, [], is_last=True))
    return found


def _segment(
    model: Any, name: str, device: torch.device, first: int, layers: Sequence[Any], *, is_last: bool
) -> Segment:
    """Make a link: what has no weights (rotary embeddings) goes with it, the last norm to the last one."""
    base, embedding = model.base_model, model.get_input_embeddings()
    inner = _view(base)
    for key, child in base.named_children():
        if key == name:
            inner._modules[key] = nn.ModuleList(layers)
        elif child is not embedding and not list(child.parameters()):
            inner._modules[key] = copy.deepcopy(child).to(device)
        elif child is not embedding and not is_last:
            inner._modules[key] = nn.Identity()
    if not is_last:
        return Segment(device, first, layers, inner, is_last=False)
    whole = _view(model)
    whole._modules[model.base_model_prefix] = inner
    return Segment(device, first, layers, whole, is_last=True)


def _view(module: Any) -> Any:
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


def _without_hooks(layer: Any) -> Any:
    """Return a layer without what moves its arguments between devices: a chain hands them on itself."""
    bare = copy.copy(layer)
    bare._forward_hooks, bare._forward_pre_hooks = OrderedDict(), OrderedDict()
    bare._forward_hooks_with_kwargs, bare._forward_pre_hooks_with_kwargs = OrderedDict(), OrderedDict()
    return bare


def _device(layer: Any) -> torch.device:
    return next(iter(layer.parameters())).device  # type: ignore[no-any-return]  # untyped


def run_segment(segment: Segment, states: Tensor, positions: Tensor, wanted: Tensor | None) -> Tensor:
    """Run a link in an active cache.

    Args:
        segment: the link.
        states: (T,) ids for the first link, (T, D) hidden states for the others; on its device.
        positions: (T,) int64, on its device.
        wanted: (W,), of which tokens the last link gives logits.
    Returns:
        (T, D) hidden states, or (W, V_k) logits.
    """
    given = {"input_ids": states[None]} if states.dim() == 1 else {"inputs_embeds": states[None]}
    asked = {**given, "position_ids": positions[None], "use_cache": False}
    if segment.is_last:
        return segment.network(**asked, logits_to_keep=wanted).logits[0]  # type: ignore[no-any-return]  # untyped
    return segment.network(**asked).last_hidden_state[0]  # type: ignore[no-any-return]  # untyped
