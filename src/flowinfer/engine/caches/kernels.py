"""Attention of flat tokens over a paged KV cache: Triton on CUDA devices, plain torch elsewhere.

T flat tokens, each of a row and at a position in it; caches of shape (pages, H_kv, page, D); `table` says in which
pages a row's positions are: position p of row r lies in page table[r, p // page], slot p % page.
"""

from __future__ import annotations

import torch
from torch import Tensor


def splits_for(tokens: int) -> int:
    """Return into how many splits a token's keys are best cut, so that all of a GPU's units have work."""
    if tokens <= 16:
        return 8
    return 4 if tokens <= 32 else 2 if tokens <= 128 else 1


def write_kv(
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    table: Tensor,
) -> None:
    """Write flat tokens' keys and values to their pages.

    Args:
        keys: (T, H_kv, D), last stride 1.
        values: (T, H_kv, D), last stride 1.
        key_cache: (pages, H_kv, page, D), contiguous; changed.
        value_cache: likewise.
        rows: (T,) int32, the row of each token; -1 = padding, of which nothing is written.
        positions: (T,) int32, the token's position in its row.
        table: (R, P) int32, page numbers of each row.
    """
    if keys.is_cuda:
        from flowinfer.engine.caches import triton_attention

        triton_attention.write_kv(keys, values, key_cache, value_cache, rows, positions, table)
    else:
        _naive_write(keys, values, key_cache, value_cache, rows, positions, table)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    table: Tensor,
    *,
    scaling: float,
    window: int,
    softcap: float,
    splits: int,
) -> Tensor:
    """Attend with each flat token to the keys of its row up to and with its own, which must have been written.

    Args:
        query: (T, H, D), last stride 1; query head h uses key head h // (H / H_kv).
        key_cache: (pages, H_kv, page, D), contiguous; a page is a power of two >= 16 on CUDA devices.
        value_cache: likewise.
        rows: (T,) int32, -1 = padding, whose result is zeros.
        positions: (T,) int32.
        table: (R, P) int32, last stride 1.
        scaling: multiplies scores.
        window: number of last positions that a token sees, itself included; 0 = all.
        softcap: scores s become c tanh(s / c); 0 = not.
        splits: how many programs share a token's keys, or 0 for prompts, where neighbours share a program; changes
            rounding only.
    Returns:
        (T, H, D), contiguous.
    """
    if query.device.type == "cpu":
        return naive_attention(
            query, key_cache, value_cache, rows, positions, table, scaling=scaling, window=window, softcap=softcap
        )
    from flowinfer.engine.caches import triton_attention, triton_prompts

    state = (query, key_cache, value_cache, rows, positions, table)
    if not splits and triton_prompts.serves(query, key_cache):
        return triton_prompts.prompt_attention(*state, scaling=scaling, window=window, softcap=softcap)
    return triton_attention.paged_attention(
        *state, scaling=scaling, window=window, softcap=softcap, splits=max(1, splits)
    )


@torch.library.custom_op("flowinfer::write_and_attend", mutates_args=("key_cache", "value_cache"))
def write_and_attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    table: Tensor,
    scaling: float,
    window: int,
    softcap: float,
    splits: int,
) -> Tensor:
    """Do `write_kv`, then `paged_attention`, as one operation that torch.compile does not look into."""
    write_kv(keys, values, key_cache, value_cache, rows, positions, table)
    return paged_attention(
        query,
        key_cache,
        value_cache,
        rows,
        positions,
        table,
        scaling=scaling,
        window=window,
        softcap=softcap,
        splits=splits,
    )


@write_and_attend.register_fake
def _(query: Tensor, *others: object) -> Tensor:
    return query.new_empty(query.shape)


def naive_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    table: Tensor,
    *,
    scaling: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Attend as `paged_attention` does, by one dense float32 softmax over copies of all rows' pages."""
    tokens, query_heads, dim = query.shape
    pages = table[rows.clamp(min=0).long()].clamp(min=0).long()  # (T, P)
    keys, values = (cache[pages].transpose(1, 2).flatten(2, 3).float() for cache in (key_cache, value_cache))
    spots = torch.arange(keys.shape[2], device=query.device)  # keys: (T, H_kv, S, D)
    seen = (spots <= positions[:, None]) & (rows[:, None] >= 0)
    if window:
        seen &= spots > positions[:, None] - window
    seen = seen[:, None, None]  # (T, 1, 1, S)
    grouped = query.float().reshape(tokens, keys.shape[1], -1, dim)  # (T, H_kv, G, D)
    scores = grouped @ keys.mT * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    probs = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    mixed = probs @ values.masked_fill(~seen.mT, 0.0)
    return mixed.reshape(tokens, query_heads, dim).to(query.dtype)


def _naive_write(
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    table: Tensor,
) -> None:
    """Write as `write_kv` does."""
    live = rows >= 0
    page, where = key_cache.shape[2], positions[live].long()
    pages = table[rows[live].long(), where // page].long()
    key_cache[pages, :, where % page] = keys[live].to(key_cache.dtype)
    value_cache[pages, :, where % page] = values[live].to(value_cache.dtype)
