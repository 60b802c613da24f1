"""Linear layers that read the same input, computed as one: q, k, v and gate, up.

The first of them (`Lead`) multiplies with all weights stacked and leaves the others' parts for them to pick up; every
weight stays reachable under its own name. Where a model turns out to call them otherwise, `split_linears` undoes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowinfer.backends.int4 import Int4Linear, can_join, joined, parts

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
            linears: list[Any] = [getattr(module, name, None) for name in names]
            if all(type(linear) is nn.Linear for linear in linears) and _are_alike(linears):
                _install(module, names, linears, _stacked(linears))
                merged += 1
            elif all(type(linear) is Int4Linear for linear in linears) and can_join(linears):
                _install(module, names, linears, joined(linears))
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
    if isinstance(stacked, Int4Linear):
        owns: list[Any] = list(parts(stacked, lead.sizes))
    else:
        weights = stacked.weight.data.split(lead.sizes)
        biases = (None,) * len(names) if stacked.bias is None else stacked.bias.data.split(lead.sizes)
        owns = [_plain(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    for name, own in zip(names, owns, strict=True):
        setattr(parent, name, own)


def _install(parent: nn.Module, names: tuple[str, ...], linears: list[Any], stacked: nn.Module) -> None:
    shared = _Shared()
    setattr(parent, names[0], Lead(stacked, tuple(linear.out_features for linear in linears), shared))
    for index, name in enumerate(names[1:]):
        setattr(parent, name, Part(shared, index, is_last=index == len(names) - 2))


def _are_alike(linears: list[Any]) -> bool:
    return len({linear.bias is None for linear in linears}) == 1


def _stacked(linears: list[Any]) -> nn.Linear:
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return _plain(torch.cat([linear.weight.data for linear in linears]), torch.cat(biases) if biases else None)


def _plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a plain layer that has a weight and a bias."""
    own: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    own.weight = nn.Parameter(weight, requires_grad=False)
    own.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return own  # type: ignore[no-any-return]
