"""Linear layers whose weights stay packed, four of four bits in a word.

A weight is (q - zero) x scale, q and zero whole numbers from 0 to 15, scale and zero shared by the inputs of a group.
AWQ and GPTQ store this in orders of their own; here there is one order, in which a kernel finds the four numbers of a
word far apart among the inputs: each of them belongs to another tile of a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PLANES = 4
"""Numbers of a word."""
ROW = 32
"""Words of an output in one block of inputs: number p of word w of block b belongs to input (4 b + p) 32 + w."""
BLOCK = PLANES * ROW
"""Inputs of a block."""
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours stands at each place of an AWQ word."""
_ONES = 0x11111111
"""What GPTQ's first format takes off a word of eight zero points."""


@dataclass(frozen=True)
class Packed:
    """A weight of four bits without a layer around it; parts as of `Int4Linear`."""

    words: Tensor
    scales: Tensor
    zeros: Tensor
    group: int
    shape: tuple[int, int]
    """(N, K), K before padding."""


class Int4Linear(nn.Module):
    """x -> x W^T + b, W unpacked for every call.

    Args:
        words: (N, K / 4) int16, K padded to whole blocks.
        scales: (N, G), G groups of the padded inputs.
        zeros: (N, G) uint8.
        bias: (N,) or None.
        group: inputs per group, a multiple of 32.
        in_features: K, before padding.
        order: (K,) int64, the input that each column of W belongs to; None = as they come.
    """

    def __init__(
        self,
        words: Tensor,
        scales: Tensor,
        zeros: Tensor,
        bias: Tensor | None,
        *,
        group: int,
        in_features: int,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.words, self.scales, self.zeros = _kept(words), _kept(scales), _kept(zeros)
        self.bias = None if bias is None else _kept(bias)
        self.order = None if order is None else _kept(order)
        self.group, self.in_features, self.out_features = group, in_features, words.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return functional.linear(self.ordered(x), self.weight(x.dtype), self.bias)

    def packed(self) -> Packed:
        """Return W, whose columns are in their own order."""
        return Packed(self.words, self.scales, self.zeros, self.group, (self.out_features, self.in_features))

    def ordered(self, x: Tensor) -> Tensor:
        """Return inputs in the order of W's columns, of the same shape."""
        return x if self.order is None else x.index_select(-1, self.order)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return W with its columns in their own order, (N, K)."""
        numbers = _numbers(self.words.view(self.out_features, -1, 1, ROW), 2, PLANES).flatten(1)  # (N, K)
        scales, zeros = (
            one.repeat_interleave(self.group, dim=1)[:, : self.in_features] for one in (self.scales, self.zeros)
        )  # of each input; the last group may be cut short
        weight: Tensor = ((numbers[:, : self.in_features] - zeros.char()) * scales.float()).to(dtype)
        return weight

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Return the weight of a plain layer that does the same, (N, K)."""
        weight = self.weight(dtype)
        return weight if self.order is None else torch.empty_like(weight).index_copy_(1, self.order, weight)


def can_join(linears: Sequence[Int4Linear]) -> bool:
    """Return whether layers of one input can be stacked: their groups hold the same inputs."""
    first, *others = linears
    return all(
        one.group == first.group
        and one.in_features == first.in_features
        and one.scales.dtype == first.scales.dtype
        and (one.bias is None) == (first.bias is None)
        and _are_equal(one.order, first.order)
        for one in others
    )


def joined(linears: Sequence[Int4Linear]) -> Int4Linear:
    """Return one layer that computes several, their outputs one after the other."""
    first = linears[0]
    words, scales, zeros = (
        torch.cat([getattr(one, name).data for one in linears]) for name in ("words", "scales", "zeros")
    )
    bias = None if first.bias is None else torch.cat([one.bias.data for one in linears if one.bias is not None])
    return Int4Linear(words, scales, zeros, bias, group=first.group, in_features=first.in_features, order=first.order)


def parts(linear: Int4Linear, sizes: Sequence[int]) -> list[Int4Linear]:
    """Undo `joined`; the parts share its memory."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    spans = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    bias = linear.bias
    return [
        Int4Linear(
            *(linear.words.data[span], linear.scales.data[span], linear.zeros.data[span]),
            None if bias is None else bias.data[span],
            group=linear.group,
            in_features=linear.in_features,
            order=linear.order,
        )
        for span in spans
    ]


def from_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, bias: Tensor | None, group: int) -> Int4Linear:
    """Read a layer as AWQ stores it.

    Args:
        qweight: (K, N / 8) int32, words along the outputs.
        qzeros: (G, N / 8) int32.
        scales: (G, N).
        group: inputs per group; all, where it is larger than K.
    Raises:
        ValueError: its parts do not fit.
    """
    _check((1, 8), group, qweight, qzeros, scales)
    numbers, zeros = (
        _numbers(words[:, :, None], 2)[:, :, list(_unordered())].flatten(1) for words in (qweight, qzeros)
    )
    return packed(numbers.T, zeros.T, scales.T, bias, group)


def from_gptq(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    bias: Tensor | None,
    group: int,
    *,
    is_first_format: bool,
) -> Int4Linear:
    """Read a layer as GPTQ stores it.

    Args:
        qweight: (K / 8, N) int32, words along the inputs.
        qzeros: (G, N / 8) int32, words along the outputs.
        scales: (G, N).
        g_idx: (K,), the group of each input; None = as they come.
        group: inputs per group; all, where it is larger than K.
        is_first_format: whether one was taken off every zero point.
    Raises:
        ValueError: its parts do not fit, or groups are of different sizes.
    """
    _check((8, 1), group, qweight, qzeros, scales)
    if g_idx is not None and (g_idx.shape != (8 * qweight.shape[0],) or g_idx.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"groups (g_idx) of shape {tuple(g_idx.shape)}, of {g_idx.dtype}")
    numbers = _numbers(qweight[:, None], 1).flatten(0, 1)  # (K, N)
    words = qzeros + _ONES if is_first_format else qzeros
    zeros = _numbers(words[:, :, None], 2).flatten(1)  # (G, N)
    order = None if g_idx is None else _order(g_idx.long(), group)
    if order is not None:
        numbers = numbers[order]
    return packed(numbers.T, zeros.T, scales.T, bias, group, order)


def _check(words: tuple[int, int], group: int, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> None:
    """Refuse parts that do not fit each other.

    Args:
        words: numbers in a word of the weights, along each of their two axes.
    """
    if qweight.dim() != 2:
        raise ValueError(f"qweight of shape {tuple(qweight.shape)}, two axes expected")
    inputs, outputs = words[0] * qweight.shape[0], words[1] * qweight.shape[1]
    groups = -(-inputs // group)
    for name, part, shape in (("qzeros", qzeros, (groups, outputs // 8)), ("scales", scales, (groups, outputs))):
        if part.shape != shape:
            raise ValueError(f"{name} of shape {tuple(part.shape)}, {shape} expected")
    if qweight.dtype is not torch.int32 or qzeros.dtype is not torch.int32 or not scales.is_floating_point():
        raise ValueError(f"numbers of type {qweight.dtype}, {qzeros.dtype} and {scales.dtype}")


def _order(groups: Tensor, group: int) -> Tensor | None:
    """Return inputs sorted by their group, None where they are.

    Raises:
        ValueError: groups are of different sizes.
    """
    order = groups.argsort(stable=True)
    expected = torch.arange(len(groups), device=groups.device) // group
    if not torch.equal(groups[order], expected):
        raise ValueError("its groups (g_idx) are of different sizes")
    return None if torch.equal(groups, expected) else order


def packed(
    numbers: Tensor, zeros: Tensor, scales: Tensor, bias: Tensor | None, group: int, order: Tensor | None = None
) -> Int4Linear:
    """Pack numbers of 0 to 15 in our own order.

    Args:
        numbers: (N, K).
        zeros, scales: (N, G).
        bias, order: as of `Int4Linear`.
        group: inputs per group; all, where it is larger than K.
    """
    outputs, inputs = numbers.shape
    size = -(-inputs // BLOCK) * BLOCK  # inputs, padded
    group = min(group, size)
    numbers = functional.pad(numbers, (0, size - inputs)).view(outputs, -1, PLANES, ROW)
    words = torch.zeros(outputs, numbers.shape[1], ROW, dtype=torch.int16, device=numbers.device)
    for place in range(PLANES):
        words |= numbers[:, :, place].short() << (4 * place)
    missing = -(-size // group) - scales.shape[1]
    scales, zeros = (functional.pad(one, (0, missing)).contiguous() for one in (scales, zeros.to(torch.uint8)))
    return Int4Linear(words.flatten(1), scales, zeros, bias, group=group, in_features=inputs, order=order)


def _numbers(words: Tensor, dim: int, count: int = 8) -> Tensor:
    """Return the numbers of each word, along a dimension of size 1: int8."""
    return torch.cat([((words >> (4 * place)) & 15).char() for place in range(count)], dim)


def _unordered() -> Sequence[int]:
    """Return at which place of an AWQ word each of eight neighbours stands."""
    return tuple(_AWQ_ORDER.index(neighbour) for neighbour in range(8))


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _kept(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
