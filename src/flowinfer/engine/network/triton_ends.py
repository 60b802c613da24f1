"""What stands at the ends of products of few tokens, in Triton: half norms, gates, residuals, weights fetched early.

Maps of half numbers and of four bits (triton_gemm.py) and those of experts (triton_experts.py) share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

EARLY = 128
"""Numbers of 16 bits of each output's weights that an early launch fetches before it waits."""


@dataclass(frozen=True)
class Norm:
    """Half an RMS norm: states times its weight, and what the scale comes from; whoever reads the states scales."""

    states: Tensor
    """(T, D)."""
    squares: Tensor
    """(T, parts), float32: sums of squares of parts of the unweighted states."""
    eps: float
    rows: Tensor | None = None
    """(T,) int32, -1 = padding; what stands at the end of the tokens is not read."""


@dataclass(frozen=True)
class Residual:
    """What a map's result is added to, in place, and the norm that reads the sum."""

    states: Tensor
    """(T, N); changed."""
    weight: Tensor
    """(N,), the norm's."""
    eps: float
    rows: Tensor | None = None
    """As of `Norm`."""

    def half_norm(self, block_n: int) -> Norm:
        """Return memory for half the norm, whose squares come in parts of so many outputs."""
        tokens, outputs = self.states.shape
        squares = self.states.new_empty(tokens, triton.cdiv(outputs, block_n), dtype=torch.float32)
        return Norm(self.states.new_empty(tokens, outputs), squares, self.eps, self.rows)


@triton.jit
def fetch(places: tl.tensor, size: tl.tensor) -> None:
    """Bring so many bytes at each place to L2; 0 = none."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        "=r,l,r",
        [places, size],
        tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def outputs_of(
    block: tl.tensor, outputs: tl.tensor, GATED: tl.constexpr, WHOLE_N: tl.constexpr, BLOCK_N: tl.constexpr
) -> tl.tensor:
    """Return a block's columns of the result, the same kept inside, and the rows of the weight that make them.

    Of a gated map the block's first half is of the gate's weight, and the second of the other's.
    """
    local = tl.arange(0, BLOCK_N)
    columns = block * (BLOCK_N // 2) + local % (BLOCK_N // 2) if GATED else block * BLOCK_N + local
    safe = columns if WHOLE_N else tl.minimum(columns, outputs - 1)
    weight_rows = safe
    if GATED:
        weight_rows = safe + local // (BLOCK_N // 2) * outputs
    return columns, safe, weight_rows


@triton.jit
def store_gated(
    total: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    known: tl.tensor,
    block: tl.tensor,
    outputs: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store silu(g) u of (BLOCK_M, BLOCK_N) sums, half of them g, to the known ones of some rows, (BLOCK_M,)."""
    HALF: tl.constexpr = BLOCK_N // 2
    gate, up = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, HALF)), (0, 2, 1)))
    gated = gate * tl.sigmoid(gate) * up
    columns = block * HALF + tl.arange(0, HALF)
    cells = rows[:, None].to(tl.int64) * outputs + columns[None, :]
    tl.store(out + cells, gated.to(out.dtype.element_ty), mask=known[:, None] & (columns < outputs)[None, :])


@triton.jit
def store_added(
    total: tl.tensor,
    before: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    next_states: tl.tensor,
    next_squares: tl.tensor,
    columns: tl.tensor,
    block: tl.tensor,
    tokens: tl.tensor,
    outputs: tl.tensor,
    BLOCK_T: tl.constexpr,
) -> None:
    """Store the residual with sums (BLOCK_T, BLOCK_N) added, and half the next norm."""
    rows = tl.arange(0, BLOCK_T)
    inside = (rows[:, None] < tokens) & (columns < outputs)[None, :]
    cells = rows[:, None].to(tl.int64) * outputs + columns[None, :]
    rounded = (total + before.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + cells, rounded, mask=inside)
    states = rounded.to(tl.float32)
    scaled = states * weights.to(tl.float32)[None, :]
    tl.store(next_states + cells, scaled.to(out.dtype.element_ty), mask=inside)
    square = tl.sum(tl.where(inside, states * states, 0.0), 1)
    tl.store(next_squares + rows * tl.num_programs(0) + block, square, mask=rows < tokens)
