"""Triton kernels of mixtures of experts for the few tokens of a step: an expert's weights are read once, for all tokens
that chose it, and no other's.

Which experts those are is known on the device only. So there are programs for as many as could be needed, or for each
pair of token and expert where those are fewer, and what has no tokens is passed over: no sorting, and always the same
launch, as a graph needs. What stands around the product in a decoder is done at its ends, as in triton_gemm.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.engine.caches.launching import can_be_early, launch
from flowinfer.engine.network.experts import MOST_TOKENS
from flowinfer.engine.network.gemm import MOST_STEP_TOKENS
from flowinfer.engine.network.triton_ends import EARLY, Norm, Residual, fetch, outputs_of, store_added, store_gated


@dataclass(frozen=True)
class Chosen:
    """Which experts each token goes to."""

    experts: Tensor
    """(T, k) int32, each of a token's another; -1 = none, for padding."""
    shares: Tensor
    """(T, k) float32."""
    count: int
    """E."""


@dataclass(frozen=True)
class Tiles:
    """How a product is cut."""

    block_n: int
    """Outputs per program."""
    block_k: int
    """Inputs per loop turn."""
    block_m: int = 16
    """Tokens of one expert that are multiplied at once; for more its weights are read again."""
    num_warps: int = 4
    num_stages: int = 4


_SHORT = 2048
"""Inputs of products that are over soon, for which more turns in flight pay."""


def tiles_for(weight: Tensor, pairs: int) -> Tiles:
    """Return tiles for the matrices of all experts, (E, N, K), and so many pairs of token and expert."""
    crowd = pairs / len(weight)  # tokens of an expert, on average
    if weight.dtype is torch.float32:
        return Tiles(32, 32, 16)
    if crowd > 8:
        return Tiles(64, 64, 32, num_stages=5)
    return Tiles(64, 64, num_stages=6) if crowd <= 1 and weight.shape[2] <= _SHORT else Tiles(64, 128)


def route(logits: Tensor, num_chosen: int, rows: Tensor | None, *, is_normed: bool) -> Chosen:
    """Choose experts by their softmax.

    Args:
        logits: (T, E).
        num_chosen: k.
        rows: (T,) int32, -1 = padding, which goes to none.
        is_normed: whether a token's shares sum to 1, else they are the softmax over all experts.
    """
    tokens, count = logits.shape
    experts = logits.new_empty(tokens, num_chosen, dtype=torch.int32)
    shares = logits.new_empty(tokens, num_chosen, dtype=torch.float32)
    is_early = can_be_early(logits)
    with torch.cuda.device(logits.get_device()):
        launch(_route_kernel, (tokens,))(
            *(logits, experts if rows is None else rows, experts, shares),
            EXPERTS=count,
            BLOCK=triton.next_power_of_2(count),
            CHOICES=num_chosen,
            BLOCK_CHOICES=triton.next_power_of_2(num_chosen),
            NORMED=is_normed,
            PADDED=rows is not None,
            EARLY=is_early,
            num_warps=1,
            launch_pdl=is_early,
        )
    return Chosen(experts, shares, count)


def gated_experts(x: Norm, weight: Tensor, chosen: Chosen, tiles: Tiles | None = None) -> Tensor:
    """Return silu(g) u of norm(x) W^T for every pair of token and expert: (T, K), (E, 2 N, K) -> (T k, N)."""
    out = x.states.new_empty(chosen.experts.numel(), weight.shape[1] // 2)
    _launch(x.states, weight, chosen, tiles or tiles_for(weight, len(out)), out=out, scale=x, is_gated=True)
    return out


def added_experts(
    x: Tensor, weight: Tensor, chosen: Chosen, total: Residual, counters: Tensor, tiles: Tiles | None = None
) -> Norm:
    """Add each token's shares of its experts' x W^T to the residual; return what the next map reads.

    Args:
        x: (T k, K), of every pair.
        weight: (E, N, K).
        chosen: k experts of each token.
        total: (T, N), what is added to.
        counters: zeros, one for each block of outputs.
        tiles: others than the usual, to try them.
    """
    tiles = tiles or tiles_for(weight, len(x))
    then = total.half_norm(tiles.block_n)
    _launch(x, weight, chosen, tiles, out=total.states, total=total, then=then, counters=counters)
    return then


def expert_linear(x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
    """Return x W^T for every pair of token and expert.

    Args:
        x: (T, K), or (T k, K) where each pair has its own.
        weight: (E, N, K).
        chosen: (T, k), each of a token's another.
    Returns:
        (T k, N), accumulated in float32.
    """
    (tokens, choices), (count, outputs, _) = chosen.shape, weight.shape
    out = x.new_empty(tokens * choices, outputs)
    x, weight, experts = x.contiguous(), weight.contiguous(), chosen.to(torch.int32).contiguous()
    per_token = 1 if len(x) == tokens else choices
    for first in range(0, tokens, MOST_TOKENS):
        last = first + MOST_TOKENS
        part = Chosen(experts[first:last], experts, count)
        pairs = slice(first * choices, last * choices)
        states = x[first * per_token : last * per_token]
        _launch(states, weight, part, tiles_for(weight, part.experts.numel()), out=out[pairs])
    return out


def _launch(
    x: Tensor,
    weight: Tensor,
    chosen: Chosen,
    tiles: Tiles,
    *,
    out: Tensor,
    scale: Norm | None = None,
    total: Residual | None = None,
    then: Norm | None = None,
    counters: Tensor | None = None,
    is_gated: bool = False,
) -> None:
    """Launch the kernel; arguments that it does not read are stood in for by the weight."""
    (tokens, choices), inputs, outputs = chosen.experts.shape, x.shape[1], out.shape[1]
    columns = tiles.block_n // 2 if is_gated else tiles.block_n  # of `out`, per program
    sums = weight if total is None else x.new_empty(tokens * choices, outputs, dtype=torch.float32)
    is_early = inputs % 8 == 0 and can_be_early(x)  # 16 bytes, fetched in bulk
    with torch.cuda.device(x.get_device()):
        launch(_expert_kernel, (triton.cdiv(outputs, columns), min(tokens * choices, chosen.count)))(
            *(x, weight, chosen.experts, chosen.shares, out, weight if scale is None else scale.squares),
            *(weight if total is None else total.weight, *((weight, weight) if then is None else _parts(then))),
            *(sums, weight if counters is None else counters, tokens, outputs, inputs),
            *(0 if scale is None else scale.squares.shape[1], 0.0 if scale is None else scale.eps),
            CHOICES=choices,
            BLOCK_CHOICES=triton.next_power_of_2(choices),
            BY_PAIR=tokens * choices <= chosen.count,
            FROM_PAIRS=len(x) != tokens,
            BLOCK_PARTS=0 if scale is None else triton.next_power_of_2(scale.squares.shape[1]),
            GATED=is_gated,
            ADDED=total is not None,
            WHOLE_N=outputs % columns == 0,
            WHOLE_K=inputs % tiles.block_k == 0,
            BLOCK_T=next(size for size in (16, MOST_STEP_TOKENS, MOST_TOKENS) if tokens <= size),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            EARLY=is_early,
            EARLY_INPUTS=EARLY,
            PIECES=max(1, 32 * tiles.num_warps // tiles.block_n),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            launch_pdl=is_early,
        )


def _parts(norm: Norm) -> tuple[Tensor, Tensor]:
    return norm.states, norm.squares


@triton.jit
def _route_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    chosen: tl.tensor,
    shares: tl.tensor,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHOICES: tl.constexpr,
    BLOCK_CHOICES: tl.constexpr,
    NORMED: tl.constexpr,
    PADDED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Choose one token's experts, the largest first; of equal ones the first."""
    token = tl.program_id(0)
    row = 0
    if PADDED:
        row = tl.load(rows + token)
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    experts = tl.arange(0, BLOCK)
    places = tl.arange(0, BLOCK_CHOICES)
    left = tl.load(logits + token * EXPERTS + experts, mask=experts < EXPERTS, other=float("-inf")).to(tl.float32)
    peak = tl.max(left, 0)
    total = tl.sum(tl.exp(left - peak), 0)
    picked = tl.full((BLOCK_CHOICES,), -1, tl.int32)
    own = tl.zeros((BLOCK_CHOICES,), tl.float32)
    for place in tl.static_range(CHOICES):
        best = tl.max(left, 0)
        expert = tl.minimum(tl.argmax(left, 0), EXPERTS - 1)  # whatever logits that are no numbers give
        picked = tl.where(places == place, expert, picked)
        own = tl.where(places == place, tl.exp(best - peak), own)
        left = tl.where(experts == expert, float("-inf"), left)
    if NORMED:
        total = tl.sum(own, 0)
    if row < 0:
        picked = tl.full((BLOCK_CHOICES,), -1, tl.int32)
    tl.store(chosen + token * CHOICES + places, picked, mask=places < CHOICES)
    tl.store(shares + token * CHOICES + places, own / total, mask=places < CHOICES)


@triton.jit
def _expert(
    chosen: tl.tensor, picked: tl.tensor, pairs: tl.tensor, member: tl.tensor, BY_PAIR: tl.constexpr
) -> tl.tensor:
    """Return a member's expert: its own, or that of the pair, whose first pair serves it; -1 = none."""
    expert = member
    if BY_PAIR:
        expert = tl.load(chosen + member)
        is_again = tl.max(tl.max(tl.where((pairs < member) & (picked == expert), 1, 0), 1), 0) > 0
        expert = tl.where(is_again, -1, expert)
    return expert


@triton.jit(do_not_specialize=["tokens", "num_parts", "counters"])
def _expert_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    chosen: tl.tensor,
    shares: tl.tensor,
    out: tl.tensor,
    squares: tl.tensor,
    norm: tl.tensor,
    next_states: tl.tensor,
    next_squares: tl.tensor,
    sums: tl.tensor,
    counters: tl.tensor,
    tokens: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    num_parts: tl.tensor,
    eps: tl.tensor,
    CHOICES: tl.constexpr,
    BLOCK_CHOICES: tl.constexpr,
    BY_PAIR: tl.constexpr,
    FROM_PAIRS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
    EARLY_INPUTS: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """Compute one block of one expert's outputs, for all tokens that chose it."""
    block = tl.program_id(0)
    # 1. who chose what; that is the last launch's but one, or older, where shares are added up
    rows = tl.arange(0, BLOCK_T)
    places = tl.arange(0, BLOCK_CHOICES)[None, :]
    pairs = rows[:, None] * CHOICES + places  # (T, k)
    if EARLY and not ADDED:
        tl.extra.cuda.gdc_wait()
    picked = tl.load(chosen + pairs, mask=(rows[:, None] < tokens) & (places < CHOICES), other=-1)
    offsets = tl.arange(0, BLOCK_K)
    columns, safe, weight_rows = outputs_of(block, outputs, GATED, WHOLE_N, BLOCK_N)
    weight_first = weight + weight_rows.to(tl.int64) * inputs
    size = tl.cast(outputs, tl.int64) * (2 * inputs if GATED else inputs)  # of an expert
    expert = _expert(chosen, picked, pairs, tl.program_id(1), BY_PAIR)
    if EARLY and ADDED:
        piece = tl.minimum(inputs, EARLY_INPUTS) // PIECES // 8 * 8
        starts = tl.arange(0, PIECES)[None, :] * piece
        is_read = (columns < outputs)[:, None] & (starts < inputs) & (expert >= 0)
        fetch((weight_first + expert * size)[:, None] + starts, tl.where(is_read, piece * 2, 0))
        tl.extra.cuda.gdc_wait()
    weight_base = weight_first + tl.maximum(expert, 0) * size
    place = tl.max(tl.where((picked == expert) & (picked >= 0), places, -1), 1)  # (T,)
    reads = place >= 0
    rank = tl.cumsum(reads.to(tl.int32), 0) - 1
    # 2. the product, for so many of its tokens at once
    for first in range(0, tl.sum(reads.to(tl.int32), 0), BLOCK_M):
        ranks = first + tl.arange(0, BLOCK_M)
        is_mine = reads[None, :] & (rank[None, :] == ranks[:, None])  # (M, T)
        token = tl.max(tl.where(is_mine, rows[None, :], -1), 1)
        pair = tl.max(tl.where(is_mine, (rows * CHOICES + place)[None, :], -1), 1)
        known = token >= 0
        source = pair if FROM_PAIRS else token
        if BLOCK_PARTS > 0:
            parts = tl.arange(0, BLOCK_PARTS)[None, :]
            at = squares + token[:, None] * num_parts + parts
            square = tl.load(at, mask=known[:, None] & (parts < num_parts), other=0.0)
        x_at = x + source[:, None].to(tl.int64) * inputs + offsets[None, :]
        weight_at = weight_base[None, :] + offsets[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, inputs, BLOCK_K):
            if WHOLE_K:
                part = tl.load(x_at + start, mask=known[:, None], other=0.0)
                w = tl.load(weight_at + start)
            else:
                there = start + offsets < inputs
                part = tl.load(x_at + start, mask=known[:, None] & there[None, :], other=0.0)
                w = tl.load(weight_at + start, mask=there[:, None], other=0.0)
            total = tl.dot(part, w, total, input_precision="ieee")  # (M, BLOCK_N)
        if BLOCK_PARTS > 0:
            total *= tl.rsqrt(tl.sum(square, 1) / inputs + eps)[:, None]
        if GATED:
            store_gated(total, out, pair, known, block, outputs, BLOCK_M, BLOCK_N)
        else:
            cells = pair[:, None].to(tl.int64) * outputs + columns[None, :]
            inside = known[:, None] & (columns < outputs)[None, :]
            if ADDED:
                total *= tl.load(shares + pair, mask=known, other=0.0)[:, None]
                tl.store(sums + cells, total, mask=inside)
            else:
                tl.store(out + cells, total.to(out.dtype.element_ty), mask=inside)
    if EARLY:  # not before: programs that wait would crowd some multiprocessors
        tl.extra.cuda.gdc_launch_dependents()
    # 3. of a block's programs the last to end adds up all
    if ADDED:
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + block, 1, sem="acq_rel")
        if arrived < tl.num_programs(1) - 1:
            return
        mixed = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        is_inside = (rows[:, None] < tokens) & (columns < outputs)[None, :]
        for choice in tl.static_range(CHOICES):
            at = rows * CHOICES + choice
            is_real = tl.load(chosen + at, mask=rows < tokens, other=-1) >= 0
            cells = at[:, None].to(tl.int64) * outputs + columns[None, :]
            mixed += tl.load(sums + cells, mask=is_inside & is_real[:, None], other=0.0, cache_modifier=".cg")
        cells = rows[:, None].to(tl.int64) * outputs + columns[None, :]
        before = tl.load(out + cells, mask=is_inside, other=0.0)
        store_added(
            *(mixed, before, tl.load(norm + safe), out, next_states, next_squares, columns, block, tokens, outputs),
            BLOCK_T,
        )
