"""Triton kernels of what a decoder does row by row between its matrices: embed, norm, turn and write, gate."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.engine.caches.kernels import Paged
from flowinfer.engine.caches.launching import launch
from flowinfer.engine.caches.triton_step import HeadNorms, turned
from flowinfer.engine.network.triton_ends import Norm


def embed(
    ids: Tensor, table: Tensor, weight: Tensor, eps: float, parts: int, rows: Tensor | None = None
) -> tuple[Tensor, Norm]:
    """Return a table's rows for ids (T,) int64, and half their norm, (T, D) each; squares come in `parts`."""
    states = table.new_empty(len(ids), table.shape[1])
    normed = states.new_empty(states.shape)
    squares = table.new_empty(len(ids), parts, dtype=torch.float32)
    with torch.cuda.device(table.get_device()):
        launch(_embed_kernel, (len(ids),))(
            *(ids, table, weight, states, normed, squares),
            DIM=table.shape[1],
            BLOCK=triton.next_power_of_2(table.shape[1]),
            PARTS=parts,
            BLOCK_PARTS=triton.next_power_of_2(parts),
            num_warps=8,
        )
    return states, Norm(normed, squares, eps, rows)


def norm(states: Tensor, weight: Tensor, eps: float, *, added: Tensor | None = None) -> Tensor:
    """Return the RMS norm of states (T, D), to which `added` is added in place before."""
    out = states.new_empty(states.shape)
    if len(states):
        with torch.cuda.device(states.get_device()):
            launch(_norm_kernel, (len(states),))(
                *(states, states if added is None else added, weight, out, eps),
                DIM=states.shape[1],
                BLOCK=triton.next_power_of_2(states.shape[1]),
                ADDED=added is not None,
                num_warps=8,
            )
    return out


def finish(half: Norm, wanted: Tensor) -> Tensor:
    """Return the norm of wanted rows (W,) int64 of which half is done: (T, D) -> (W, D)."""
    out = half.states.new_empty(len(wanted), half.states.shape[1])
    parts = half.squares.shape[1]
    if len(wanted):
        with torch.cuda.device(out.get_device()):
            launch(_finish_kernel, (len(wanted),))(
                *(half.states, half.squares, wanted, out, half.eps),
                DIM=out.shape[1],
                BLOCK=triton.next_power_of_2(out.shape[1]),
                PARTS=parts,
                BLOCK_PARTS=triton.next_power_of_2(parts),
                num_warps=8,
            )
    return out


def turn_and_write(qkv: Tensor, paged: Paged, turns: Tensor, norms: HeadNorms | None, num_heads: int) -> None:
    """Turn queries in place, and write turned keys and values to their pages; as `step_attention` before it attends."""
    _, heads, page, dim = paged.keys.shape
    if not len(qkv):
        return
    with torch.cuda.device(qkv.get_device()):
        launch(_turn_kernel, (len(qkv), num_heads // heads + 2))(
            *(qkv, paged.keys, paged.values, paged.rows, paged.positions, paged.table, turns),
            *((qkv, qkv) if norms is None else (norms.query, norms.key)),
            paged.table.stride(0),
            0.0 if norms is None else norms.eps,
            HEADS=heads,
            GROUP=num_heads // heads,
            DIM=dim,
            PAGE=page,
            BLOCK_HEADS=triton.next_power_of_2(heads),
            BLOCK_HALF=triton.next_power_of_2(dim // 2),
            NORMED=norms is not None,
            num_warps=1,
        )


def gate(states: Tensor) -> Tensor:
    """Return silu(g) u of states whose first half is g and second u: (T, 2 N) -> (T, N)."""
    tokens, width = states.shape[0], states.shape[1] // 2
    out = states.new_empty(tokens, width)
    if tokens:
        with torch.cuda.device(states.get_device()):
            launch(_gate_kernel, (tokens, triton.cdiv(width, 2048)))(states, out, WIDTH=width, BLOCK=2048, num_warps=4)
    return out


@triton.jit
def _embed_kernel(
    ids: tl.tensor,
    table: tl.tensor,
    weight: tl.tensor,
    states: tl.tensor,
    normed: tl.tensor,
    squares: tl.tensor,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
) -> None:
    """Embed one token."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    inside = dims < DIM
    own = tl.load(table + tl.load(ids + token) * DIM + dims, mask=inside, other=0.0)
    tl.store(states + token * DIM + dims, own, mask=inside)
    exact = own.to(tl.float32)
    weights = tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + token * DIM + dims, (exact * weights).to(own.dtype), mask=inside)
    parts = tl.arange(0, BLOCK_PARTS)
    square = tl.where(parts == 0, tl.sum(exact * exact, 0), 0.0)
    tl.store(squares + token * PARTS + parts, square, mask=parts < PARTS)


@triton.jit
def _norm_kernel(
    states: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDED: tl.constexpr,
) -> None:
    """Norm one token's states."""
    cells = tl.program_id(0).to(tl.int64) * DIM + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < DIM
    own = tl.load(states + cells, mask=inside, other=0.0)
    exact = own.to(tl.float32)
    if ADDED:
        own = (exact + tl.load(added + cells, mask=inside, other=0.0).to(tl.float32)).to(own.dtype)
        tl.store(states + cells, own, mask=inside)
        exact = own.to(tl.float32)
    weights = tl.load(weight + tl.arange(0, BLOCK), mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(exact * exact, 0) / DIM + eps)
    tl.store(out + cells, (exact * scale * weights).to(own.dtype), mask=inside)


@triton.jit
def _finish_kernel(
    states: tl.tensor,
    squares: tl.tensor,
    wanted: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
) -> None:
    """Scale one wanted row."""
    index = tl.program_id(0).to(tl.int64)
    token = tl.load(wanted + index)
    parts, dims = tl.arange(0, BLOCK_PARTS), tl.arange(0, BLOCK)
    square = tl.sum(tl.load(squares + token * PARTS + parts, mask=parts < PARTS, other=0.0), 0)
    own = tl.load(states + token * DIM + dims, mask=dims < DIM, other=0.0)
    scaled = own.to(tl.float32) * tl.rsqrt(square / DIM + eps)
    tl.store(out + index * DIM + dims, scaled.to(own.dtype), mask=dims < DIM)


@triton.jit(do_not_specialize=["table_stride"])
def _turn_kernel(
    qkv: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    table: tl.tensor,
    turns: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    table_stride: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORMED: tl.constexpr,
) -> None:
    """Turn as many of one token's heads as there are key heads: of its queries, its keys, or move its values."""
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.load(rows + token).to(tl.int64)
    if row < 0:
        return
    position = tl.load(positions + token)
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    halves = tl.arange(0, BLOCK_HALF)
    inside = (heads < HEADS) & (halves < HALF)[None, :]
    at = qkv + (token * (GROUP + 2) + part) * HEADS * DIM + heads * DIM + halves[None, :]
    low = tl.load(at, mask=inside, other=0.0)
    high = tl.load(at + HALF, mask=inside, other=0.0)
    page = tl.load(table + row * table_stride + position // PAGE).to(tl.int64)
    slot = ((page * HEADS + heads) * PAGE + position % PAGE) * DIM + halves[None, :]
    if part == GROUP + 1:
        tl.store(value_cache + slot, low, mask=inside)
        tl.store(value_cache + slot + HALF, high, mask=inside)
        return
    angle = turns + position.to(tl.int64) * DIM + halves
    cos = tl.load(angle, mask=halves < HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(angle + HALF, mask=halves < HALF, other=0.0).to(tl.float32)[None, :]
    if part == GROUP:
        low, high = turned(low, high, cos, sin, key_norm, halves, eps, NORMED, DIM)
        tl.store(key_cache + slot, low, mask=inside)
        tl.store(key_cache + slot + HALF, high, mask=inside)
    else:
        low, high = turned(low, high, cos, sin, query_norm, halves, eps, NORMED, DIM)
        tl.store(at, low, mask=inside)
        tl.store(at + HALF, high, mask=inside)


@triton.jit
def _gate_kernel(states: tl.tensor, out: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Gate one block of one token."""
    token = tl.program_id(0).to(tl.int64)
    cells = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cells < WIDTH
    own = tl.load(states + token * 2 * WIDTH + cells, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(states + token * 2 * WIDTH + WIDTH + cells, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + cells, (own * tl.sigmoid(own) * other).to(out.dtype.element_ty), mask=inside)
