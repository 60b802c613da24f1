"""Noise by counter: 32 random bits for every (key, index, slot), the same on every device and in every batch.

The generator is Widynski's "Squares" with four rounds (arXiv 2004.06278) at counter 2^32 index + slot. Integers wrap
alike everywhere, so the bits are equal on CPU and CUDA and in Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def random_bits(keys: Tensor, indices: Tensor, num_slots: int) -> Tensor:
    """Return 32 random bits for each slot of each row.

    Args:
        keys: shape (B,), int64, odd.
        indices: shape (B,), int64, from 0 to 2^31 - 1: which draw of its key a row makes.
        num_slots: V.
    Returns:
        shape (B, V), int64, from 0 to 2^32 - 1.
    """
    slots = torch.arange(num_slots, device=keys.device)
    even = keys[:, None] * ((indices[:, None] << 32) + slots)  # (B, V)
    odd = even + keys[:, None]
    bits = torch.addcmul(even, even, even)
    for addend in (odd, even, odd):
        _swap_halves(bits)
        bits = torch.addcmul(addend, bits, bits)
    return bits.bitwise_right_shift_(32).bitwise_and_(_LOW)


def gumbel(keys: Tensor, indices: Tensor, num_slots: int) -> Tensor:
    """Return standard Gumbel noise from `random_bits`: shape (B, V), float64."""
    return from_bits(random_bits(keys, indices, num_slots))


def from_bits(bits: Tensor) -> Tensor:
    """Turn random bits into standard Gumbel noise between -3.2 and 23, in float64: float32 would round some to 1."""
    uniform = bits.double().add_(0.5).mul_(2.0**-32)
    return uniform.log_().neg_().log_().neg_()


def _swap_halves(bits: Tensor) -> None:
    """Rotate 64-bit integers by 32."""
    high = bits.bitwise_right_shift(32).bitwise_and_(_LOW)  # the shift of signed integers repeats the sign
    bits.bitwise_left_shift_(32).bitwise_or_(high)
