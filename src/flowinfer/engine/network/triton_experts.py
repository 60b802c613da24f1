"""Triton kernel of products of rows with chosen matrices: each pair reads its expert's weights, and no other's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def expert_linear(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """Multiply each row with the matrix of its expert.

    Args:
        x: (T, K), contiguous; each row serves S / T pairs in turn.
        weight: (E, N, K), contiguous.
        experts: (S,) int64.
    Returns:
        (S, N), accumulated in float32.
    """
    (pairs,), (_, outputs, inputs) = experts.shape, weight.shape
    out = x.new_empty(pairs, outputs)
    if not pairs:
        return out
    x, weight = x.contiguous(), weight.contiguous()
    block_k = min(512, triton.next_power_of_2(inputs))
    with torch.cuda.device(x.get_device()):
        _expert_kernel[(pairs, triton.cdiv(outputs, 16))](
            x, weight, experts, out, pairs // x.shape[0], outputs, inputs, BLOCK_N=16, BLOCK_K=block_k, num_warps=4
        )
    return out


@triton.jit(do_not_specialize=["share"])
def _expert_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    experts: tl.tensor,
    out: tl.tensor,
    share: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Compute one block of outputs of one pair; pairs of one expert run side by side and share what they read."""
    pair = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = tl.arange(0, BLOCK_K)
    expert = tl.load(experts + pair).to(tl.int64)
    x_at = x + (pair // share).to(tl.int64) * inputs
    weight_at = weight + (expert * outputs + tl.minimum(columns, outputs - 1))[:, None] * inputs + offsets[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        inside = start + offsets < inputs
        states = tl.load(x_at + start + offsets, mask=inside, other=0.0).to(tl.float32)
        weights = tl.load(weight_at + start, mask=inside[None, :], other=0.0).to(tl.float32)
        total += weights * states[None, :]
    tl.store(out + pair.to(tl.int64) * outputs + columns, tl.sum(total, 1).to(out.dtype.element_ty), columns < outputs)
