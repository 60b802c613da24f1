"""Noise by counter: the published generator bit by bit, even in each bit, apart between keys, draws and slots."""

from __future__ import annotations

import torch
from scipy.stats import chisquare, kstest

from flowinfer.engine.loops.noise import from_bits, gumbel, random_bits

KEYS = torch.tensor([0x548C9DECBCE65297, -0x2C1B9D7E5A3F8461, 1, -1])


def squares32(counter: int, key: int) -> int:
    """Return one number as the paper's C code does (arXiv 2004.06278)."""
    whole = 2**64 - 1
    x = y = counter * key & whole
    z = y + key & whole
    for addend in (y, z, y):
        x = x * x + addend & whole
        x = x >> 32 | x << 32 & whole
    return (x * x + z & whole) >> 32


def test_bits_are_those_of_the_published_generator() -> None:
    indices = torch.tensor([0, 1, 77, 2**31 - 1])
    bits = random_bits(KEYS, indices, 300)
    wanted = [
        [squares32((index << 32) + slot, key) for slot in range(300)]
        for key, index in zip(KEYS.tolist(), indices.tolist(), strict=True)
    ]
    assert bits.tolist() == wanted


def test_every_bit_is_set_half_the_time() -> None:
    bits = random_bits(KEYS[:1], torch.tensor([3]), 40_000)
    for place in range(32):
        ones = int((bits >> place & 1).sum())
        assert chisquare([ones, 40_000 - ones]).pvalue > 1e-5


def test_noise_has_the_gumbel_law_over_slots_and_over_draws() -> None:
    over_slots = gumbel(KEYS[1:2], torch.tensor([0]), 20_000)[0]
    over_draws = gumbel(KEYS[1:2].expand(20_000), torch.arange(20_000), 1)[:, 0]
    assert kstest(over_slots.numpy(), "gumbel_r").pvalue > 1e-3
    assert kstest(over_draws.numpy(), "gumbel_r").pvalue > 1e-3


def test_neighbouring_draws_and_keys_are_not_correlated() -> None:
    noise = gumbel(torch.tensor([5, 5, 7]) * 0x1B9D7E5A3F8461, torch.tensor([0, 1, 0]), 20_000)
    correlations = torch.corrcoef(noise) - torch.eye(3)
    assert correlations.abs().max() < 0.03


def test_noise_is_finite_at_both_ends() -> None:
    low, high = from_bits(torch.tensor([0, 2**32 - 1])).tolist()
    assert -3.2 < low < high < 23
