"""How many flat tokens a forward takes, so that matrix units waste nothing and graphs stay few."""

from __future__ import annotations

TILES = (4, 8, 16, 32, 64, 128, 256)
"""Numbers of flat tokens that matrix units take as they are."""


def tile_for(rows: int) -> int:
    """Return T for so many rows: the next tile, so that some tokens are left for rows that feed several ids."""
    return next((tile for tile in TILES if tile >= rows), -(-rows // 128) * 128)
