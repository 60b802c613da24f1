"""A Triton kernel for prompts: flat tokens that follow one another in a row read its pages once for all of them.

FlashAttention-2 (Dao, 2023) over pages: a program has some neighbouring tokens and the query heads of one key head, and
streams the keys of each row that these tokens are of, with an online softmax in base 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.kernels import Paged
from flowinfer.engine.caches.launching import launch
from flowinfer.engine.caches.triton_attention import launch_arguments, launch_options

_QUERIES = 128
"""Pairs of token and query head of a program."""
_LEAST_TOKENS = 128
"""Flat tokens from which on it is worth it: fewer leave multiprocessors without work."""
_MOST_DIM = 128


def serves(query: Tensor, paged: Paged) -> bool:
    """Return whether the kernel fits these queries: (T, H, D), in half precision."""
    tokens, heads, dim = query.shape
    return (
        tokens >= _LEAST_TOKENS
        and dim <= _MOST_DIM
        and paged.keys.element_size() == 2
        and heads // paged.keys.shape[1] <= _QUERIES
    )


def prompt_attention(query: Tensor, paged: Paged, attention: Attention) -> Tensor:
    """Attend; as kernels.paged_attention, whatever the order of tokens, quickest where neighbours are of one row."""
    tokens, query_heads, dim = query.shape
    heads, page = paged.keys.shape[1], paged.keys.shape[2]
    out = query.new_empty(tokens, query_heads, dim)
    group = triton.next_power_of_2(query_heads // heads)
    own = _QUERIES // group
    with torch.cuda.device(query.get_device()):
        launch(_prompt_kernel, (triton.cdiv(tokens, own), heads))(
            *launch_arguments(query, paged, attention, out, tokens),
            TOKENS=own,
            BLOCK=min(page, 64),
            BLOCK_GROUP=group,
            num_warps=8,
            num_stages=3,
            **launch_options(query, paged, attention),
        )
    return out


@triton.jit
def _prompt_kernel(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    cap: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """Attend with some tokens' query heads of one key head; grid (T / TOKENS, H_kv)."""
    head = tl.program_id(1)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_there = tokens < num_tokens
    own_rows = tl.load(rows + tokens, mask=is_there, other=-1)
    own_positions = tl.load(positions + tokens, mask=is_there, other=-1)
    own_positions = tl.where(own_rows < 0, -1, own_positions)  # padding sees no key
    before = tl.load(rows + tokens - 1, mask=is_there & (tl.arange(0, TOKENS) > 0), other=-2)
    stretches = tl.cumsum((own_rows != before).to(tl.int32), 0)  # (TOKENS,): neighbours of one row are one, from 1

    # (TOKENS,) -> (TOKENS x BLOCK_GROUP,): a lane for each pair of token and query head
    wide: tl.constexpr = TOKENS * BLOCK_GROUP
    lane_stretch = tl.reshape(tl.broadcast_to(stretches[:, None], (TOKENS, BLOCK_GROUP)), (wide,))
    lane_position = tl.reshape(tl.broadcast_to(own_positions[:, None], (TOKENS, BLOCK_GROUP)), (wide,))
    lanes = tl.arange(0, wide)
    lane_token = (tl.program_id(0) * TOKENS + lanes // BLOCK_GROUP).to(tl.int64)
    member = lanes % BLOCK_GROUP
    dims, offsets = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK)
    inside = ((lane_token < num_tokens) & (member < GROUP))[:, None] & (dims < DIM)[None, :]
    lane_head = head * GROUP + member
    q = tl.load(
        query + lane_token[:, None] * query_stride + lane_head[:, None] * query_head_stride + dims[None, :],
        mask=inside,
        other=0.0,
    )
    peak = tl.full((wide,), float("-inf"), tl.float32)
    total = tl.zeros((wide,), tl.float32)
    mixed = tl.zeros((wide, BLOCK_DIM), tl.float32)
    for number in range(1, tl.max(stretches, 0) + 1):
        is_here = stretches == number
        row = tl.max(tl.where(is_here, own_rows, -1), 0).to(tl.int64)
        end = tl.max(tl.where(is_here, own_positions, -1), 0)
        start = 0
        if WINDOW:
            start = tl.maximum(tl.min(tl.where(is_here, own_positions, 2147483647), 0) - window + 1, 0) // BLOCK
        pages = table + tl.maximum(row, 0) * table_stride
        for block in range(start, (end + BLOCK) // BLOCK):
            page = tl.load(pages + block // (PAGE // BLOCK)).to(tl.int64)
            base = ((page * HEADS + head) * PAGE + block % (PAGE // BLOCK) * BLOCK) * DIM
            spots = block * BLOCK + offsets
            # Unwritten slots may hold anything, NaN too, and are not loaded.
            k = tl.load(
                key_cache + base + offsets[None, :] * DIM + dims[:, None],
                mask=(spots <= end)[None, :] & (dims < DIM)[:, None],
                other=0.0,
            )
            v = tl.load(
                value_cache + base + offsets[:, None] * DIM + dims[None, :],
                mask=(spots <= end)[:, None] & (dims < DIM)[None, :],
                other=0.0,
            )
            seen = (lane_stretch == number)[:, None] & (spots[None, :] <= lane_position[:, None])
            if WINDOW:
                seen = seen & (spots[None, :] > lane_position[:, None] - window)
            scores = tl.dot(q, k) * scale  # (wide, BLOCK)
            if SOFTCAP:
                scores = cap * (1.0 - 2.0 / (1.0 + tl.exp2(scores * 2.8853900817779268)))  # tanh; 2 log2(e)
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            level = tl.where(higher == float("-inf"), 0.0, higher)  # of lanes that have seen nothing yet
            fade = tl.exp2(peak - level)
            probs = tl.exp2(scores - level[:, None])
            total = total * fade + tl.sum(probs, 1)
            mixed = tl.dot(probs.to(v.dtype), v, mixed * fade[:, None])
            peak = higher
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    cell = lane_token * (HEADS * GROUP) + lane_head
    tl.store(out + cell[:, None] * DIM + dims[None, :], mixed.to(out.dtype.element_ty), mask=inside)
