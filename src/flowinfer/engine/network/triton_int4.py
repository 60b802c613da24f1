"""Triton kernel of a linear map with weights of four bits: they are read packed and made numbers in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.backends.int4 import ROW
from flowinfer.engine.caches.launching import launch


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
def _numbers(packed: tl.tensor, PLANE: tl.constexpr, IS_BF16: tl.constexpr) -> tl.tensor:
    """Return the numbers of one plane of words, to which in bfloat16 128 is added."""
    if IS_BF16:
        return tl.inline_asm_elementwise(_BF16[PLANE], "=r,r", [packed], tl.bfloat16, is_pure=True, pack=2)
    else:
        return tl.inline_asm_elementwise(_FP16[PLANE], "=r,r", [packed], tl.float16, is_pure=True, pack=2)


@triton.jit
def _spread(scale: tl.tensor, zero: tl.tensor, IS_BF16: tl.constexpr) -> tl.tensor:
    """Return scales (..., N) and what is to be taken off numbers, (..., N, 1) each; threads exchange both at once."""
    bits = scale.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    both = tl.expand_dims(bits | zero.to(tl.int32) << 16, -1)
    factor = both.to(tl.int16).to(scale.dtype, bitcast=True).to(tl.float32)
    return factor, (both >> 16).to(tl.float32) + (128 if IS_BF16 else 0)


@triton.jit
def packed_sums(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    rows: tl.tensor,
    tokens: tl.tensor,
    x_stride: tl.tensor,
    words_stride: tl.tensor,
    inputs: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    groups: tl.tensor,
    GROUP: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> tl.tensor:
    """Return products of some of a weight's rows with all tokens, (BLOCK_T, BLOCK_N), by matrix units.

    In a turn of several blocks of inputs each is one warp's, and the warps' sums are added at the end (S = blocks a
    turn); in a turn of one block the warps share the outputs (no S). Within a group sum (q - zero) x = sum q x - zero
    sum x. For few tokens sum x is a product with ones; for more, zero points are taken off the numbers. They are read,
    like the scales, while the group before is computed.

    Args:
        words: (N,), where each row's words begin.
        rows: (N,), numbers of the rows.
    """
    SHARES: tl.constexpr = BLOCK_K // 128
    ROW: tl.constexpr = 32
    IS_BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    ONES: tl.constexpr = BLOCK_T <= 16
    inner = tl.arange(0, ROW)
    token = tl.arange(0, BLOCK_T)
    if SHARES > 1:
        share = tl.arange(0, SHARES)[:, None, None]
        group_share = tl.arange(0, SHARES)[:, None]
        group_rows = (rows * groups)[None, :]
        words_at = words[None, :, None] + inner[None, None, :]
        inner_x = inner[None, :, None]
        token_x = token[None, None, :]
        ones = tl.full((SHARES, BLOCK_N, ROW), 1.0, tl.float32).to(x.dtype.element_ty)
        total = tl.zeros((SHARES, BLOCK_N, BLOCK_T), tl.float32)
    else:
        share = 0
        group_share = 0
        group_rows = rows * groups
        words_at = words[:, None] + inner[None, :]
        inner_x = inner[:, None]
        token_x = token[None, :]
        ones = tl.full((BLOCK_N, ROW), 1.0, tl.float32).to(x.dtype.element_ty)
        total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    x_at = x + token_x * x_stride + inner_x
    here = token_x < tokens
    at = group_rows + tl.minimum((first * SHARES + group_share) * 128 // GROUP, groups - 1)
    scale, zero = tl.load(scales + at), tl.load(zeros + at)
    for turn in range(first, last):
        own = turn * SHARES + share  # blocks of inputs
        if WHOLE_K:
            packed = tl.load(words_at + own * ROW)
        else:
            packed = tl.load(words_at + own * ROW, mask=own * ROW < words_stride, other=0)  # ([S,] N, ROW)
        for plane in tl.static_range(4):
            if plane * ROW % GROUP == 0:
                ahead = (plane * ROW + GROUP) % 128 if GROUP < 128 else 0
                then = turn if ahead > 0 else turn + 1
                at = group_rows + tl.minimum(((then * SHARES + group_share) * 128 + ahead) // GROUP, groups - 1)
                next_scale, next_zero = tl.load(scales + at), tl.load(zeros + at)
                part = tl.zeros_like(total)
                states_sum = tl.zeros_like(total)
                if not ONES:  # read where they are needed, in the layout of the numbers
                    at = group_rows + tl.minimum((turn * 128 + plane * ROW) // GROUP, groups - 1)
                    offset = tl.expand_dims(tl.load(zeros + at).to(tl.float32) + (128 if IS_BF16 else 0), -1)
            start = own * 128 + plane * ROW
            mask = here if WHOLE_K else here & (start + inner_x < inputs)
            states = tl.load(x_at + start, mask=mask, other=0.0)  # ([S,] ROW, BLOCK_T)
            numbers = _numbers(packed, plane, IS_BF16)
            if ONES:
                states_sum = tl.dot(ones, states, states_sum)
            else:
                numbers -= offset.to(numbers.dtype)
            part = tl.dot(numbers, states, part)  # ([S,] BLOCK_N, BLOCK_T)
            if (plane + 1) * ROW % GROUP == 0 or plane == 3:
                if ONES:
                    factor, offset = _spread(scale, zero, IS_BF16)
                    part -= offset * states_sum
                else:
                    factor = tl.expand_dims(scale.to(tl.float32), -1)
                total += part * factor
                scale, zero = next_scale, next_zero
    return tl.trans(tl.sum(total, 0) if SHARES > 1 else total)


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
