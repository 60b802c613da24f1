"""Triton kernel of a linear map with weights of four bits: they are read packed and made numbers in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.backends.int4 import BLOCK, ROW, Packed
from flowinfer.engine.caches.launching import device_of, launch
from flowinfer.engine.caches.triton_step import can_be_early
from flowinfer.engine.network.gemm import MOST_PACKED_STEP
from flowinfer.engine.network.triton_gemm import Norm, Residual, store_added, store_gated

_BITS_OF_128 = 0x43000000
"""In float32. An argument: where it is a constant in code, the mask and it take two instructions instead of one."""
_MOST_ROWS = 64
"""Most tokens of one program."""


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts a weight of shape (N, K)."""

    block_n: int
    """Outputs per program."""
    splits: int = 1
    """Programs that share the inputs of one block; their sums are joined in a fixed order by a second kernel."""
    num_warps: int = 4
    num_stages: int = 3
    is_few: bool = False
    """Few tokens: the warps of a program share the inputs of its block, and join their sums on chip."""
    depth: int = 4
    """Blocks of inputs per loop turn where there is one token."""
    early: int = 0
    """Words of each output that a launch of few tokens fetches to L2 before the launch before it has ended, where a
    GPU can; 0 = it begins when that has ended."""
    ones: bool | None = None
    """Zero points are taken off sums, by products with ones, not off numbers; None = where that is quicker."""

    @property
    def is_early(self) -> bool:
        """Return whether the launch begins before the one before it has ended."""
        return self.early > 0


def tiles_for(shape: Sequence[int], tokens: int) -> Tiles:
    """Return tiles for a weight of a shape (N, K): enough programs that all units have work."""
    outputs, _ = shape
    is_wide = outputs > 8192
    if tokens <= MOST_PACKED_STEP:
        return Tiles(32, is_few=True) if is_wide else Tiles(16, num_warps=8, is_few=True)
    if tokens <= 16:
        return Tiles(64) if is_wide else Tiles(64, 8)
    if tokens <= 32:
        return Tiles(128, ones=False) if is_wide else Tiles(64, 8)
    return Tiles(128, num_warps=8, ones=False) if is_wide else Tiles(128, 8, num_warps=8, ones=False)


def int4_linear(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bias: Tensor | None,
    group: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """Return x W^T + b of few tokens in half precision.

    Args:
        x: (T, K), last stride 1.
        words, scales, zeros, group: the weight as in `Int4Linear`.
        bias: (N,) or None.
        tiles: others than the usual, to try them.
    Returns:
        (T, N), accumulated in float32.
    """
    (tokens, inputs), outputs = x.shape, words.shape[0]
    out = x.new_empty(tokens, outputs)
    if not tokens:
        return out
    tiles = tiles or tiles_for((outputs, inputs), tokens)
    if tiles.is_few:
        _launch_few(x, Packed(words, scales, zeros, group, (outputs, inputs)), tiles, out=out, bias=bias)
        return out
    block_t = min(_MOST_ROWS, max(8, triton.next_power_of_2(tokens)))
    blocks, columns, rows = words.shape[1] // ROW, triton.cdiv(outputs, tiles.block_n), triton.cdiv(tokens, block_t)
    shared = {
        "GROUP": group,
        "WHOLE_N": outputs % tiles.block_n == 0,
        "BIAS": bias is not None,
        "IS_BF16": x.dtype is torch.bfloat16,
        "BLOCK_N": tiles.block_n,
        "BLOCK_T": block_t,
        "ROW": ROW,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    whole = inputs == blocks * BLOCK
    offset = scales if bias is None else bias
    with torch.cuda.device(x.get_device()):
        turns = triton.cdiv(blocks, tiles.splits)
        splits = triton.cdiv(blocks, turns)
        sums = out if splits == 1 else x.new_empty(splits, tokens, outputs, dtype=torch.float32)
        launch(_many_kernel, (columns, splits, rows))(
            *(x, words, scales, zeros, offset, sums, tokens, x.stride(0), outputs, inputs, blocks),
            *(turns, scales.shape[1]),
            WHOLE_K=whole,
            IS_SPLIT=splits > 1,
            ONES=block_t <= 16 if tiles.ones is None else tiles.ones,
            **shared,
        )
        if splits > 1:
            launch(_join_kernel, (triton.cdiv(outputs, 256), tokens))(
                *(sums, offset, out, tokens, outputs), SPLITS=splits, BIAS=bias is not None, BLOCK=256, num_warps=2
            )
    return out


def scaled_linear(x: Norm, weight: Packed, bias: Tensor | None, tiles: Tiles, counters: Tensor | None = None) -> Tensor:
    """Return norm(x) W^T + b: (T, K) -> (T, N), T <= 16; as triton_gemm's, but that no counters are needed."""
    del counters
    out = x.states.new_empty(len(x.states), weight.shape[0])
    _launch_few(x.states, weight, tiles, out=out, bias=bias, scale=x)
    return out


def gated_linear(x: Norm, weight: Packed, tiles: Tiles, counters: Tensor | None = None) -> Tensor:
    """Return silu(g) u of norm(x) W^T, whose first half is g and second u: (T, K), (2 N, K) -> (T, N)."""
    del counters
    out = x.states.new_empty(len(x.states), weight.shape[0] // 2)
    _launch_few(x.states, weight, tiles, out=out, scale=x, is_gated=True)
    return out


def added_linear(x: Tensor, weight: Packed, total: Residual, tiles: Tiles, counters: Tensor | None = None) -> Norm:
    """Add x W^T to the residual; return what the next map reads: (T, K) -> (T, N)."""
    del counters
    squares = x.new_empty(len(x), triton.cdiv(weight.shape[0], tiles.block_n), dtype=torch.float32)
    then = Norm(total.states.new_empty(total.states.shape), squares, total.eps)
    _launch_few(x, weight, tiles, out=total.states, total=total, then=then)
    return then


def _launch_few(
    x: Tensor,
    weight: Packed,
    tiles: Tiles,
    *,
    out: Tensor,
    bias: Tensor | None = None,
    scale: Norm | None = None,
    total: Residual | None = None,
    then: Norm | None = None,
    is_gated: bool = False,
) -> None:
    """Launch the kernel of few tokens; arguments that it does not read are stood in for by the scales."""
    (tokens, inputs), outputs, words, scales = x.shape, out.shape[1], weight.words, weight.scales
    blocks, warps = words.shape[1] // ROW, tiles.num_warps
    columns = tiles.block_n // 2 if is_gated else tiles.block_n
    is_early = tiles.early > 0 and can_be_early(device_of(x))
    is_one = tokens == 1 and weight.group % BLOCK == 0 and inputs == blocks * BLOCK
    with torch.cuda.device(x.get_device()):
        launch(_few_kernel, (triton.cdiv(outputs, columns),))(
            *(x, words, scales, weight.zeros, scales if bias is None else bias, out),
            *(scales if scale is None else scale.squares, scales if total is None else total.weight),
            *((scales, scales) if then is None else (then.states, then.squares)),
            *(tokens, x.stride(0), outputs, inputs, blocks),
            *(triton.cdiv(blocks, tiles.depth if is_one else warps), scales.shape[1]),
            *(0 if scale is None else scale.squares.shape[1], _BITS_OF_128, 0.0 if scale is None else scale.eps),
            GROUP=weight.group,
            WHOLE_N=outputs % columns == 0,
            WHOLE_K=inputs == blocks * BLOCK and blocks % (tiles.depth if is_one else warps) == 0,
            BIAS=bias is not None,
            BLOCK_PARTS=0 if scale is None else triton.next_power_of_2(scale.squares.shape[1]),
            GATED=is_gated,
            ADDED=total is not None,
            IS_BF16=x.dtype is torch.bfloat16,
            BLOCK_N=tiles.block_n,
            BLOCK_T=1 if is_one else 8 if tokens <= 8 else 16,
            ROW=ROW,
            SHARES=warps,
            DEPTH=tiles.depth if is_one else 0,
            STAGES=tiles.num_stages,
            EARLY=min(tiles.early, blocks * ROW) if is_early else 0,
            num_warps=warps,
            num_stages=tiles.num_stages,
            launch_pdl=is_early,
        )


def _assembly(plane: int, *, is_bf16: bool) -> str:
    """Return how two words give the weights of one of their four planes, as two half numbers.

    A number q is written into the last bits of 128 (bfloat16), which makes 128 + q without a conversion. In float16 it
    is written into 1024 and taken off again, exactly; there is room for two planes before bits are shifted.

    Operands: the two weights in one register; the two words in another.
    """
    if is_bf16:
        return (
            f"{{ .reg .b32 pair; shr.u32 pair, $1, {4 * plane};"
            " lop3.b32 $0, pair, 0x000F000F, 0x43004300, 0xEA; }"  # (pair & 0x000F000F) | 128
        )
    mask, share, offset = (
        ("0x00F000F0", "0x2C002C00", "0xD400D400")  # (1024 + 16 q) / 16 - 64
        if plane % 2
        else ("0x000F000F", "0x3C003C00", "0xE400E400")  # (1024 + q) - 1024
    )
    return (
        f"{{ .reg .b32 pair, share, offset; shr.u32 pair, $1, {8 * (plane // 2)};"
        f" lop3.b32 pair, pair, {mask}, 0x64006400, 0xEA;"
        f" mov.b32 share, {share}; mov.b32 offset, {offset};"
        " fma.rn.f16x2 $0, pair, share, offset; }"
    )


_BF16 = tl.constexpr(tuple(_assembly(plane, is_bf16=True) for plane in range(4)))
_FP16 = tl.constexpr(tuple(_assembly(plane, is_bf16=False) for plane in range(4)))


@triton.jit
def _group(
    scales: tl.tensor, zeros: tl.tensor, row: tl.tensor, index: tl.tensor, groups: tl.tensor, IS_BF16: tl.constexpr
) -> tl.tensor:
    """Return a group's scales and what is to be taken off its numbers, (BLOCK_N,) each."""
    at = row + tl.minimum(index, groups - 1)
    zero = tl.load(zeros + at).to(tl.float32)
    return tl.load(scales + at).to(tl.float32), zero + 128 if IS_BF16 else zero


@triton.jit(do_not_specialize=["tokens", "blocks", "turns", "groups"])
def _many_kernel(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    x_stride: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    blocks: tl.tensor,
    turns: tl.tensor,
    groups: tl.tensor,
    GROUP: tl.constexpr,
    WHOLE_K: tl.constexpr,
    WHOLE_N: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BIAS: tl.constexpr,
    IS_BF16: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    ROW: tl.constexpr,
    ONES: tl.constexpr,
) -> None:
    """Compute one block of outputs for all tokens, from one split of the inputs.

    Within a group sum (q - zero) x = sum q x - zero sum x; sum x is a product with ones. Scales and zero points of a
    group are read while the group before is computed.
    """
    split = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    safe = columns if WHOLE_N else tl.minimum(columns, outputs - 1)
    rows = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    inner = tl.arange(0, ROW)
    here = rows[None, :] < tokens
    x_at = x + rows[None, :] * x_stride + inner[:, None]
    words_at = words + safe.to(tl.int64)[:, None] * (blocks * ROW) + inner[None, :]
    ones = tl.full((BLOCK_N, ROW), 1.0, tl.bfloat16 if IS_BF16 else tl.float16)
    total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    first, last = split * turns, tl.minimum(split * turns + turns, blocks)
    scale, zero = _group(scales, zeros, safe * groups, first * (4 * ROW) // GROUP, groups, IS_BF16)
    for block in range(first, last):
        packed = tl.load(words_at + block * ROW)  # (BLOCK_N, ROW)
        for plane in tl.static_range(4):
            start = block * (4 * ROW) + plane * ROW
            if plane * ROW % GROUP == 0:
                ahead = (start + min(GROUP, 4 * ROW)) // GROUP
                next_scale, next_zero = _group(scales, zeros, safe * groups, ahead, groups, IS_BF16)
                part = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
                if not ONES:
                    zero_at = tl.load(zeros + safe * groups + start // GROUP).to(tl.float32) + (128 if IS_BF16 else 0)
                states_sum = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
            mask = here if WHOLE_K else here & (start + inner < inputs)[:, None]
            states = tl.load(x_at + start, mask=mask, other=0.0)  # (ROW, BLOCK_T)
            if IS_BF16:
                weights = tl.inline_asm_elementwise(_BF16[plane], "=r,r", [packed], tl.bfloat16, is_pure=True, pack=2)
            else:
                weights = tl.inline_asm_elementwise(_FP16[plane], "=r,r", [packed], tl.float16, is_pure=True, pack=2)
            if ONES:
                states_sum = tl.dot(ones, states, states_sum)
            else:
                weights = weights - zero_at.to(weights.dtype)[:, None]
            part = tl.dot(weights, states, part)  # (BLOCK_N, BLOCK_T)
            if (plane + 1) * ROW % GROUP == 0 or plane == 3:
                if ONES:
                    total += (part - zero[:, None] * states_sum) * scale[:, None]
                else:
                    total += part * scale[:, None]
                scale, zero = next_scale, next_zero
    if BIAS and not IS_SPLIT:
        total += tl.load(bias + safe).to(tl.float32)[:, None]
    inside = here & (columns < outputs)[:, None]
    cells = (split * tokens + rows)[None, :].to(tl.int64) * outputs + columns[:, None]
    tl.store(out + cells, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _few(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    weight_rows: tl.tensor,
    tokens: tl.tensor,
    x_stride: tl.tensor,
    inputs: tl.tensor,
    blocks: tl.tensor,
    turns: tl.tensor,
    groups: tl.tensor,
    GROUP: tl.constexpr,
    WHOLE_K: tl.constexpr,
    IS_BF16: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    ROW: tl.constexpr,
    SHARES: tl.constexpr,
) -> tl.tensor:
    """Return products of some weights' rows with all tokens, (BLOCK_T, BLOCK_N), by matrix units.

    Each warp takes its share of the inputs, whose sums are then added. Zero points as in `_many_kernel`.
    """
    rows = tl.arange(0, BLOCK_T)
    inner = tl.arange(0, ROW)
    split = tl.arange(0, SHARES)
    here = (rows < tokens)[None, None, :]
    x_at = x + rows[None, None, :] * x_stride + inner[None, :, None]
    words_at = words + weight_rows.to(tl.int64)[None, :, None] * (blocks * ROW) + inner[None, None, :]
    ones = tl.full((SHARES, BLOCK_N, ROW), 1.0, tl.bfloat16 if IS_BF16 else tl.float16)
    total = tl.zeros((SHARES, BLOCK_N, BLOCK_T), tl.float32)
    group_at = (weight_rows * groups)[None, :]
    for turn in range(turns):
        own = turn * SHARES + split  # (SHARES,) blocks of inputs
        if WHOLE_K:
            packed = tl.load(words_at + (own * ROW)[:, None, None])
        else:
            packed = tl.load(words_at + (own * ROW)[:, None, None], mask=(own < blocks)[:, None, None], other=0)
        for plane in tl.static_range(4):
            start = own * (4 * ROW) + plane * ROW
            if plane * ROW % GROUP == 0:
                index = group_at + tl.minimum(start // GROUP, groups - 1)[:, None]  # (SHARES, BLOCK_N)
                scale = tl.load(scales + index).to(tl.float32)
                zero = tl.load(zeros + index).to(tl.float32)
                if IS_BF16:
                    zero += 128
                part = tl.zeros((SHARES, BLOCK_N, BLOCK_T), tl.float32)
                states_sum = tl.zeros((SHARES, BLOCK_N, BLOCK_T), tl.float32)
            mask = here
            if not WHOLE_K:
                mask = here & (start[:, None] + inner[None, :] < inputs)[:, :, None]
            states = tl.load(x_at + start[:, None, None], mask=mask, other=0.0)  # (SHARES, ROW, BLOCK_T)
            if IS_BF16:
                weight = tl.inline_asm_elementwise(_BF16[plane], "=r,r", [packed], tl.bfloat16, is_pure=True, pack=2)
            else:
                weight = tl.inline_asm_elementwise(_FP16[plane], "=r,r", [packed], tl.float16, is_pure=True, pack=2)
            part = tl.dot(weight, states, part)
            states_sum = tl.dot(ones, states, states_sum)
            if (plane + 1) * ROW % GROUP == 0 or plane == 3:
                total += (part - zero[:, :, None] * states_sum) * scale[:, :, None]
    return tl.trans(tl.sum(total, 0))


@triton.jit
def _one(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    weight_rows: tl.tensor,
    blocks: tl.tensor,
    turns: tl.tensor,
    groups: tl.tensor,
    base: tl.tensor,
    GROUP: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROW: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """Return products of some weights' rows with one token, (1, BLOCK_N), without matrix units.

    Two words are read as one number of 32 bits. A weight is put into the bits of 128 (`base`, float32) by a shift and a
    mask; 128 and the zero point are taken off by the sum of the inputs.
    """
    PAIRS: tl.constexpr = ROW // 2
    pair, depth = tl.arange(0, PAIRS), tl.arange(0, DEPTH)
    pairs = words.to(tl.pointer_type(tl.int32), bitcast=True)
    inputs = x.to(tl.pointer_type(tl.int32), bitcast=True)
    kind = x.dtype.element_ty
    inside = (depth[:, None] * PAIRS + pair[None, :])[None, :, :]
    pairs_at = pairs + weight_rows.to(tl.int64)[:, None, None] * (blocks * PAIRS) + inside
    total = tl.zeros((BLOCK_N, DEPTH, PAIRS), tl.float32)
    for turn in tl.range(0, turns, num_stages=STAGES):
        own = turn * DEPTH + depth  # (DEPTH,) blocks of inputs
        there = own < blocks
        group = weight_rows[:, None] * groups + (tl.minimum(own, blocks - 1) * (4 * ROW) // GROUP)[None, :]
        if WHOLE_K:
            packed = tl.load(pairs_at + turn * (DEPTH * PAIRS))
        else:
            packed = tl.load(pairs_at + turn * (DEPTH * PAIRS), mask=there[None, :, None], other=0)
        scale = tl.load(scales + group).to(tl.float32)  # (BLOCK_N, DEPTH)
        zero = tl.load(zeros + group).to(tl.float32) + 128
        part = tl.zeros((BLOCK_N, DEPTH, PAIRS), tl.float32)
        states_sum = tl.zeros((DEPTH, PAIRS), tl.float32)
        for plane in tl.static_range(4):
            at = inputs + own[:, None] * (4 * PAIRS) + plane * PAIRS + pair[None, :]
            both = tl.load(at) if WHOLE_K else tl.load(at, mask=there[:, None], other=0)
            if kind == tl.bfloat16:
                low = (both << 16).to(tl.float32, bitcast=True)
                high = (both & -65536).to(tl.float32, bitcast=True)
            else:
                low = both.to(tl.int16).to(kind, bitcast=True).to(tl.float32)
                high = (both >> 16).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
            first = (((packed << (16 - 4 * plane)) & 0x000F0000) | base).to(tl.float32, bitcast=True)
            second = (((packed >> (4 * plane)) & 0x000F0000) | base).to(tl.float32, bitcast=True)
            part += first * low[None, :, :]
            part += second * high[None, :, :]
            states_sum += low + high
        total += (part - zero[:, :, None] * states_sum[None, :, :]) * scale[:, :, None]
    return tl.sum(tl.sum(total, 2), 1)[None, :]


@triton.jit(do_not_specialize=["tokens", "blocks", "turns", "groups", "num_parts", "base"])
def _few_kernel(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    squares: tl.tensor,
    norm: tl.tensor,
    next_states: tl.tensor,
    next_squares: tl.tensor,
    tokens: tl.tensor,
    x_stride: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    blocks: tl.tensor,
    turns: tl.tensor,
    groups: tl.tensor,
    num_parts: tl.tensor,
    base: tl.tensor,
    eps: tl.tensor,
    GROUP: tl.constexpr,
    WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    IS_BF16: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    ROW: tl.constexpr,
    SHARES: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Compute one block of outputs for all tokens, by `_one`, or where DEPTH is 0 by `_few`.

    What stands around the product is as in triton_gemm.py.
    """
    block = tl.program_id(0)
    local = tl.arange(0, BLOCK_N)
    if GATED:  # as many rows of the gate's weight as of the other's
        HALF: tl.constexpr = BLOCK_N // 2
        columns = block * HALF + local % HALF
        safe = columns if WHOLE_N else tl.minimum(columns, outputs - 1)
        weight_rows = safe + local // HALF * outputs
    else:
        columns = block * BLOCK_N + local
        safe = columns if WHOLE_N else tl.minimum(columns, outputs - 1)
        weight_rows = safe
    rows = tl.arange(0, BLOCK_T)
    known = rows[:, None] < tokens
    # 1. what nobody writes
    if EARLY > 0:
        row_at = words + weight_rows.to(tl.int64) * (blocks * ROW)
        size = tl.full([BLOCK_N], EARLY * 2, tl.int32)  # bytes
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
            "=r,l,r",
            [row_at, size],
            tl.int32,
            is_pure=False,
            pack=1,
        )
    if BIAS:
        biases = tl.load(bias + safe)
    if ADDED:
        weights = tl.load(norm + safe)
    if EARLY > 0:
        tl.extra.cuda.gdc_wait()
    # 2. what is needed at the end, asked for now
    if BLOCK_PARTS > 0:
        parts = tl.arange(0, BLOCK_PARTS)
        at = squares + rows[:, None] * num_parts + parts[None, :]
        square = tl.load(at, mask=known & (parts[None, :] < num_parts), other=0.0)
    cells = rows[:, None].to(tl.int64) * outputs + columns[None, :]
    inside = known & (columns < outputs)[None, :]
    if ADDED:
        before = tl.load(out + cells, mask=inside, other=0.0)
    # 3. the product
    if DEPTH > 0:
        sums = _one(
            *(x, words, scales, zeros, weight_rows, blocks, turns, groups, base),
            *(GROUP, WHOLE_K, BLOCK_N, ROW, DEPTH, STAGES),
        )
    else:
        sums = _few(
            *(x, words, scales, zeros, weight_rows, tokens, x_stride, inputs, blocks, turns, groups),
            *(GROUP, WHOLE_K, IS_BF16, BLOCK_N, BLOCK_T, ROW, SHARES),
        )
    if EARLY > 0:  # not before: programs that wait would crowd some multiprocessors
        tl.extra.cuda.gdc_launch_dependents()
    joined = sums
    # 4. what stands around the product
    if BLOCK_PARTS > 0:
        joined *= tl.rsqrt(tl.sum(square, 1) / inputs + eps)[:, None]
    if BIAS:
        joined += biases.to(tl.float32)[None, :]
    if GATED:
        store_gated(joined, out, block, tokens, outputs, BLOCK_N, BLOCK_T)
    elif ADDED:
        store_added(joined, before, weights, out, next_states, next_squares, columns, block, tokens, outputs, BLOCK_T)
    else:
        tl.store(out + cells, joined.to(out.dtype.element_ty), mask=inside)


def unpacked(words: Tensor, scales: Tensor, zeros: Tensor, inputs: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return the weight as a matrix of half numbers, (N, K), for more tokens than the kernel serves."""
    outputs, groups = scales.shape
    blocks = words.shape[1] // ROW
    out = torch.empty(outputs, inputs, dtype=dtype, device=words.device)
    with torch.cuda.device(words.get_device()):
        launch(_unpack_kernel, (triton.cdiv(outputs, 32), blocks))(
            *(words, scales, zeros, out, outputs, inputs, blocks, groups), GROUP=group, BLOCK_N=32, ROW=ROW
        )
    return out


@triton.jit(do_not_specialize=["blocks", "groups"])
def _unpack_kernel(
    words: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    out: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    blocks: tl.tensor,
    groups: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROW: tl.constexpr,
) -> None:
    """Unpack one block of inputs of some outputs."""
    block = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, ROW)
    there = (columns < outputs)[:, None]
    at = columns.to(tl.int64)[:, None] * (blocks * ROW) + block * ROW + inner[None, :]
    packed = tl.load(words + at, mask=there, other=0)  # (BLOCK_N, ROW)
    for plane in tl.static_range(4):
        start = block * (4 * ROW) + plane * ROW
        own = columns * groups + start // GROUP
        scale = tl.load(scales + own, mask=columns < outputs, other=0.0).to(tl.float32)
        zero = tl.load(zeros + own, mask=columns < outputs, other=0).to(tl.int32)
        weights = (((packed.to(tl.int32) >> (4 * plane)) & 15) - zero[:, None]).to(tl.float32) * scale[:, None]
        cells = columns.to(tl.int64)[:, None] * inputs + start + inner[None, :]
        tl.store(out + cells, weights.to(out.dtype.element_ty), mask=there & (start + inner < inputs)[None, :])


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
