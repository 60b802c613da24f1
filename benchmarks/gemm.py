"""Linear maps of few tokens at the paper's shapes: our kernel beside cuBLAS and the floor (bytes / copy bandwidth).

    python benchmarks/gemm.py [--tokens 4] [--tune]

Early = each launch begins while the one before still runs, which here is always the same kernel.
bfloat16; each time is the median over CUDA graph replays that go through weights of more than L2's size. --tune tries
tiles per shape and prints the best; what is best in a whole step differs by a few percent.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch.nn.functional import linear

import typed
from cuda_timing import copies_for, seconds_per_call
from flowinfer.engine.network.triton_gemm import Tiles, skinny_linear, tiles_for
from measure import ceilings

HALF = torch.bfloat16
SHAPES = {  # (N, K): outputs, inputs
    "Qwen2.5-7B q/k/v": (4608, 3584),
    "Qwen2.5-7B o": (3584, 3584),
    "Qwen2.5-7B gate/up": (37888, 3584),
    "Qwen2.5-7B down": (3584, 18944),
    "Qwen2.5-7B lm_head": (152064, 3584),
    "Yi-1.5-9B q/k/v": (5120, 4096),
    "Yi-1.5-9B o": (4096, 4096),
    "Yi-1.5-9B gate/up": (22016, 4096),
    "Yi-1.5-9B down": (4096, 11008),
    "Yi-1.5-9B lm_head": (64000, 4096),
}
CANDIDATES = (
    *(
        Tiles(16, k, splits, warps, stages)
        for k in (128, 256)
        for splits in (1, 2)
        for warps in (2, 4)
        for stages in (4, 6)
    ),
    *(Tiles(16, 512, splits, 4, stages) for splits in (1, 2, 4) for stages in (3, 4)),
    *(Tiles(32, k, splits, 4, stages) for k in (128, 256) for splits in (1, 2, 4) for stages in (3, 5)),
    *(Tiles(64, k, splits, 4, stages) for k in (64, 128) for splits in (1, 4) for stages in (4, 5)),
)


def _candidates(tunes: bool) -> tuple[Tiles, ...]:
    return CANDIDATES if tunes else ()


class Weights:
    """Copies of one weight and the tokens that go through them."""

    def __init__(self, outputs: int, inputs: int, tokens: int) -> None:
        count = copies_for(outputs * inputs * HALF.itemsize)
        self.copies = [torch.randn(outputs, inputs, dtype=HALF, device="cuda") / inputs**0.5 for _ in range(count)]
        self.x = torch.randn(tokens, inputs, dtype=HALF, device="cuda")
        self.bytes = HALF.itemsize * (outputs * inputs + tokens * (inputs + outputs))

    def cublas(self) -> float:
        """Return seconds of torch's linear."""
        return seconds_per_call([lambda w=w: linear(self.x, w) for w in self.copies])

    def ours(self, tiles: Tiles) -> float:
        """Return seconds of our kernel, checked against torch's."""
        got, expected = skinny_linear(self.x, self.copies[0], None, tiles), linear(self.x, self.copies[0])
        torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)
        return seconds_per_call([lambda w=w: skinny_linear(self.x, w, None, tiles) for w in self.copies])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=typed.number, default=4)
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    bandwidth = ceilings(torch.device("cuda"), HALF).copy_bytes_per_second
    print(f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e12:.2f} TB/s, {arguments.tokens} tokens; us")
    print("| weight | N x K | floor | cuBLAS | ours | early | cuBLAS / floor | ours / floor | early / floor | tiles |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    tuned = []
    for name, shape in SHAPES.items():
        weights = Weights(*shape, arguments.tokens)
        tried = {
            tiles: weights.ours(tiles)
            for tiles in (tiles_for(weights.copies[0], arguments.tokens), *_candidates(arguments.tune))
        }
        tiles = min(tried, key=tried.__getitem__)
        floor, cublas, ours = weights.bytes / bandwidth, weights.cublas(), tried[tiles]
        early = weights.ours(replace(tiles, is_early=True))
        print(
            f"| {name} | {shape[0]} x {shape[1]} | {1e6 * floor:.1f} | {1e6 * cublas:.1f} | {1e6 * ours:.1f}"
            f" | {1e6 * early:.1f} | {cublas / floor:.2f} | {ours / floor:.2f} | {early / floor:.2f} | {tiles} |",
            flush=True,
        )
        best = f"Tiles({tiles.block_n}, {tiles.block_k}, {tiles.splits}, {tiles.num_warps}, {tiles.num_stages})"
        tuned.append(f"    {shape}: {best},  # {1e6 * ours:.1f} us, cuBLAS {1e6 * cublas:.1f}")
    if arguments.tune:
        print("\n".join(tuned))


if __name__ == "__main__":
    main()
