"""Paged attention alone, per layer, beside its floor (bytes / measured copy bandwidth) and torch's dense attention.

    python benchmarks/attention.py [--tiles]

bfloat16, head dimension 128, page 64. Each time is the median over CUDA graph replays that go through caches of more
than L2's size; writing the new token's key and value is included in ours. --tiles also tries other tiles of the kernel.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch.nn.functional import scaled_dot_product_attention

from cuda_timing import copies_for, seconds_per_call
from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.kernels import Paged, splits_for, write_kv
from flowinfer.engine.caches.triton_attention import Tiles, paged_attention
from measure import ceilings

DIM, PAGE, HALF = 128, 64, torch.bfloat16
SHAPES = ((28, 4), (32, 4))  # query heads, key heads: Qwen2.5-7B and Yi-1.5-9B
CASES = ((1, 512), (1, 2048), (8, 512), (16, 512), (32, 512), (64, 512), (64, 2048), (128, 512), (256, 512))
SPLITS = (1, 2, 4, 8, 16)
TILES = tuple(Tiles(64, warps, stages) for warps in (2, 4, 8) for stages in (2, 3, 5))


class Layers:
    """Copies of one layer's inputs for R rows of equal length, one token each."""

    def __init__(self, heads: int, kv_heads: int, rows: int, length: int) -> None:
        pages = -(-length // PAGE)
        self.bytes = 2 * rows * length * kv_heads * DIM * HALF.itemsize
        count = copies_for(self.bytes)
        self.caches = torch.randn(count, 2, rows * pages, kv_heads, PAGE, DIM, dtype=HALF, device="cuda").unbind(0)
        self.dense = torch.randn(count, 2, rows, kv_heads, length, DIM, dtype=HALF, device="cuda").unbind(0)
        states = torch.randn(rows, heads + 2 * kv_heads, DIM, dtype=HALF, device="cuda")
        self.query, self.keys, self.values = states.split([heads, kv_heads, kv_heads], 1)
        self.rows = torch.arange(rows, dtype=torch.int32, device="cuda")
        self.positions = torch.full_like(self.rows, length - 1)
        self.table = torch.randperm(rows * pages, device="cuda").int().view(rows, pages)

    def ours(self, splits: int, tiles: Tiles | None = None) -> float:
        """Return seconds of writing and attending."""

        def call(cache: torch.Tensor) -> None:
            paged = Paged(*cache, self.rows, self.positions, self.table)
            write_kv(self.keys, self.values, paged)
            paged_attention(self.query, paged, Attention(0, DIM**-0.5, 0, 0.0), splits, tiles)

        return seconds_per_call([lambda cache=cache: call(cache) for cache in self.caches])

    def torch_sdpa(self) -> float:
        """Return seconds of dense attention, without a cache to write to."""
        query = self.query[:, :, None].contiguous()  # (R, H, 1, D)
        return seconds_per_call(
            [lambda kv=kv: scaled_dot_product_attention(query, *kv, enable_gqa=True) for kv in self.dense]
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", action="store_true", help="try other tiles too")
    arguments = parser.parse_args()
    bandwidth = ceilings(torch.device("cuda"), torch.bfloat16).copy_bytes_per_second
    print(f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e12:.2f} TB/s; us per layer, usual splits in brackets")
    head = " | ".join(f"{splits} splits" for splits in SPLITS)
    print(f"| heads | rows | context | floor | torch SDPA | usual splits | ratio | {head} |")
    print("|" + "---|" * (7 + len(SPLITS)))
    for (heads, kv_heads), (rows, length) in itertools.product(SHAPES, CASES):
        layers = Layers(heads, kv_heads, rows, length)
        floor = layers.bytes / bandwidth
        times = {splits: layers.ours(splits) for splits in {*SPLITS, splits_for(rows)}}
        usual = times[splits_for(rows)]
        cells = " | ".join(f"{1e6 * times[splits]:.1f}" for splits in SPLITS)
        print(
            f"| {heads}/{kv_heads} | {rows} | {length} | {1e6 * floor:.1f} | {1e6 * layers.torch_sdpa():.1f}"
            f" | {1e6 * usual:.1f} ({splits_for(rows)}) | {usual / floor:.2f} | {cells} |",
            flush=True,
        )
        if arguments.tiles and heads == SHAPES[0][0]:
            tried = {tiles: layers.ours(splits_for(rows), tiles) for tiles in TILES}
            best = sorted(tried, key=tried.__getitem__)[:3]
            print("  best tiles: " + "; ".join(f"{tiles} {1e6 * tried[tiles]:.1f}" for tiles in best), flush=True)


if __name__ == "__main__":
    main()
