"""Attention of flat tokens over a paged KV cache: Triton on CUDA devices, plain torch elsewhere.

T flat tokens, each of a row and at a position in it: position p of row r lies in page table[r, p // page], slot
p % page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.caches.attention import Attention


@dataclass(frozen=True)
class Paged:
    """One layer's pages, and where the flat tokens of a forward are in them."""

    keys: Tensor
    """(pages, H_kv, page, D), contiguous; a page is a power of two >= 16 on CUDA devices."""
    values: Tensor
    """Likewise."""
    rows: Tensor
    """(T,) int32, the row of each token; -1 = padding."""
    positions: Tensor
    """(T,) int32, the token's position in its row."""
    table: Tensor
    """(R, P) int32, last stride 1, page numbers of each row."""


def splits_for(tokens: int) -> int:
    """Return into how many splits a token's keys are best cut, so that all of a GPU's units have work."""
    if tokens <= 16:
        return 8
    return 4 if tokens <= 32 else 2 if tokens <= 128 else 1


def write_kv(keys: Tensor, values: Tensor, paged: Paged) -> None:
    """Write flat tokens' keys and values to their pages, and nothing of padding.

    Args:
        keys: (T, H_kv, D), last stride 1.
        values: (T, H_kv, D), last stride 1.
        paged: where they belong; its pages are changed.
    """
    if keys.is_cuda:
        from flowinfer.engine.caches import triton_attention

        triton_attention.write_kv(keys, values, paged)
    else:
        naive_write(keys, values, paged)


def paged_attention(query: Tensor, paged: Paged, attention: Attention, splits: int) -> Tensor:
    """Attend with each flat token to the keys of its row up to and with its own, which must have been written.

    Args:
        query: (T, H, D), last stride 1; query head h uses key head h // (H / H_kv).
        paged: the keys and values.
        attention: how scores are made.
        splits: how many programs share a token's keys, or 0 for prompts, where neighbours share a program; changes
            rounding only.
    Returns:
        (T, H, D), contiguous; zeros for padding.
    """
    if query.device.type == "cpu":
        return naive_attention(query, paged, attention)
    from flowinfer.engine.caches import triton_attention, triton_prompts

    if not splits and triton_prompts.serves(query, paged):
        return triton_prompts.prompt_attention(query, paged, attention)
    return triton_attention.paged_attention(query, paged, attention, max(1, splits))


def naive_attention(query: Tensor, paged: Paged, attention: Attention) -> Tensor:
    """Attend as `paged_attention` does, by one dense float32 softmax over copies of all rows' pages."""
    tokens, query_heads, dim = query.shape
    pages = paged.table[paged.rows.clamp(min=0).long()].clamp(min=0).long()  # (T, P)
    keys, values = (cache[pages].transpose(1, 2).flatten(2, 3).float() for cache in (paged.keys, paged.values))
    spots = torch.arange(keys.shape[2], device=query.device)  # keys: (T, H_kv, S, D)
    seen = (spots <= paged.positions[:, None]) & (paged.rows[:, None] >= 0)
    if attention.window:
        seen &= spots > paged.positions[:, None] - attention.window
    seen = seen[:, None, None]  # (T, 1, 1, S)
    grouped = query.float().reshape(tokens, keys.shape[1], -1, dim)  # (T, H_kv, G, D)
    scores = grouped @ keys.mT * attention.scaling
    if attention.softcap:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)
    probs = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    mixed = probs @ values.masked_fill(~seen.mT, 0.0)
    return mixed.reshape(tokens, query_heads, dim).to(query.dtype)


def naive_write(keys: Tensor, values: Tensor, paged: Paged) -> None:
    """Write as `write_kv` does."""
    live = paged.rows >= 0
    page, where = paged.keys.shape[2], paged.positions[live].long()
    pages = paged.table[paged.rows[live].long(), where // page].long()
    paged.keys[pages, :, where % page] = keys[live].to(paged.keys.dtype)
    paged.values[pages, :, where % page] = values[live].to(paged.values.dtype)
