"""Triton kernel of a linear map of few tokens: weights are streamed once, so memory bandwidth is the limit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.engine.network.gemm import MOST_TOKENS


@dataclass(frozen=True)
class Tiles:
    """How the kernel cuts a weight of shape (N, K)."""

    block_n: int
    """Outputs per program."""
    block_k: int
    """Inputs per loop turn."""
    splits: int = 1
    """Programs that share the inputs of one block; their sums are joined in a fixed order by a second kernel."""
    num_warps: int = 4
    num_stages: int = 4
    is_early: bool = False
    """Start while the kernel before still runs and fetch the first weights to L2 (programmatic dependent launch)."""


_TUNED: dict[tuple[int, int], Tiles | None] = {
    (4608, 3584): None,
    (3584, 3584): Tiles(32, 128, 1, 4, 7),
    (37888, 3584): Tiles(32, 256, 1, 4, 4),
    (3584, 18944): Tiles(64, 128, 4, 4, 4),
    (152064, 3584): Tiles(64, 128, 1, 4, 4),
    (5120, 4096): None,
    (4096, 4096): Tiles(32, 128, 1, 4, 7),
    (22016, 4096): Tiles(64, 64, 1, 4, 5),
    (4096, 11008): Tiles(32, 128, 2, 4, 5),
    (64000, 4096): Tiles(32, 256, 1, 4, 4),
}
"""(N, K) -> tiles as benchmarks/gemm.py found them best on an H200, 4 tokens; None = cuBLAS was faster; other
shapes use `tiles_for`'s rule."""


def tiles_for(outputs: int, inputs: int) -> Tiles | None:
    """Return tiles for a weight of shape (outputs, inputs), None where cuBLAS is faster.

    Without a measurement: small blocks where few outputs must fill all units.
    """
    if (outputs, inputs) in _TUNED:
        return _TUNED[outputs, inputs]
    if outputs <= 8192:
        return Tiles(16, 256, splits=2 if outputs <= 2048 and inputs >= 1024 else 1, num_stages=5)
    return Tiles(32, 256)


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tiles | None = None) -> Tensor:
    """Return x W^T + b, of few tokens in half precision.

    Args:
        x: (T, K), T <= 16, last stride 1.
        weight: (N, K), last stride 1.
        bias: (N,) or None.
        tiles: others than the usual, to try them.
    Returns:
        (T, N), accumulated in float32.
    """
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    out = x.new_empty(tokens, outputs)
    if not tokens:
        return out
    tiles = tiles or tiles_for(outputs, inputs)
    if tiles is None:
        return torch.nn.functional.linear(x, weight, bias)
    blocks = triton.cdiv(outputs, tiles.block_n)
    turns = triton.cdiv(inputs, tiles.block_k * tiles.splits)  # of each split's loop
    sums = out
    if tiles.splits > 1:
        sums = x.new_empty(tiles.splits, tokens, outputs, dtype=torch.float32)
    with torch.cuda.device(x.get_device()):
        _linear_kernel[(blocks, tiles.splits)](
            x,
            weight,
            weight if bias is None else bias,
            sums,
            tokens,
            x.stride(0),
            weight.stride(0),
            outputs,
            inputs,
            turns,
            WHOLE_N=outputs % tiles.block_n == 0,
            WHOLE_K=inputs == turns * tiles.splits * tiles.block_k,
            SPLITS=tiles.splits,
            BIAS=bias is not None,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            BLOCK_T=MOST_TOKENS,
            EARLY=tiles.num_stages if tiles.is_early else 0,
            LINE=128 // weight.element_size(),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            launch_pdl=tiles.is_early,
        )
        if tiles.splits > 1:
            _join_kernel[(triton.cdiv(outputs, 256), tokens)](
                sums,
                weight if bias is None else bias,
                out,
                tokens,
                outputs,
                SPLITS=tiles.splits,
                BIAS=bias is not None,
                BLOCK=256,
                num_warps=2,
            )
    return out


@triton.jit
def _linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    x_stride: tl.tensor,
    weight_stride: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    turns: tl.tensor,
    WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    EARLY: tl.constexpr,
    LINE: tl.constexpr,
) -> None:
    """Compute one block of outputs for all tokens, from one split of the inputs."""
    split = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_T)
    offsets = tl.arange(0, BLOCK_K)
    x_at = x + rows[:, None] * x_stride + offsets[None, :]
    weight_at = weight + columns.to(tl.int64)[None, :] * weight_stride + offsets[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        # Weights are nobody's output, so nothing is to be waited for.
        lines = weight + tl.minimum(columns, outputs - 1).to(tl.int64)[None, :] * weight_stride
        for turn in tl.static_range(EARLY):
            place = (split * turns + turn) * BLOCK_K + tl.arange(0, BLOCK_K // LINE) * LINE
            place = tl.minimum(place, inputs - 1)[:, None]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [lines + place], tl.int32, is_pure=False, pack=1
            )
        tl.extra.cuda.gdc_wait()
    for turn in range(turns):
        start = (split * turns + turn) * BLOCK_K
        here = rows[:, None] < tokens
        if not WHOLE_K:
            here = here & (start + offsets < inputs)[None, :]
        part = tl.load(x_at + start, mask=here, other=0.0)
        if WHOLE_K and WHOLE_N:
            w = tl.load(weight_at + start)
        else:
            there = (columns < outputs)[None, :] & (start + offsets < inputs)[:, None]
            w = tl.load(weight_at + start, mask=there, other=0.0)
        total = tl.dot(part, w, total)  # (BLOCK_T, BLOCK_N)
    inside = (rows[:, None] < tokens) & (columns[None, :] < outputs)
    if BIAS and SPLITS == 1:
        total += tl.load(bias + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
    cells = (split * tokens + rows)[:, None].to(tl.int64) * outputs + columns[None, :]
    tl.store(out + cells, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _join_kernel(
    sums: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    outputs: tl.tensor,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add the splits of one token's block of outputs."""
    token = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < outputs
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(sums + (split * tokens + token).to(tl.int64) * outputs + columns, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token.to(tl.int64) * outputs + columns, total.to(out.dtype.element_ty), mask=inside)
