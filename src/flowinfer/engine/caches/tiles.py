"""Flat tokens: how many a forward takes, so that matrix units waste nothing and graphs stay few, and where each is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_PROMPT_TOKENS = 4096
"""Flat tokens of prompts that are read in one forward, about."""
TILES = (4, 8, 16, 32, 64, 128, 192, 256)
"""Numbers of flat tokens that matrix units take as they are."""


def tile_for(rows: int) -> int:
    """Return T for so many rows: the next tile, so that some tokens are left for rows that feed several ids."""
    return next((tile for tile in TILES if tile >= rows), -(-rows // 128) * 128)


def flat_places(rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the row and the position of each flat token, (T,) int64 each; rows stand one behind the other.

    Args:
        rows: each stretch's row.
        starts: position of its first token.
        lengths: its number of tokens.
    """
    counts = torch.tensor(lengths)
    offsets = torch.tensor(starts) - (counts.cumsum(0) - counts)  # from a flat token's index to its position
    positions = torch.arange(sum(lengths)) + offsets.repeat_interleave(counts)
    return torch.tensor(rows).repeat_interleave(counts), positions
