"""Linear layers that read the same input, computed as one: q, k, v and gate, up.

The first of them (`Lead`) multiplies with all weights stacked and leaves the others' parts for them to pick up; every
weight stays reachable under its own name. Where a model turns out to call them otherwise, `split_linears` undoes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Shared:
    """Parts on their way from the lead to those that follow it within one call of their parent."""

    parts: tuple[Tensor, ...] = ()


class Lead(nn.Module):
    """The first of several linear layers: computes them all.

    Args:
        linear: the stacked layer.
        sizes: output widths, its own first.
        shared: where the others' parts are left.
    """

    def __init__(self, linear: nn.Module, sizes: tuple[int, ...], shared: _Shared) -> None:
        super().__init__()
        self.linear = linear
        self.sizes = sizes
        self._shared = shared

    def forward(self, states: Tensor) -> Tensor:
        """Return the own part; leave the others: (..., D) -> (..., sizes[0])."""
        own, *others = self.linear(states).split(self.sizes, dim=-1)
        self._shared.parts = tuple(others)
        return own  # type: ignore[no-any-return]  # split is untyped


class Part(nn.Module):
    """A linear layer whose result the lead has computed; its own argument is that of the lead."""

    def __init__(self, shared: _Shared, index: int, *, is_last: bool) -> None:
        super().__init__()
        self._shared = shared
        self._index = index
        self._is_last = is_last

    def forward(self, states: Tensor) -> Tensor:
        """Return what the lead left: (..., D) -> (..., sizes[index + 1])."""
        part = self._shared.parts[self._index]
        if self._is_last:
            self._shared.parts = ()
        return part


def merge_linears(model: nn.Module) -> int:
    """Merge plain linear layers of equal input in every attention and feed-forward module; return how many merged."""
    merged = 0
    for module in list(model.modules()):
        for names in _TOGETHER:
            linears = [getattr(module, name, None) for name in names]
            if all(type(linear) is nn.Linear for linear in linears):
                _merge(module, names, linears)
                merged += 1
    return merged


def split_linears(model: nn.Module) -> None:
    """Undo `merge_linears`: each layer multiplies with its own part of the stacked weights again, which are kept."""
    for module in list(model.modules()):
        for names in _TOGETHER:
            lead = getattr(module, names[0], None)
            if isinstance(lead, Lead):
                _split(module, names, lead)


def _split(parent: nn.Module, names: tuple[str, ...], lead: Lead) -> None:
    stacked: Any = lead.linear
    weights = stacked.weight.data.split(lead.sizes)
    biases = (None,) * len(names) if stacked.bias is None else stacked.bias.data.split(lead.sizes)
    for name, weight, bias in zip(names, weights, biases, strict=True):
        own: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
        own.weight = nn.Parameter(weight, requires_grad=False)
        own.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        setattr(parent, name, own)


def _merge(parent: nn.Module, names: tuple[str, ...], linears: list[Any]) -> None:
    sizes = tuple(linear.out_features for linear in linears)
    first = linears[0]
    stacked = nn.Linear(
        first.in_features, sum(sizes), bias=first.bias is not None, device="meta", dtype=first.weight.dtype
    )
    stacked.weight = nn.Parameter(torch.cat([linear.weight.data for linear in linears]), requires_grad=False)
    if first.bias is not None:
        stacked.bias = nn.Parameter(torch.cat([linear.bias.data for linear in linears]), requires_grad=False)
    shared = _Shared()
    setattr(parent, names[0], Lead(stacked, sizes, shared))
    for index, name in enumerate(names[1:]):
        setattr(parent, name, Part(shared, index, is_last=index == len(names) - 2))
