"""Choosing a slot from fused distributions: greedy, or sampling that does not depend on the batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.loops.noise import gumbel
from flowinfer.spec import Decoding

_NO_MASS = -1e300
"""Logarithm of an allowed slot without mass: below all others, above those that are not allowed."""


def row_key(decoding: Decoding, question_id: str, step: str) -> int:
    """Return the key of one row's noise, by seed, question and step and by nothing else: an odd int64."""
    digest = hashlib.sha256(f"{decoding.seed}/{question_id}/{step}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True) | 1


@dataclass(frozen=True)
class Greedy:
    """The most probable allowed slot of each row."""

    slots: Tensor
    """(B,), int64; ties to the smallest slot."""
    leads: Tensor
    """(B,), how far each is ahead of the second best."""


def greedy_with_leads(fused: Tensor, allowed: Tensor) -> Greedy:
    """Choose as `greedy` does, and say by how much.

    Args:
        fused: shape (B, V).
        allowed: shape (B, V), bool.
    """
    rest = fused.masked_fill(~allowed, -1.0)
    slots = rest.argmax(-1, keepdim=True)
    best = rest.gather(-1, slots)
    second = rest.scatter_(-1, slots, -1.0).amax(-1, keepdim=True)
    return Greedy(slots[:, 0], (best.clamp_min(0.0) - second.clamp_min(0.0))[:, 0])


def greedy(fused: Tensor, allowed: Tensor) -> Tensor:
    """Return the most probable allowed slot of each row, ties to the smallest.

    Args:
        fused: shape (B, V).
        allowed: shape (B, V), bool.
    Returns:
        shape (B,), int64.
    """
    return greedy_with_leads(fused, allowed).slots


def sample(fused: Tensor, allowed: Tensor, decoding: Decoding, keys: Tensor, indices: Tensor) -> Tensor:
    """Draw one allowed slot of each row, after temperature and nucleus.

    The best sum of log-probability and Gumbel noise is a draw from the distribution (Gumbel-max). The noise comes by
    counter, so a row's text is the same in every batch; nothing waits for the device.

    Args:
        fused: shape (B, V).
        allowed: shape (B, V), bool.
        decoding: temperature > 0 and top_p.
        keys: shape (B,), int64, `row_key` of each row.
        indices: shape (B,), int64, how many tokens each row has.
    Returns:
        shape (B,), int64; where no allowed slot has mass, the smallest one.
    """
    logs = fused.double().log().masked_fill_(fused <= 0, _NO_MASS).masked_fill_(~allowed, -torch.inf)
    if decoding.top_p < 1:
        logs.masked_fill_(~_nucleus(logs, decoding), -torch.inf)
    noise = gumbel(keys, indices, fused.shape[-1])
    return logs.add_(noise, alpha=decoding.temperature).argmax(-1)


def _nucleus(logs: Tensor, decoding: Decoding) -> Tensor:
    """Return the fewest most probable slots that reach top_p: (B, V) of logarithms -> (B, V) of bool."""
    tempered = (logs - logs.amax(-1, keepdim=True)) / decoding.temperature
    ordered, slots = tempered.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(slots, dtype=torch.bool).scatter_(-1, slots, before < decoding.top_p)
