"""Choosing a slot from fused distributions: greedy, or sampling that does not depend on the batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.spec import Decoding


def row_generator(decoding: Decoding, question_id: str, step: str) -> torch.Generator:
    """Return the random stream of one row, keyed by seed, question and step and by nothing else."""
    digest = hashlib.sha256(f"{decoding.seed}/{question_id}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


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


def sample(fused: Tensor, allowed: Tensor, decoding: Decoding, generators: list[torch.Generator]) -> Tensor:
    """Draw one allowed slot of each row, after temperature and nucleus.

    The draw inverts the cumulative distribution at one uniform number of the row's own stream, so a row's text is the
    same in every batch.

    Args:
        fused: shape (B, V).
        allowed: shape (B, V), bool.
        decoding: temperature > 0 and top_p.
        generators: B streams.
    Returns:
        shape (B,), int64.
    """
    logs = fused.double().clamp_min(1e-300).log().masked_fill(~allowed, -torch.inf)
    probs = (logs / decoding.temperature).softmax(-1)  # (B, V)
    ordered, slots = probs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.cumsum(-1)
    if decoding.top_p < 1:
        ordered = ordered.masked_fill(mass - ordered >= decoding.top_p, 0.0)
        mass = ordered.cumsum(-1)
    draws = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    targets = draws.to(mass.device) * mass[:, -1]  # (B,)
    place = torch.searchsorted(mass, targets[:, None], right=True)[:, 0]
    last = (ordered > 0).sum(-1) - 1
    return slots.gather(-1, torch.minimum(place, last)[:, None])[:, 0]
