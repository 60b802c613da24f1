"""Linear maps of decode steps: kernels of our own for few tokens in half precision, cuBLAS for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowinfer.backends.int4 import Int4Linear, Packed

MOST_TOKENS = 16
"""Up to how many tokens our kernel is faster than cuBLAS: the rows of one tensor-core tile."""
MOST_STEP_TOKENS = 64
"""Up to how many tokens our kernel serves in a written-out forward, where it also does what stands around, and reads
weights of four bits as they are; for more they are unpacked first."""


@torch.library.custom_op("flowinfer::skinny_linear", mutates_args=())
def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b; opaque to torch.compile, so one compiled graph serves every number of tokens.

    Args:
        x: (T, K).
        weight: (N, K).
        bias: (N,) or None.
    Returns:
        (T, N).
    """
    if _is_skinny(x, weight):
        from flowinfer.engine.network import triton_gemm

        return triton_gemm.skinny_linear(x, weight, bias)
    return F.linear(x, weight, bias)


@skinny_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _is_skinny(x: Tensor, weight: Tensor) -> bool:
    """Say whether our kernel serves this product."""
    return (
        x.is_cuda
        and x.shape[0] <= MOST_TOKENS
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.dtype == weight.dtype
        and x.stride(1) == weight.stride(1) == 1
    )


class SkinnyLinear(nn.Module):
    """A linear layer in place of another, with its parameters, fast at few tokens."""

    def __init__(self, linear: nn.Linear) -> None:
        """Take over a layer's weight and bias."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        flat: Tensor = skinny_linear(x.reshape(-1, self.in_features), self.weight, self.bias)
        return flat.view(*x.shape[:-1], self.out_features)


@torch.library.custom_op("flowinfer::int4_linear", mutates_args=())
def int4_linear(x: Tensor, words: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, group: int) -> Tensor:
    """Return x W^T + b, in half precision on a GPU; opaque to torch.compile, as `skinny_linear`.

    Args:
        x: (T, K), in the order of W's columns.
        words, scales, zeros, group: W as in `Int4Linear`.
        bias: (N,) or None.
    Returns:
        (T, N).
    """
    from flowinfer.engine.network import triton_gemm, triton_int4

    if x.shape[0] <= MOST_STEP_TOKENS and x.stride(1) == 1:
        weight = Packed(words, scales, zeros, group, (words.shape[0], x.shape[1]))
        return triton_gemm.skinny_linear(x, weight, bias)
    return F.linear(x, triton_int4.unpacked(words, scales, zeros, x.shape[1], group, x.dtype), bias)


@int4_linear.register_fake
def _(x: Tensor, words: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, group: int) -> Tensor:
    return x.new_empty(x.shape[0], words.shape[0])


class SkinnyInt4(nn.Module):
    """A layer of four bits in place of another, with its parameters, fast at few tokens."""

    def __init__(self, linear: Int4Linear) -> None:
        """Take over a layer."""
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        own = self.linear
        flat: Tensor = int4_linear(
            own.ordered(x).reshape(-1, own.in_features), own.words, own.scales, own.zeros, own.bias, own.group
        )
        return flat.view(*x.shape[:-1], own.out_features)
