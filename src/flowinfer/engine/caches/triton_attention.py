"""Triton kernels over a paged KV cache: write new keys and values, attend to a row's keys in splits, join the splits.

Flash-decoding (Dao et al., 2023): each program streams a share of one token's keys for the query heads of one key
head, with an online softmax in base 2; a second kernel joins the shares by their log-sum-exp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.kernels import Paged
from flowinfer.engine.caches.launching import launch

_LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class Tiles:
    """How one program of the attention kernel works."""

    block: int
    """Keys per loop turn; a power of two from 16 on that divides the page."""
    num_warps: int
    num_stages: int
    """Depth of Triton's software pipeline; the page number's own load takes part of it."""


def tiles_for(dim: int, page: int, itemsize: int, programs: int) -> Tiles:
    """Return tiles that keep enough keys and values in flight and fit shared memory and registers.

    Args:
        dim: head dimension.
        page: keys per page.
        itemsize: bytes per number of the cache.
        programs: programs of the launch; few must each have more in flight, many share a multiprocessor.
    """
    most = 64 if itemsize == 2 else 32 if dim <= 128 else 16
    deep = itemsize == 2 and dim <= 128 and programs <= 256
    return Tiles(min(page, most), num_warps=4, num_stages=5 if deep else 3)


def write_kv(keys: Tensor, values: Tensor, paged: Paged) -> None:
    """Write flat tokens' keys and values to their pages; as kernels.write_kv."""
    tokens, heads, dim = keys.shape
    if not tokens:
        return
    with _device(keys):
        launch(_write_kernel, (tokens,))(
            *(keys, values, paged.keys, paged.values, paged.rows, paged.positions, paged.table),
            *keys.stride()[:2],
            *values.stride()[:2],
            paged.table.stride(0),
            HEADS=heads,
            DIM=dim,
            PAGE=paged.keys.shape[2],
            BLOCK_HEADS=triton.next_power_of_2(heads),
            BLOCK_DIM=triton.next_power_of_2(dim),
        )


def paged_attention(
    query: Tensor, paged: Paged, attention: Attention, splits: int, tiles: Tiles | None = None
) -> Tensor:
    """Attend; as kernels.paged_attention, with tiles to try others than the usual."""
    tokens, query_heads, dim = query.shape
    heads, page = paged.keys.shape[1], paged.keys.shape[2]
    out = query.new_empty(tokens, query_heads, dim)
    if not tokens:
        return out
    tiles = tiles or tiles_for(dim, page, paged.keys.element_size(), tokens * heads * splits)
    partial, lse = out, out  # the splits' own outputs and their log-sum-exps, base 2
    if splits > 1:
        partial = query.new_empty(tokens, splits, query_heads, dim, dtype=torch.float32)
        lse = query.new_empty(tokens, splits, query_heads, dtype=torch.float32)
    with _device(query):
        launch(_attend_kernel, (tokens, heads, splits))(
            *launch_arguments(query, paged, attention, partial, lse),
            SPLITS=splits,
            BLOCK=tiles.block,
            BLOCK_GROUP=max(16, triton.next_power_of_2(query_heads // heads)),  # tl.dot wants 16
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",  # of no effect in half precision
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **launch_options(query, paged, attention),
        )
        if splits > 1:
            launch(_join_kernel, (tokens, query_heads))(
                *(partial, lse, out),
                SPLITS=splits,
                HEADS=query_heads,
                DIM=dim,
                BLOCK_SPLITS=triton.next_power_of_2(splits),
                BLOCK_DIM=triton.next_power_of_2(dim),
                num_warps=2,
            )
    return out


def launch_arguments(query: Tensor, paged: Paged, attention: Attention, *others: object) -> tuple[object, ...]:
    """Return the arguments of a kernel that attends, its own `others` behind the tensors that all have."""
    softcap = attention.softcap
    return (
        *(query, paged.keys, paged.values, paged.rows, paged.positions, paged.table, *others),
        *(*query.stride()[:2], paged.table.stride(0)),
        *(attention.scaling / softcap if softcap else attention.scaling * _LOG2E, attention.window, softcap * _LOG2E),
    )


def launch_options(query: Tensor, paged: Paged, attention: Attention) -> dict[str, Any]:
    """Return what a kernel that attends is compiled for, beside tiles of its own."""
    _, query_heads, dim = query.shape
    heads, page = paged.keys.shape[1], paged.keys.shape[2]
    return {
        "HEADS": heads,
        "GROUP": query_heads // heads,
        "DIM": dim,
        "PAGE": page,
        "BLOCK_DIM": max(16, triton.next_power_of_2(dim)),
        "WINDOW": attention.window > 0,
        "SOFTCAP": attention.softcap > 0,
    }


def _device(tensor: Tensor) -> torch.cuda.device:
    """Return a context in which launches go to the tensor's device; nothing on the CPU, where Triton interprets."""
    return torch.cuda.device(tensor.get_device())


@triton.jit(do_not_specialize=["table_stride"])
def _write_kernel(
    keys: tl.tensor,
    values: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    table: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    table_stride: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Write one token."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    if row >= 0:
        position = tl.load(positions + token)
        page = tl.load(table + row * table_stride + position // PAGE).to(tl.int64)
        heads = tl.arange(0, BLOCK_HEADS)[:, None]
        dims = tl.arange(0, BLOCK_DIM)[None, :]
        inside = (heads < HEADS) & (dims < DIM)
        target = ((page * HEADS + heads) * PAGE + position % PAGE) * DIM + dims
        key = tl.load(keys + token * key_stride + heads * key_head_stride + dims, mask=inside)
        value = tl.load(values + token * value_stride + heads * value_head_stride + dims, mask=inside)
        tl.store(key_cache + target, key.to(key_cache.dtype.element_ty), mask=inside)
        tl.store(value_cache + target, value.to(value_cache.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["table_stride", "window"])
def _attend_kernel(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    cap: tl.tensor,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Attend with one token's query heads of one key head to one split of its keys."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    row = tl.load(rows + token).to(tl.int64)
    position = tl.load(positions + token)
    position = tl.where(row < 0, -1, position)  # padding sees no key
    pages = table + tl.maximum(row, 0) * table_stride

    # Blocks first..end hold keys that the token sees, at least one each; this split takes start..stop.
    end = (position + BLOCK) // BLOCK
    first = 0
    if WINDOW:
        first = tl.maximum(position - window + 1, 0) // BLOCK
    share = (end - first + SPLITS - 1) // SPLITS
    start = first + split * share
    stop = tl.minimum(start + share, end)

    members = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    offsets = tl.arange(0, BLOCK)
    inside = (members < GROUP)[:, None] & (dims < DIM)[None, :]
    query_heads = head * GROUP + members
    q = tl.load(
        query + token * query_stride + query_heads[:, None] * query_head_stride + dims[None, :], mask=inside, other=0.0
    )
    peak = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    mixed = tl.zeros((BLOCK_GROUP, BLOCK_DIM), tl.float32)
    for block in range(start, stop):
        page = tl.load(pages + block // (PAGE // BLOCK)).to(tl.int64)
        base = ((page * HEADS + head) * PAGE + block % (PAGE // BLOCK) * BLOCK) * DIM
        spots = block * BLOCK + offsets
        seen = spots <= position
        if WINDOW:
            seen = seen & (spots > position - window)
        # Unseen slots may hold anything, NaN too, and are not loaded.
        k = tl.load(
            key_cache + base + offsets[None, :] * DIM + dims[:, None],
            mask=seen[None, :] & (dims < DIM)[:, None],
            other=0.0,
        )
        v = tl.load(
            value_cache + base + offsets[:, None] * DIM + dims[None, :],
            mask=seen[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * scale  # (BLOCK_GROUP, BLOCK)
        if SOFTCAP:
            scores = cap * (1.0 - 2.0 / (1.0 + tl.exp2(scores * 2.8853900817779268)))  # tanh; the number is 2 log2(e)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        probs = tl.exp2(scores - higher[:, None])
        total = total * fade + tl.sum(probs, 1)
        mixed = tl.dot(probs.to(v.dtype), v, mixed * fade[:, None], input_precision=PRECISION)
        peak = higher

    some = tl.where(total > 0, total, 1.0)
    cell = (token * SPLITS + split) * (HEADS * GROUP) + query_heads
    mixed = mixed / some[:, None]
    tl.store(out + cell[:, None] * DIM + dims[None, :], mixed.to(out.dtype.element_ty), mask=inside)
    if SPLITS > 1:
        tl.store(lse + cell, tl.where(total > 0, peak + tl.log2(some), float("-inf")), mask=members < GROUP)


@triton.jit
def _join_kernel(
    partial: tl.tensor,
    lse: tl.tensor,
    out: tl.tensor,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Join the splits of one token's query head."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_DIM)
    cells = (token * SPLITS + splits) * HEADS + head
    shares = tl.load(lse + cells, mask=splits < SPLITS, other=float("-inf"))  # -inf: a split without keys
    weights = tl.exp2(shares - tl.maximum(tl.max(shares, 0), -3.0e38))
    parts = tl.load(
        partial + cells[:, None] * DIM + dims[None, :], mask=(weights > 0)[:, None] & (dims < DIM)[None, :], other=0.0
    )
    total = tl.sum(weights, 0)
    mixed = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + (token * HEADS + head) * DIM + dims, mixed.to(out.dtype.element_ty), mask=dims < DIM)
