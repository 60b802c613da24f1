"""Triton kernel of a linear map of few tokens: weights are streamed once, so memory bandwidth is the limit.

Weights are half numbers, or of four bits, whose product is in triton_int4.py.

What stands around the map in a decoder is done at its ends, so that a layer is few launches: the scale of an RMS norm,
silu(gate) up, the residual and the next norm's weight. Launches may begin while the one before still runs and fetch
their first weights to L2 (programmatic dependent launch): weights are nobody's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.backends.int4 import BLOCK, PLANES, Packed
from flowinfer.engine.caches.launching import can_be_early, launch
from flowinfer.engine.network.gemm import MOST_STEP_TOKENS, MOST_TOKENS
from flowinfer.engine.network.triton_ends import EARLY, Norm, Residual, fetch, outputs_of, store_added, store_gated
from flowinfer.engine.network.triton_int4 import packed_sums

Matrix = Tensor | Packed
"""(N, K)."""


@dataclass(frozen=True)
class Tiles:
    """How the kernel cuts a weight of shape (N, K)."""

    block_n: int
    """Outputs per program."""
    block_k: int
    """Inputs per loop turn; of weights of four bits one block, whose outputs the warps share, or one for each warp."""
    splits: int = 1
    """Programs that share the inputs of one block; the last to end adds all sums, in a fixed order."""
    num_warps: int = 4
    num_stages: int = 4
    is_early: bool = False
    """Start while the kernel before ends and fetch the first weights to L2, where a GPU can (programmatic dependent
    launch)."""
    registers: int | None = None
    """Most of a thread, where fewer let more programs run side by side; None = as many as it likes."""


_NARROW = 8192
"""Outputs up to which one block a program leaves units without work."""
_MOST_SPLITS = 8
_FEWEST = 8
"""Tokens of the narrowest product of matrix units."""
_TUNED: dict[tuple[int, int, bool], Tiles] = {
    (4608, 3584, True): Tiles(16, 128, 1, 2, 8),
    (3584, 3584, True): Tiles(32, 64, 2, 4, 8),
    (37888, 3584, True): Tiles(64, 128, 1, 4, 4),
    (3584, 18944, True): Tiles(32, 128, 2, 4, 6),
    (152064, 3584, True): Tiles(32, 256, 1, 4, 3),
    (3584, 18944, False): Tiles(64, 128, 4, 4, 3, is_early=True),
    (152064, 3584, False): Tiles(128, 64, 1, 8, 5, is_early=True),
}
"""(N, K, whether tokens are few) -> what was fastest in whole steps of a 7B, where the rule is slower."""


def tiles_for(weight: Matrix, tokens: int) -> Tiles:
    """Return tiles for a weight and so many tokens.

    The rule is within 1 % of the best of some hundred tried in whole steps of a 7B and a 9B on an H200: many inputs in
    flight, and where outputs are few about as many programs as multiprocessors hold at once.
    """
    outputs, inputs = weight.shape
    if isinstance(weight, Packed):
        return _packed_tiles_for(outputs, inputs, tokens)
    few = tokens <= MOST_TOKENS
    if (outputs, inputs, few) in _TUNED:
        return _TUNED[outputs, inputs, few]
    if outputs > _NARROW:
        return Tiles(64, 128 if few else 64, is_early=True)
    block_n, programs, stages = (32, 320, 6) if few else (64, 140, 4)
    splits = min(programs // triton.cdiv(outputs, block_n), _MOST_SPLITS, inputs // 256)
    return Tiles(block_n, 128, max(1, splits), num_stages=stages, is_early=True)


def _packed_tiles_for(outputs: int, inputs: int, tokens: int) -> Tiles:
    """Return tiles for a weight of four bits: the best of some hundred tried for a 7B on an H200, the last in steps.

    Warps share the inputs for few tokens, the outputs for more.
    """
    is_wide, few = outputs > _NARROW, tokens <= _FEWEST
    splits = 1 if is_wide else max(1, min(_MOST_SPLITS, inputs // (1024 if few else 896)))
    if few:
        return Tiles(64 if is_wide else 32, 2 * BLOCK, splits, 2, 3, is_early=True)
    if tokens > 2 * MOST_TOKENS and (is_wide or splits == _MOST_SPLITS):
        return Tiles(128, BLOCK, splits, 8, 3, registers=128)
    return Tiles(128 if is_wide and tokens > MOST_TOKENS else 64, BLOCK, splits, num_stages=3)


def skinny_linear(x: Tensor, weight: Matrix, bias: Tensor | None, tiles: Tiles | None = None) -> Tensor:
    """Return x W^T + b, of few tokens in half precision.

    Args:
        x: (T, K), T <= 64, last stride 1.
        weight: (N, K), last stride 1.
        bias: (N,) or None.
        tiles: others than the usual, to try them.
    Returns:
        (T, N), accumulated in float32.
    """
    out = x.new_empty(x.shape[0], weight.shape[0])
    if len(x):
        _launch(x, weight, tiles or tiles_for(weight, len(x)), out=out, bias=bias)
    return out


def scaled_linear(x: Norm, weight: Matrix, bias: Tensor | None, tiles: Tiles, counters: Tensor | None = None) -> Tensor:
    """Return norm(x) W^T + b: (T, D) -> (T, N); arguments as of `added_linear`."""
    out = x.states.new_empty(len(x.states), weight.shape[0])
    _launch(x.states, weight, tiles, out=out, bias=bias, scale=x, counters=counters)
    return out


def gated_linear(x: Norm, weight: Matrix, tiles: Tiles, counters: Tensor | None = None) -> Tensor:
    """Return silu(g) u of norm(x) W^T, whose first half is g and second u: (T, D), (2 N, D) -> (T, N)."""
    out = x.states.new_empty(len(x.states), weight.shape[0] // 2)
    _launch(x.states, weight, tiles, out=out, scale=x, counters=counters, is_gated=True)
    return out


def added_linear(x: Tensor, weight: Matrix, total: Residual, tiles: Tiles, counters: Tensor | None = None) -> Norm:
    """Add x W^T to the residual; return what the next map reads: (T, K) -> (T, N).

    Args:
        x: (T, K).
        weight: (N, K).
        total: what is added to.
        tiles: how the weight is cut.
        counters: zeros, one for each block of outputs, where the inputs are split; made here if None.
    """
    then = total.half_norm(tiles.block_n)
    _launch(x, weight, tiles, out=total.states, total=total, then=then, counters=counters)
    return then


def _launch(
    x: Tensor,
    weight: Matrix,
    tiles: Tiles,
    *,
    out: Tensor,
    bias: Tensor | None = None,
    scale: Norm | None = None,
    total: Residual | None = None,
    then: Norm | None = None,
    counters: Tensor | None = None,
    is_gated: bool = False,
) -> None:
    """Launch the kernel; arguments that it does not read are stood in for by the weight."""
    (tokens, inputs), outputs = x.shape, out.shape[1]
    columns = tiles.block_n // 2 if is_gated else tiles.block_n  # of `out`, per program
    blocks = triton.cdiv(outputs, columns)
    turns = triton.cdiv(inputs, tiles.block_k)
    packed = weight if isinstance(weight, Packed) else None
    own = weight.words if isinstance(weight, Packed) else weight
    sums = own
    if tiles.splits > 1:
        sums = x.new_empty(blocks, tiles.splits, tokens, tiles.block_n, dtype=torch.float32)
        if counters is None:
            counters = torch.zeros(blocks, dtype=torch.int32, device=x.device)
    is_early = tiles.is_early and own.stride(0) % 8 == 0 and can_be_early(x)  # 16 bytes, fetched in bulk
    pieces = max(1, 32 * tiles.num_warps // tiles.block_n)
    width = tiles.block_k if packed is None else tiles.block_k // PLANES  # numbers of 16 bits
    early = min(EARLY, turns // tiles.splits * width)
    rows = scale.rows if scale else total.rows if total else None
    with torch.cuda.device(x.get_device()):
        launch(_linear_kernel, (blocks, tiles.splits))(
            *(x, own, *((own, own) if packed is None else (packed.scales, packed.zeros))),
            *(own if bias is None else bias, out),
            *(own if scale is None else scale.squares, own if total is None else total.weight),
            *((own, own) if then is None else (then.states, then.squares)),
            *(sums, own if counters is None else counters, own if rows is None else rows),
            *(tokens, x.stride(0), own.stride(0), outputs, inputs, turns),
            *(0 if packed is None else packed.scales.shape[1], 0 if scale is None else scale.squares.shape[1]),
            *(early // pieces // 8 * 8, 0.0 if scale is None else scale.eps),
            GROUP=0 if packed is None else packed.group,
            WHOLE_N=outputs % columns == 0,
            WHOLE_K=inputs % tiles.block_k == 0,
            SPLITS=tiles.splits,
            PADDED=rows is not None,
            BIAS=bias is not None,
            BLOCK_PARTS=0 if scale is None else triton.next_power_of_2(scale.squares.shape[1]),
            GATED=is_gated,
            ADDED=total is not None,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            BLOCK_T=_block_t(tokens, is_packed=packed is not None),
            EARLY=is_early,
            PIECES=pieces,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            maxnreg=tiles.registers,
            launch_pdl=is_early,
        )


def _block_t(tokens: int, *, is_packed: bool) -> int:
    """Return how many tokens the kernel is compiled for."""
    if is_packed:
        return max(_FEWEST, 1 << (tokens - 1).bit_length())
    return next(size for size in (MOST_TOKENS, MOST_STEP_TOKENS, 128, 256) if tokens <= size)


@triton.jit(do_not_specialize=["tokens", "turns", "groups", "num_parts", "piece", "counters", "token_rows"])
def _linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    squares: tl.tensor,
    norm: tl.tensor,
    next_states: tl.tensor,
    next_squares: tl.tensor,
    sums: tl.tensor,
    counters: tl.tensor,
    token_rows: tl.tensor,
    tokens: tl.tensor,
    x_stride: tl.tensor,
    weight_stride: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    turns: tl.tensor,
    groups: tl.tensor,
    num_parts: tl.tensor,
    piece: tl.tensor,
    eps: tl.tensor,
    GROUP: tl.constexpr,
    WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    EARLY: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """Compute one block of outputs for all tokens, from one split of the inputs; GROUP 0 = half numbers."""
    block = tl.program_id(0)
    split = tl.program_id(1)
    columns, safe, weight_rows = outputs_of(block, outputs, GATED, WHOLE_N, BLOCK_N)
    inside_n = columns < outputs
    rows = tl.arange(0, BLOCK_T)
    first, last = split * turns // SPLITS, (split + 1) * turns // SPLITS
    weight_base = weight + weight_rows.to(tl.int64) * weight_stride
    known = rows[:, None] < tokens
    used = tokens
    # 1. what nobody writes, or long ago
    if PADDED:
        used = tl.max(tl.where(tl.load(token_rows + rows, mask=rows < tokens, other=-1) >= 0, rows + 1, 0), 0)
    if EARLY:
        width = inputs if GROUP == 0 else weight_stride  # of a row, in numbers of 16 bits
        starts = first * (BLOCK_K if GROUP == 0 else BLOCK_K // 4) + tl.arange(0, PIECES) * piece
        places = weight_base[:, None] + starts[None, :]
        fetch(places, tl.where(inside_n[:, None] & (starts + piece <= width)[None, :], piece * 2, 0))
    if BIAS:
        biases = tl.load(bias + safe)
    if ADDED:
        weights = tl.load(norm + safe)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    # 2. what is needed at the end, asked for now
    if BLOCK_PARTS > 0:
        parts = tl.arange(0, BLOCK_PARTS)
        at = squares + rows[:, None] * num_parts + parts[None, :]
        square = tl.load(at, mask=known & (parts[None, :] < num_parts), other=0.0)
    cells = rows[:, None].to(tl.int64) * outputs + columns[None, :]
    LATE: tl.constexpr = GROUP > 0 and BLOCK_T > 16  # where it would take the registers of a second program
    if ADDED and not LATE:
        before = tl.load(out + cells, mask=known & inside_n[None, :], other=0.0)
    # 3. the product
    if GROUP > 0:
        total = packed_sums(
            *(x, weight_base, scales, zeros, weight_rows, used, x_stride, weight_stride, inputs),
            *(first, last, groups, GROUP, WHOLE_K, BLOCK_N, BLOCK_K, BLOCK_T),
        )
    else:
        offsets = tl.arange(0, BLOCK_K)
        x_at = x + rows[:, None] * x_stride + offsets[None, :]
        weight_at = weight_base[None, :] + offsets[:, None]
        read = rows[:, None] < used
        total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        for turn in range(first, last):
            start = turn * BLOCK_K
            if WHOLE_K:
                part = tl.load(x_at + start, mask=read, other=0.0)
                w = tl.load(weight_at + start)
            else:
                there = start + offsets < inputs
                part = tl.load(x_at + start, mask=read & there[None, :], other=0.0)
                w = tl.load(weight_at + start, mask=there[:, None], other=0.0)
            total = tl.dot(part, w, total)  # (BLOCK_T, BLOCK_N)
    if EARLY:  # not before: programs that wait would crowd some multiprocessors
        tl.extra.cuda.gdc_launch_dependents()
    # 4. of an output's splits the last to end goes on, with all sums
    if SPLITS > 1:
        own = rows[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        mine = sums + (block * SPLITS).to(tl.int64) * tokens * BLOCK_N
        tl.store(mine + split * tokens * BLOCK_N + own, total, mask=known)
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + block, 1, sem="acq_rel")
        if arrived < SPLITS - 1:
            return
        total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        for other in tl.static_range(SPLITS):
            at = mine + other * tokens * BLOCK_N + own
            total += tl.load(at, mask=known, other=0.0, cache_modifier=".cg")
    # 5. what stands around the product
    if BLOCK_PARTS > 0:
        total *= tl.rsqrt(tl.sum(square, 1) / inputs + eps)[:, None]
    if BIAS:
        total += biases.to(tl.float32)[None, :]
    if GATED:
        store_gated(total, out, rows, rows < tokens, block, outputs, BLOCK_T, BLOCK_N)
    elif ADDED:
        if LATE:
            before = tl.load(out + cells, mask=known & inside_n[None, :], other=0.0)
        store_added(total, before, weights, out, next_states, next_squares, columns, block, tokens, outputs, BLOCK_T)
    else:
        tl.store(out + cells, total.to(out.dtype.element_ty), mask=known & inside_n[None, :])
