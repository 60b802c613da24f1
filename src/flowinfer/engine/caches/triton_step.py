"""Triton kernel of a decoding step's attention: turn, write, attend and join in one launch.

It reads queries, keys and values of few flat tokens as the matrix leaves them. Keys and values that are new in this
forward are taken from there, by every token that sees them; those before from the cache's pages. So no launch between
the matrix and the attention is needed, and none after: of a head's splits the last to end joins them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.engine.caches.kernels import Paged
from flowinfer.engine.caches.launching import can_be_early, launch

_LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms of queries and keys per head."""

    query: Tensor
    """(D,)."""
    key: Tensor
    """(D,)."""
    eps: float


def step_attention(
    qkv: Tensor,
    paged: Paged,
    turns: Tensor,
    norms: HeadNorms | None,
    *,
    num_heads: int,
    scaling: float,
    window: int,
    splits: int,
    counters: Tensor | None = None,
    is_early: bool = False,
) -> Tensor:
    """Write flat tokens' turned keys and their values to their pages, and attend.

    Args:
        qkv: (T, (H + 2 H_kv) D), contiguous.
        paged: the pages, which are changed, and where the tokens are; those of one row stand one behind the other.
        turns: (positions, 2, D / 2), cosines and sines of every position.
        norms: of queries and keys, if any.
        num_heads: H.
        scaling: multiplies scores.
        window: number of last positions that a token sees; 0 = all.
        splits: programs that share a token's keys.
        counters: T H_kv zeros; made here if None.
        is_early: begin while the launch before still runs.
    Returns:
        (T, H D); zeros for padding.
    """
    tokens = len(qkv)
    _, heads, page, dim = paged.keys.shape
    out = qkv.new_empty(tokens, num_heads * dim)
    partial, lse = out, out
    if splits > 1:
        partial = qkv.new_empty(tokens, splits, num_heads, dim, dtype=torch.float32)
        lse = qkv.new_empty(tokens, splits, num_heads, dtype=torch.float32)
        if counters is None:
            counters = torch.zeros(tokens * heads, dtype=torch.int32, device=qkv.device)
    block = min(page, 64)
    is_early = is_early and can_be_early(qkv)
    with torch.cuda.device(qkv.get_device()):
        launch(_step_kernel, (tokens, heads, splits))(
            *(qkv, paged.keys, paged.values, paged.rows, paged.positions, paged.table, turns),
            *((qkv, qkv) if norms is None else (norms.query, norms.key)),
            *(out, partial, lse, lse if counters is None else counters),
            *(tokens, paged.table.stride(0), scaling * _LOG2E, window),
            0.0 if norms is None else norms.eps,
            SPLITS=splits,
            HEADS=heads,
            GROUP=num_heads // heads,
            DIM=dim,
            PAGE=page,
            BLOCK=block,
            BLOCK_GROUP=max(16, triton.next_power_of_2(num_heads // heads)),
            BLOCK_HALF=max(16, triton.next_power_of_2(dim // 2)),
            BLOCK_T=16 if tokens <= 16 else 64,
            NORMED=norms is not None,
            WINDOW=window > 0,
            EARLY=is_early,
            PIECE=block * dim // 128 if block * dim % 1024 == 0 else 0,
            num_warps=4 if tokens <= 16 else 2,  # as measured
            num_stages=3,
            launch_pdl=is_early,
        )
    return out


@triton.jit
def turned(
    low: tl.tensor,
    high: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    norm: tl.tensor,
    dims: tl.tensor,
    eps: tl.tensor,
    NORMED: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """Turn heads (A, D / 2) x 2 by cosines and sines (1 | A, D / 2), after their norm."""
    kind = low.dtype
    low, high = low.to(tl.float32), high.to(tl.float32)
    if NORMED:
        scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / DIM + eps)[:, None]
        low = low * scale * tl.load(norm + dims, mask=dims < DIM // 2, other=0.0).to(tl.float32)[None, :]
        high = high * scale * tl.load(norm + DIM // 2 + dims, mask=dims < DIM // 2, other=0.0).to(tl.float32)[None, :]
    return (low * cos - high * sin).to(kind), (high * cos + low * sin).to(kind)


@triton.jit(do_not_specialize=["tokens", "table_stride", "window", "counters"])
def _step_kernel(
    qkv: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    table: tl.tensor,
    turns: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    lse: tl.tensor,
    counters: tl.tensor,
    tokens: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    eps: tl.tensor,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_T: tl.constexpr,
    NORMED: tl.constexpr,
    WINDOW: tl.constexpr,
    EARLY: tl.constexpr,
    PIECE: tl.constexpr,
) -> None:
    """Attend with one token's query heads of one key head to one split of its keys."""
    HALF: tl.constexpr = DIM // 2
    NEW: tl.constexpr = 16
    WIDTH: tl.constexpr = (HEADS * GROUP + 2 * HEADS) * DIM
    token = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    # 1. where the token is, and how many of its row's tokens before it are as new
    row = tl.load(rows + token)
    position = tl.load(positions + token)
    others = tl.arange(0, BLOCK_T)
    together = tl.load(rows + others, mask=others < token, other=-2) == row
    before = tl.sum(together.to(tl.int32), 0)
    cached = tl.where(row < 0, 0, position - before)
    pages = table + tl.maximum(row, 0).to(tl.int64) * table_stride
    # 2. which blocks of the cache are this split's
    end = (cached + BLOCK - 1) // BLOCK
    first = 0
    if WINDOW:
        first = tl.minimum(tl.maximum(position - window + 1, 0) // BLOCK, end)
    share = (end - first + SPLITS - 1) // SPLITS
    start = first + split * share
    stop = tl.minimum(start + share, end)
    if EARLY:
        if PIECE > 0:  # what earlier steps wrote is waited for by nobody
            for block in range(start, tl.minimum(stop, start + 4)):
                page = tl.load(pages + block // (PAGE // BLOCK)).to(tl.int64)
                base = ((page * HEADS + head) * PAGE + block % (PAGE // BLOCK) * BLOCK) * DIM
                places = base + tl.arange(0, 128) * PIECE
                tl.inline_asm_elementwise(
                    "cp.async.bulk.prefetch.L2.global [$1], $3; cp.async.bulk.prefetch.L2.global [$2], $3;"
                    "mov.b32 $0, 0;",
                    "=r,l,l,r",
                    [key_cache + places, value_cache + places, tl.full((128,), PIECE * 2, tl.int32)],
                    tl.int32,
                    is_pure=False,
                    pack=1,
                )
        tl.extra.cuda.gdc_wait()
    members = tl.arange(0, BLOCK_GROUP)
    halves = tl.arange(0, BLOCK_HALF)
    dims = tl.arange(0, 2 * BLOCK_HALF)
    query_heads = head * GROUP + members
    inside = (members < GROUP)[:, None] & (dims < DIM)[None, :]
    out_at = out + (token * HEADS * GROUP + query_heads)[:, None] * DIM + dims[None, :]
    if row < 0:
        if split == 0:
            tl.store(out_at, tl.zeros((BLOCK_GROUP, 2 * BLOCK_HALF), out.dtype.element_ty), mask=inside)
        return
    inside_half = (members < GROUP)[:, None] & (halves < HALF)[None, :]
    q_at = qkv + token * WIDTH + query_heads[:, None] * DIM + halves[None, :]
    angle = turns + position.to(tl.int64) * DIM + halves
    q_low, q_high = turned(
        tl.load(q_at, mask=inside_half, other=0.0),
        tl.load(q_at + HALF, mask=inside_half, other=0.0),
        tl.load(angle, mask=halves < HALF, other=0.0).to(tl.float32)[None, :],
        tl.load(angle + HALF, mask=halves < HALF, other=0.0).to(tl.float32)[None, :],
        query_norm,
        halves,
        eps,
        NORMED,
        DIM,
    )
    peak = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    mixed = tl.zeros((BLOCK_GROUP, 2 * BLOCK_HALF), tl.float32)
    # 3. the new keys, by the first split, which also writes the token's own
    new_stop = tl.where(split == 0, before + 1, 0)
    for new in range(0, new_stop, NEW):
        steps = new + tl.arange(0, NEW)
        spots = cached + steps
        seen = steps <= before
        if WINDOW:
            seen = seen & (spots > position - window)
        flat = token - before + steps
        mask = seen[:, None] & (halves < HALF)[None, :]
        k_at = qkv + flat[:, None] * WIDTH + (HEADS * GROUP + head) * DIM + halves[None, :]
        angles = turns + spots.to(tl.int64)[:, None] * DIM + halves[None, :]
        k_low, k_high = turned(
            tl.load(k_at, mask=mask, other=0.0),
            tl.load(k_at + HALF, mask=mask, other=0.0),
            tl.load(angles, mask=mask, other=0.0).to(tl.float32),
            tl.load(angles + HALF, mask=mask, other=0.0).to(tl.float32),
            key_norm,
            halves,
            eps,
            NORMED,
            DIM,
        )
        v_at = qkv + flat[:, None] * WIDTH + (HEADS * GROUP + HEADS + head) * DIM + dims[None, :]
        v = tl.load(v_at, mask=seen[:, None] & (dims < DIM)[None, :], other=0.0)
        page = tl.load(pages + position // PAGE).to(tl.int64)
        own = ((page * HEADS + head) * PAGE + position % PAGE) * DIM
        is_own = (steps == before)[:, None]
        key_at = key_cache + own + tl.zeros((NEW, 1), tl.int32) + halves[None, :]
        tl.store(key_at, k_low, mask=is_own & mask)
        tl.store(key_at + HALF, k_high, mask=is_own & mask)
        value_at = value_cache + own + tl.zeros((NEW, 1), tl.int32) + dims[None, :]
        tl.store(value_at, v, mask=is_own & (dims < DIM)[None, :])
        scores = (tl.dot(q_low, tl.trans(k_low)) + tl.dot(q_high, tl.trans(k_high))) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        probs = tl.where(seen[None, :], tl.exp2(scores - tl.maximum(higher, -3.0e38)[:, None]), 0.0)
        fade = tl.exp2(peak - tl.maximum(higher, -3.0e38))
        total = total * fade + tl.sum(probs, 1)
        mixed = tl.dot(probs.to(v.dtype), v, mixed * fade[:, None])
        peak = higher
    # 4. those in the cache
    offsets = tl.arange(0, BLOCK)
    for block in range(start, stop):
        page = tl.load(pages + block // (PAGE // BLOCK)).to(tl.int64)
        base = ((page * HEADS + head) * PAGE + block % (PAGE // BLOCK) * BLOCK) * DIM
        spots = block * BLOCK + offsets
        seen = spots < cached
        if WINDOW:
            seen = seen & (spots > position - window)
        # Unseen slots may hold anything, NaN too, and are not loaded.
        k_at = key_cache + base + offsets[None, :] * DIM + halves[:, None]
        mask = seen[None, :] & (halves < HALF)[:, None]
        k_low = tl.load(k_at, mask=mask, other=0.0)
        k_high = tl.load(k_at + HALF, mask=mask, other=0.0)
        v_at = value_cache + base + offsets[:, None] * DIM + dims[None, :]
        v = tl.load(v_at, mask=seen[:, None] & (dims < DIM)[None, :], other=0.0)
        scores = (tl.dot(q_low, k_low) + tl.dot(q_high, k_high)) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        probs = tl.exp2(scores - tl.maximum(higher, -3.0e38)[:, None])
        fade = tl.exp2(peak - tl.maximum(higher, -3.0e38))
        total = total * fade + tl.sum(probs, 1)
        mixed = tl.dot(probs.to(v.dtype), v, mixed * fade[:, None])
        peak = higher

    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    some = tl.where(total > 0, total, 1.0)
    mixed = mixed / some[:, None]
    if SPLITS > 1:
        # 5. the last split to end joins all
        ALL: tl.constexpr = HEADS * GROUP
        cell = token.to(tl.int64) * SPLITS * ALL + query_heads
        tl.store(partial + (cell + split * ALL)[:, None] * DIM + dims[None, :], mixed, mask=inside)
        own_lse = tl.where(total > 0, peak + tl.log2(some), float("-inf"))
        tl.store(lse + cell + split * ALL, own_lse, mask=members < GROUP)
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + token * HEADS + head, 1, sem="acq_rel")
        if arrived < SPLITS - 1:
            return
        highest = tl.full((BLOCK_GROUP,), -3.0e38, tl.float32)
        for other in tl.static_range(SPLITS):
            part = tl.load(lse + cell + other * ALL, mask=members < GROUP, other=0.0, cache_modifier=".cg")
            highest = tl.maximum(highest, part)
        mixed = tl.zeros((BLOCK_GROUP, 2 * BLOCK_HALF), tl.float32)
        total = tl.zeros((BLOCK_GROUP,), tl.float32)
        for other in tl.static_range(SPLITS):
            part = tl.load(lse + cell + other * ALL, mask=members < GROUP, other=0.0, cache_modifier=".cg")
            weight = tl.exp2(part - highest)
            at = partial + (cell + other * ALL)[:, None] * DIM + dims[None, :]
            mixed += tl.load(at, mask=inside, other=0.0, cache_modifier=".cg") * weight[:, None]
            total += weight
        mixed = mixed / total[:, None]
    tl.store(out_at, mixed.to(out.dtype.element_ty), mask=inside)
