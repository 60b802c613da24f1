"""Choosing a slot from fused distributions: greedy, or sampling that does not depend on the batch; each row its way."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
class Draws:
    """How each of B rows draws."""

    temperatures: Tensor
    """(B,), float64; 0 = not at all, it chooses greedily."""
    top_ps: Tensor
    """(B,), float64."""
    keys: Tensor
    """(B,), int64, `row_key` of each."""
    indices: Tensor
    """(B,), int64, how many tokens each has."""
    has_nucleus: bool
    """Whether any top_p is below 1, which takes a sort; known without asking the device."""


@dataclass(frozen=True)
class Chosen:
    """What B rows emit."""

    slots: Tensor
    """(B,), int64; of equally probable ones greedy rows take the smallest."""
    leads: Tensor
    """(B,), how far each is ahead of the second best; 1 where it is drawn."""


def draws_of(
    decodings: Sequence[Decoding], keys: Sequence[int], indices: Sequence[int], device: torch.device
) -> Draws | None:
    """Return how rows with these options draw; None where all are greedy.

    Args:
        decodings: options of each row.
        keys: `row_key` of each.
        indices: how many tokens each has.
        device: of their distributions.
    """
    if not any(decoding.temperature > 0 for decoding in decodings):
        return None
    return Draws(
        torch.tensor([one.temperature for one in decodings], dtype=torch.float64, device=device),
        torch.tensor([one.top_p for one in decodings], dtype=torch.float64, device=device),
        torch.tensor(keys, device=device),
        torch.tensor(indices, device=device),
        has_nucleus=any(one.top_p < 1 for one in decodings),
    )


def choose_slots(fused: Tensor, allowed: Tensor, draws: Draws | None) -> Chosen:
    """Choose an allowed slot of each row as the row's own options say.

    Args:
        fused: shape (B, V).
        allowed: shape (B, V), bool.
        draws: how rows draw; None = all are greedy.
    """
    best = _best(fused, allowed)
    if draws is None:
        return best
    is_drawn = draws.temperatures > 0
    slots = torch.where(is_drawn, sample(fused, allowed, draws), best.slots)
    return Chosen(slots, best.leads.masked_fill(is_drawn, 1.0))


def most_probable(probs: Tensor) -> Tensor:
    """Return the first of the most probable slots of each row: (B, V) -> (B,).

    On a CPU by numpy: torch looks there at one number after the other, which takes twenty times as long.
    """
    return torch.from_numpy(probs.numpy().argmax(-1)) if probs.device.type == "cpu" else probs.argmax(-1)


def greedy(fused: Tensor, allowed: Tensor) -> Tensor:
    """Return the most probable allowed slot of each row, ties to the smallest: twice (B, V) -> (B,)."""
    return choose_slots(fused, allowed, None).slots


def sample(fused: Tensor, allowed: Tensor, draws: Draws) -> Tensor:
    """Draw one allowed slot of each row, after its temperature and nucleus; of greedy rows it says nothing.

    The best sum of log-probability and Gumbel noise is a draw from the distribution (Gumbel-max). The noise comes by
    counter, so a row's text is the same in every batch; nothing waits for the device.

    Args:
        fused: shape (B, V).
        allowed: shape (B, V), bool.
        draws: how rows draw.
    Returns:
        shape (B,), int64; where no allowed slot has mass, the smallest one.
    """
    temperatures = torch.where(draws.temperatures > 0, draws.temperatures, 1.0)[:, None]  # (B,) -> (B, 1)
    logs = fused.double().log().masked_fill_(fused <= 0, _NO_MASS).masked_fill_(~allowed, -torch.inf)
    if draws.has_nucleus:
        logs.masked_fill_(~_nucleus(logs, temperatures, draws.top_ps[:, None]), -torch.inf)
    noise = gumbel(draws.keys, draws.indices, fused.shape[-1])  # (B, V)
    return most_probable(logs.addcmul_(noise, temperatures))


def _best(fused: Tensor, allowed: Tensor) -> Chosen:
    rest = torch.where(allowed, fused, -1.0)
    slots = most_probable(rest)[:, None]
    best = rest.gather(-1, slots)
    second = rest.scatter_(-1, slots, -1.0).amax(-1, keepdim=True)
    return Chosen(slots[:, 0], (best.clamp_min(0.0) - second.clamp_min(0.0))[:, 0])


def _nucleus(logs: Tensor, temperatures: Tensor, top_ps: Tensor) -> Tensor:
    """Return the fewest most probable slots that reach top_p: (B, V) of logarithms -> (B, V) of bool.

    Args:
        logs: shape (B, V).
        temperatures: shape (B, 1), above 0.
        top_ps: shape (B, 1); a row with 1 keeps all slots, also those that rounding would leave out.
    """
    tempered = (logs - logs.amax(-1, keepdim=True)) / temperatures
    ordered, slots = tempered.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(slots, dtype=torch.bool).scatter_(-1, slots, (before < top_ps) | (top_ps >= 1))
