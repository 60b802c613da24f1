"""Matrices on a CPU, laid out for the few columns of a decoding step.

oneDNN multiplies 1 to 32 columns with a weight in its own order 1.4 to 1.7 times as fast as with rows of numbers. That
order is a second copy, which small models can afford; a large one is multiplied as it is. So is any for the tokens of a
prompt: for each number of columns that it meets, oneDNN compiles and keeps some 0.5 MB of code per matrix.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOST_COPIED = 1 << 28
"""Bytes of matrices that a model may have to get a second copy of them."""
_COLUMNS = 32
"""Columns that the order is made for; it serves fewer and more almost as well."""


class Matrix:
    """x -> x W^T + b.

    Args:
        weight: W, (N, M).
        bias: (N,), if any.
        is_copied: whether W may be copied into oneDNN's order.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, is_copied: bool = False) -> None:
        self._weight = weight
        self._bias = bias
        self._ordered: Tensor | None = None
        if is_copied and weight.dtype is torch.float32 and _has_onednn():
            self._ordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _COLUMNS)

    def unordered(self) -> Matrix:
        """Return the same matrix as it is, which keeps nothing for numbers of columns."""
        return Matrix(self._weight, self._bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> Matrix:
        """Return a copy that goes with a copied model; oneDNN's order cannot be copied, only made again."""
        weight, bias = deepcopy(self._weight, memo), deepcopy(self._bias, memo)
        return Matrix(weight, bias, is_copied=self._ordered is not None)

    def __call__(self, states: Tensor) -> Tensor:
        """Multiply: (T, M) -> (T, N)."""
        if self._ordered is None:
            return functional.linear(states, self._weight, self._bias)
        return _ops().default(states, self._ordered, self._bias, "none", [], "")  # type: ignore[no-any-return]

    def added(self, states: Tensor, total: Tensor) -> Tensor:
        """Multiply and add: (T, M), (T, N) -> (T, N), for a matrix without bias."""
        if self._ordered is None:
            return torch.addmm(total, states, self._weight.t())
        return _ops().binary(states, total, self._ordered, None, "add")  # type: ignore[no-any-return]


def _ops() -> Any:  # operators are untyped
    return torch.ops.mkldnn._linear_pointwise


def _has_onednn() -> bool:
    """Return whether this build of torch has the operators that its own compiler uses for frozen weights."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
