"""Certified top-k: the dense argmax from a few candidates of each head, for heads on different devices and hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Certified:
    """The winners of B rows and what it took to be sure."""

    slots: Tensor
    """(B,), int64."""
    values: Tensor
    """(B,), fused probability of each winner."""
    leads: Tensor
    """(B,), what each winner is ahead of all other slots, at least."""
    numbers_moved: int
    """Count of (slot, probability) numbers that crossed between devices."""


def certified_argmax(probs: Sequence[Tensor], weights: Sequence[float], *, k: int = 8) -> Certified:
    """Return the argmax of sum_k w_k q_k without moving whole distributions.

    Each head names its k best slots, every head says what it gives to all named slots, and the best is accepted if no
    slot outside the lists could reach it; otherwise k doubles. Ties go to the smallest slot, as in the dense argmax.

    Args:
        probs: one tensor of shape (B, V) per head, each on its own device, already masked.
        weights: K shares that sum to 1.
        k: candidates of each head at first.
    """
    home, size, moved = probs[0].device, probs[0].shape[-1], 0
    while True:
        k = min(k, size)
        tops = [head.topk(k, dim=-1) for head in probs]
        named = torch.cat([top.indices.to(home) for top in tops], dim=-1)  # (B, K k)
        named = named.sort(-1).values
        fused = torch.zeros(named.shape, dtype=probs[0].dtype, device=home)
        bound = torch.zeros(named.shape[0], dtype=probs[0].dtype, device=home)
        for head, top, weight in zip(probs, tops, weights, strict=True):
            fused = fused + weight * head.gather(-1, named.to(head.device)).to(home)
            bound = bound + weight * top.values[:, -1].to(home)
        moved += 2 * named.numel() + len(probs) * named.numel()
        best, place = fused.max(-1)
        place = (fused == best[:, None]).to(torch.int8).argmax(-1)  # smallest slot among equals: named is sorted
        if k == size or bool((best > bound).all()):
            slots = named.gather(-1, place[:, None])  # (B, 1)
            second = fused.masked_fill(named == slots, 0.0).amax(-1)
            others = torch.zeros_like(bound) if k == size else bound
            return Certified(slots[:, 0], best, best - torch.maximum(second, others), moved)
        k *= 2


@dataclass(frozen=True)
class Candidates:
    """The most probable columns of a head behind N texts, where its distributions lie elsewhere."""

    columns: Tensor
    """(N, k), int64."""
    probs: Tensor
    """(N, k), float32, falling; over the columns that write something."""
    fetch: Callable[[Sequence[int]], Tensor]
    """Returns the whole logits behind some of the N texts, given by index: (R, V_k)."""

    def __len__(self) -> int:
        """Return N."""
        return len(self.columns)

    def to(self, device: torch.device) -> Candidates:
        """Return them on a device; what is fetched comes as before."""
        return Candidates(self.columns.to(device), self.probs.to(device), self.fetch)


def together(parts: Sequence[Tensor | Candidates]) -> Tensor | Candidates:
    """Put what a head says behind several lots of texts one behind the other; all are whole, or none is."""
    if len(parts) == 1:
        return parts[0]
    whole = [part for part in parts if isinstance(part, Tensor)]
    some = [part for part in parts if isinstance(part, Candidates)]
    if not some:
        return torch.cat(whole)
    assert not whole, "a head is asked in one way"

    def fetch(wanted: Sequence[int]) -> Tensor:
        found: dict[int, Tensor] = {}
        begin = 0
        for part in some:
            own = [index for index in wanted if begin <= index < begin + len(part)]
            if own:
                found.update(zip(own, part.fetch([index - begin for index in own]), strict=True))
            begin += len(part)
        return torch.stack([found[index] for index in wanted])

    return Candidates(torch.cat([part.columns for part in some]), torch.cat([part.probs for part in some]), fetch)


def sure(fused: Tensor, slack: Tensor, margin: float) -> Tensor:
    """Return in which rows the best slot is known: its value exactly, and no other within reach.

    Args:
        fused: (B, V), what the candidates give to each slot, -1 where it is not allowed.
        slack: (B, V), what could come on top, at most.
        margin: leads below this are told as near ties, so they must be known exactly.
    Returns:
        (B,), bool.
    """
    best, place = fused.max(-1, keepdim=True)  # (B, 1)
    others = (fused + slack).scatter(-1, place, -1.0).amax(-1)
    return (slack.gather(-1, place)[:, 0] == 0) & (best[:, 0] - others > margin)
