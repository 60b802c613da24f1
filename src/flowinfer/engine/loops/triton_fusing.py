"""Triton kernels from logits to the choice: softmax sums in parts, one pass over the shared slots, join of its blocks.

No distribution is written to memory. Parts and blocks have fixed sizes and are joined in a fixed order without atomics,
so a row's choice depends on no other row. All loops over heads are unrolled; heads come in their canonical order.
"""

from __future__ import annotations

import triton
import triton.language as tl

PART = 8192
"""Columns of one head that one program of the first kernel sums."""
BLOCK = 1024
"""Slots that one program of the second kernel fuses; its results do not depend on it."""
PART_WARPS, BLOCK_WARPS, JOIN_WARPS = 16, 8, 2
_FLOOR = tl.constexpr(-1e38)
"""Maximum of no logits: finite, so that differences are numbers."""
_NO_MASS = tl.constexpr(-1e300)
"""As in flowinfer.engine.loops.sampling."""


@triton.jit
def sum_parts(
    logits: tl.tensor,
    offsets: tl.tensor,
    strides: tl.tensor,
    widths: tl.tensor,
    banned: tl.tensor,
    banned_offsets: tl.tensor,
    tops: tl.tensor,
    sums: tl.tensor,
    num_rows: tl.tensor,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Write the maximum of one part of a head's logits, and the sum of exponentials below it; grid (PARTS, R, K)."""
    part, row, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = part * PART + tl.arange(0, PART)
    inside = columns < tl.load(widths + head)
    start = tl.load(offsets + head) + row.to(tl.int64) * tl.load(strides + head)
    is_banned = tl.load(banned + tl.load(banned_offsets + head) + columns, mask=inside, other=1)
    values = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
    values = tl.where(is_banned != 0, -float("inf"), values)
    top = tl.maximum(tl.max(values, axis=0), _FLOOR)
    place = (head * num_rows + row) * PARTS + part
    tl.store(tops + place, top)
    tl.store(sums + place, tl.sum(tl.exp(values - top), axis=0))


@triton.jit
def fuse_block(
    logits: tl.tensor,
    offsets: tl.tensor,
    strides: tl.tensor,
    tops: tl.tensor,
    sums: tl.tensor,
    columns: tl.tensor,
    more: tl.tensor,
    more_begins: tl.tensor,
    weights: tl.tensor,
    allowed: tl.tensor,
    states: tl.tensor,
    keys: tl.tensor,
    indices: tl.tensor,
    temperatures: tl.tensor,
    best: tl.tensor,
    second: tl.tensor,
    scores: tl.tensor,
    head_best: tl.tensor,
    mixed: tl.tensor,
    num_rows: tl.tensor,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    POOLS_BY_MAX: tl.constexpr,
    SAMPLES: tl.constexpr,
    KEEPS: tl.constexpr,
) -> None:
    """Lift and fuse one block of slots of one row and choose in it; grid (BLOCKS, R).

    A row of temperature 0 chooses greedily, also where others draw (SAMPLES). KEEPS: write the distribution, (R, SIZE).
    """
    block, row = tl.program_id(0), tl.program_id(1)
    lanes = tl.arange(0, BLOCK)
    slot = block * BLOCK + lanes
    inside = slot < SIZE
    parts = tl.arange(0, PARTS_WIDE)
    heads = tl.arange(0, HEADS_WIDE)
    own_best = tl.full([HEADS_WIDE], -1, tl.int64)
    fused = tl.zeros([BLOCK], dtype=tl.float32)
    first_turn = tl.load(more_begins + block)
    last_turn = tl.load(more_begins + block + 1)
    for head in tl.static_range(HEADS):
        place = (head * num_rows + row) * PARTS
        part_tops = tl.load(tops + place + parts, mask=parts < PARTS, other=_FLOOR)
        part_sums = tl.load(sums + place + parts, mask=parts < PARTS, other=0.0)
        top = tl.max(part_tops, axis=0)
        scale = 1.0 / tl.sum(part_sums * tl.exp(part_tops - top), axis=0)
        start = logits + tl.load(offsets + head) + row.to(tl.int64) * tl.load(strides + head)
        column = tl.load(columns + head * BLOCKS * BLOCK + slot)
        logit = tl.load(start + column, mask=column >= 0, other=-float("inf")).to(tl.float32)
        probs = tl.exp(logit - top) * scale
        for turn in range(first_turn, last_turn):
            column = tl.load(more + (turn * HEADS + head) * BLOCK + lanes)
            logit = tl.load(start + column, mask=column >= 0, other=-float("inf")).to(tl.float32)
            further = tl.exp(logit - top) * scale
            if POOLS_BY_MAX:
                probs = tl.where(slot == SIZE - 1, tl.maximum(probs, further), probs + further)
            else:
                probs += further
        own_best = tl.where(heads == head, tl.max(_ranked(probs, slot, inside), axis=0), own_best)
        fused += tl.load(weights + head) * probs

    is_allowed = tl.load(allowed + tl.load(states + row) * SIZE + slot, mask=inside, other=0) != 0
    tl.store(head_best + (heads * num_rows + row) * BLOCKS + block, own_best, mask=heads < HEADS)
    if KEEPS:
        tl.store(mixed + row.to(tl.int64) * SIZE + slot, fused, mask=inside)
    place = row * BLOCKS + block
    ranked = _ranked(fused, slot, is_allowed)
    top_rank = tl.max(ranked, axis=0)
    tl.store(second + place, tl.max(tl.where(ranked == top_rank, -1, ranked), axis=0))
    if SAMPLES:
        temperature = tl.load(temperatures + row)
        if temperature > 0.0:
            counter = (tl.load(indices + row) << 32) + slot
            noise = _gumbel(tl.load(keys + row).to(tl.uint64), counter.to(tl.uint64))
            mass = tl.where(fused > 0.0, fused, 1.0).to(tl.float64)
            logs = tl.where(fused > 0.0, tl.log(mass), tl.full([BLOCK], _NO_MASS, tl.float64))
            score = logs + temperature * noise
            score = tl.where(is_allowed, score, tl.full([BLOCK], -float("inf"), tl.float64))
            top_score = tl.max(score, axis=0)
            chosen = tl.min(tl.where(score == top_score, slot, SIZE - 1), axis=0)
            tl.store(scores + place, top_score)
            top_rank = tl.max(tl.where(slot == chosen, ranked, -1), axis=0)
    tl.store(best + place, top_rank)


@triton.jit
def join_blocks(
    best: tl.tensor,
    second: tl.tensor,
    scores: tl.tensor,
    head_best: tl.tensor,
    temperatures: tl.tensor,
    order: tl.tensor,
    out_slots: tl.tensor,
    out_values: tl.tensor,
    out_leads: tl.tensor,
    out_favourites: tl.tensor,
    num_rows: tl.tensor,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_WIDE: tl.constexpr,
    SAMPLES: tl.constexpr,
) -> None:
    """Choose among the blocks of one row; grid (R,)."""
    row = tl.program_id(0)
    blocks = tl.arange(0, BLOCKS_WIDE)
    inside = blocks < BLOCKS
    ranked = tl.load(best + row * BLOCKS + blocks, mask=inside, other=-1)
    chosen = tl.max(ranked, axis=0)
    below = tl.load(second + row * BLOCKS + blocks, mask=inside, other=-1)
    below = tl.max(tl.where(ranked == chosen, below, ranked), axis=0)
    lead = _value(chosen) - _value(below)
    if SAMPLES:
        is_drawn = tl.load(temperatures + row) > 0.0
        score = tl.load(scores + row * BLOCKS + blocks, mask=inside, other=-float("inf"))
        is_best = inside & (score == tl.max(score, axis=0))
        slot = tl.min(tl.where(is_best, _slot(ranked), SIZE - 1), axis=0)
        drawn = tl.max(tl.where(inside & (_slot(ranked) == slot), ranked, -1), axis=0)
        chosen, lead = tl.where(is_drawn, drawn, chosen), tl.where(is_drawn, 1.0, lead)
    tl.store(out_leads + row, lead)
    tl.store(out_slots + row, _slot(chosen))
    tl.store(out_values + row, _value(chosen))
    for head in tl.static_range(HEADS):
        own = tl.load(head_best + (head * num_rows + row) * BLOCKS + blocks, mask=inside, other=-1)
        tl.store(out_favourites + tl.load(order + head) * num_rows + row, _slot(tl.max(own, axis=0)))


@triton.jit
def tell_heads(
    logits: tl.tensor,
    offsets: tl.tensor,
    strides: tl.tensor,
    tops: tl.tensor,
    sums: tl.tensor,
    columns: tl.tensor,
    more: tl.tensor,
    more_begins: tl.tensor,
    head_best: tl.tensor,
    order: tl.tensor,
    slots: tl.tensor,
    out_favourites: tl.tensor,
    out_slots: tl.tensor,
    num_rows: tl.tensor,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    POOLS_BY_MAX: tl.constexpr,
) -> None:
    """Write what each head gave to its favourite and to the chosen slot of a row; grid (R, K)."""
    row, head = tl.program_id(0), tl.program_id(1)
    place = tl.load(order + head) * num_rows + row
    blocks = tl.arange(0, BLOCKS_WIDE)
    own = tl.load(head_best + (head * num_rows + row) * BLOCKS + blocks, mask=blocks < BLOCKS, other=-1)
    tl.store(out_favourites + place, _value(tl.max(own, axis=0)))
    parts, first = tl.arange(0, PARTS_WIDE), (head * num_rows + row) * PARTS
    part_tops = tl.load(tops + first + parts, mask=parts < PARTS, other=_FLOOR)
    part_sums = tl.load(sums + first + parts, mask=parts < PARTS, other=0.0)
    top = tl.max(part_tops, axis=0)
    scale = 1.0 / tl.sum(part_sums * tl.exp(part_tops - top), axis=0)
    start = logits + tl.load(offsets + head) + row.to(tl.int64) * tl.load(strides + head)
    slot = tl.load(slots + row)
    column = tl.load(columns + head * BLOCKS * BLOCK + slot)
    logit = tl.load(start + column, mask=column >= 0, other=-float("inf")).to(tl.float32)
    prob = tl.exp(logit - top) * scale
    for turn in range(tl.load(more_begins + slot // BLOCK), tl.load(more_begins + slot // BLOCK + 1)):
        column = tl.load(more + (turn * HEADS + head) * BLOCK + slot % BLOCK)
        logit = tl.load(start + column, mask=column >= 0, other=-float("inf")).to(tl.float32)
        further = tl.exp(logit - top) * scale
        if POOLS_BY_MAX:
            prob = tl.where(slot == SIZE - 1, tl.maximum(prob, further), prob + further)
        else:
            prob += further
    tl.store(out_slots + place, prob)


@triton.jit
def _ranked(probs: tl.tensor, slot: tl.tensor, is_kept: tl.tensor) -> tl.tensor:
    """Return int64 that order by probability, then by the smaller slot; -1 for what does not count.

    The bits of floats from 0 on order as integers.
    """
    bits = probs.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(is_kept, (bits << 32) | (0x7FFFFFFF - slot).to(tl.int64), -1)


@triton.jit
def _slot(ranked: tl.tensor) -> tl.tensor:
    return tl.where(ranked < 0, 0, 0x7FFFFFFF - (ranked & 0x7FFFFFFF))


@triton.jit
def _value(ranked: tl.tensor) -> tl.tensor:
    """Return the probability of a rank, 0 for what does not count."""
    return tl.where(ranked < 0, 0, ranked >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _gumbel(key: tl.tensor, counter: tl.tensor) -> tl.tensor:
    """Return the noise of flowinfer.engine.loops.noise, float64, for uint64 keys and counters."""
    even = key * counter
    odd = even + key
    bits = even * even + even
    bits = (bits >> 32) | (bits << 32)
    bits = bits * bits + odd
    bits = (bits >> 32) | (bits << 32)
    bits = bits * bits + even
    bits = (bits >> 32) | (bits << 32)
    bits = (bits * bits + odd) >> 32
    uniform = (bits.to(tl.int64).to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2^-32
    return -tl.log(-tl.log(uniform))
