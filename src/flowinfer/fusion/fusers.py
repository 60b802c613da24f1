"""Fusers: how the next-token distributions of several sources become one.

A fuser is called with probabilities over the shared vocabulary, shape (K, B, V), weights of shape (K,) that sum to 1,
and a view of the group. It returns shape (B, V), rows summing to 1. Sources come in canonical order, so that
permuting a group's branches changes no bit. A source may itself be a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowinfer.fusion.shared import SharedVocabulary

_TINY = 1e-30
"""Probability that stands for zero inside logarithms."""


@dataclass(frozen=True)
class FuserView:
    """What a fuser may know of its group."""

    vocabulary: SharedVocabulary
    names: tuple[str, ...]
    """Name of each source, in the order of the probabilities; a mixture's is that of its group."""
    heads: tuple[int | None, ...]
    """Index of each source into the vocabulary's heads; None for a mixture."""

    def filled(self, probs: Tensor) -> Tensor:
        """Give keys that a head lacks the probability of the first token it would write them with.

        Args:
            probs: shape (K, B, V).
        Returns:
            shape (K, B, V); rows no longer sum to 1.
        Source: UniTE (arXiv 2410.12777), section 4.
        """
        if self.vocabulary.is_identity:
            return probs
        return torch.stack(
            [
                source if head is None else source.index_select(-1, self.vocabulary.first_slots(head))
                for source, head in zip(probs, self.heads, strict=True)
            ]
        )


class Fuser(Protocol):
    """Mix K next-token distributions into one."""

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Mix probabilities of shape (K, B, V) with weights of shape (K,) into shape (B, V), rows summing to 1."""


def canonical_order(names: Sequence[str], weights: Sequence[float], ties: Sequence[str]) -> list[int]:
    """Return the order in which sources are summed: by name, weight, then a tie-breaking text such as the prompt."""
    return sorted(range(len(names)), key=lambda k: (names[k], weights[k], ties[k], k))


def mean(probs: Tensor | Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return sum_k w_k q_k in the given order: K times (B, V), (K,) or (K, B) -> (B, V)."""
    total = probs[0] * weights[0].unsqueeze(-1)
    for source, weight in zip(probs[1:], weights[1:], strict=True):
        total += source * weight.unsqueeze(-1)
    return total


def _normalized(mass: Tensor) -> Tensor:
    return mass / mass.sum(-1, keepdim=True).clamp_min(_TINY)


class Mean:
    """The weighted arithmetic mean. Source: the paper, eq. (7) with w_k = 1/K."""

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Return sum_k w_k q_k."""
        return mean(probs, weights)


class Geometric:
    """The weighted geometric mean, renormalized; missing keys count with their first token."""

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Return exp(sum_k w_k log q_k), normalized."""
        logs = mean(view.filled(probs).clamp_min(_TINY).log(), weights)
        return (logs - logs.logsumexp(-1, keepdim=True)).exp()


class Power:
    """The weighted power mean of exponent a, renormalized: a=1 is the mean, a near 0 the geometric mean."""

    def __init__(self, a: float = 0.5) -> None:
        if a == 0:
            raise ValueError("the exponent a of fuse=power must not be 0; use fuse=geometric")
        self.a = a

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Return (sum_k w_k q_k^a)^(1/a), normalized; computed with logarithms, so that a near 0 does not vanish."""
        own = probs if self.a >= 0.5 else view.filled(probs)
        logs = own.clamp_min(_TINY).double().log() * self.a  # (K, B, V)
        logs = logs + weights.double().clamp_min(_TINY).log()[:, None, None]
        powered = logs.logsumexp(0) / self.a  # (K, B, V) -> (B, V)
        return (powered - powered.logsumexp(-1, keepdim=True)).exp().to(probs.dtype)


class Unite:
    """The mean over the union of each source's k best keys. Source: UniTE (arXiv 2410.12777), with exact bytes."""

    def __init__(self, k: int = 10) -> None:
        self.k = k

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Restrict to the union, normalize each source there (a key it lacks: its first token), then average."""
        best = probs.topk(min(self.k, probs.shape[-1]), dim=-1).indices  # (K, B, k)
        candidates = torch.zeros_like(probs[0], dtype=torch.bool)
        for source in best:
            candidates.scatter_(-1, source, torch.ones_like(source, dtype=torch.bool))
        restricted = view.filled(probs).masked_fill(~candidates, 0.0)
        return _normalized(mean(_normalized(restricted), weights))


class Gated:
    """The primary source alone where it is sure, else the mean. Source: GaC (arXiv 2406.12585), section 3.3."""

    def __init__(self, tau: float = 0.5, primary: str = "") -> None:
        self.tau = tau
        self.primary = primary

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Return q_primary where its top probability exceeds tau, else the mean, row by row."""
        index = view.names.index(self.primary) if self.primary in view.names else 0
        primary = probs[index]
        is_sure = primary.amax(-1, keepdim=True) > self.tau  # (B, 1)
        return torch.where(is_sure, primary, mean(probs, weights))


class Drop:
    """A source counts only where its favourite is among another's n best. Source: EVA (arXiv 2404.09492)."""

    def __init__(self, n: int = 20) -> None:
        self.n = n

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Average the sources that some other source supports; all of them where none is supported."""
        num_sources = probs.shape[0]
        if num_sources == 1:
            return probs[0]
        favourites = probs.argmax(-1)  # (K, B)
        best = probs.topk(min(self.n, probs.shape[-1]), dim=-1).indices  # (K, B, n)
        support = (favourites[:, None, :, None] == best[None]).any(-1)  # (K, K, B)
        support &= ~torch.eye(num_sources, dtype=torch.bool, device=probs.device)[:, :, None]
        kept = support.any(1)  # (K, B)
        shares = weights[:, None] * kept
        shares = torch.where(shares.sum(0) > 0, shares, weights[:, None])
        return mean(probs, shares / shares.sum(0))


class Entropy:
    """The mean weighted by certainty: each source's 1 / entropy over its k best keys, at every step."""

    def __init__(self, k: int = 50) -> None:
        self.k = k

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Return sum_k v_k q_k with v_k proportional to w_k / H(top-k of q_k)."""
        top = _normalized(probs.topk(min(self.k, probs.shape[-1]), dim=-1).values)  # (K, B, k)
        entropy = -(top * top.clamp_min(_TINY).log()).sum(-1)  # (K, B)
        certainty = weights[:, None] / entropy.clamp_min(1e-6)
        return mean(probs, certainty / certainty.sum(0))


class Vote:
    """The majority of the sources' favourites; the mean decides between equals."""

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Return a distribution led by the key that most sources favour."""
        average = mean(probs, weights)
        ballots = torch.zeros_like(average)
        for source in probs:
            ballots.scatter_add_(-1, source.argmax(-1, keepdim=True), torch.ones_like(average[:, :1]))
        return _normalized(ballots + average / (1 + average.amax(-1, keepdim=True)))


class Sharpen:
    """The mean in which a short key inherits the mass of longer candidates. Source: SAFE (arXiv 2510.15346)."""

    runs_on_host = True
    """Whether it looks at candidates one by one, off the device; `profile` says so."""

    def __init__(self, k: int = 10, floor: float = 0.1) -> None:
        self.k = k
        self.floor = floor

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Add to each leading key above the floor the mass of the candidates that strictly start with it."""
        average = mean(probs, weights)
        values, slots = average.topk(min(self.k, average.shape[-1]), dim=-1)
        sharpened = average.clone()
        keys = (*view.vocabulary.keys, None)
        for row, (masses, candidates) in enumerate(zip(values.tolist(), slots.tolist(), strict=True)):
            named = [(keys[slot], slot, mass) for slot, mass in zip(candidates, masses, strict=True)]
            for key, slot, mass in named:
                if key is None or key == b" " or mass <= self.floor:
                    continue
                longer = sum(m for k, _, m in named if k is not None and k != key and k.startswith(key))
                sharpened[row, slot] += longer
        return _normalized(sharpened)


class Safe:
    """The mean, where heads disagree: one head writes ahead and the others verify. Source: SAFE (arXiv 2510.15346).

    The loop that writes ahead decides where heads are fused (`engine.loops.selective`); how, is said here.

    Args:
        tau: a verifying head disagrees with a token to which it gives less.
        writer: the model that writes; "" = the head of most weight, of equals the first by name.
        ahead: most tokens that it writes before the others verify them; the text does not depend on it.
    """

    runs_on_host = True
    writes_ahead = True
    """Whether its step is written by one head, which the others verify."""

    def __init__(self, tau: float = 0.5, writer: str = "", ahead: int = 16) -> None:
        self.tau, self.writer, self.ahead = tau, writer, ahead

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Return sum_k w_k q_k."""
        return mean(probs, weights)


class Bytewise:
    """The weighted mean or geometric mean over bytes: heads are asked for the next byte, whatever their tokens are."""

    runs_on_host = True
    writes_bytes = True
    """Whether its step is written byte by byte, and the vocabulary shared is that of bytes."""

    def __init__(self, mix: str = "mean", covers: int = 0) -> None:
        self.mix: Fuser = Geometric() if mix == "product" else Mean()
        self.covers = covers
        """Most covers of the text that are followed in each head; 0 = all."""

    def __call__(self, probs: Tensor, weights: Tensor, view: FuserView) -> Tensor:
        """Mix probabilities of the 256 bytes and the end."""
        return self.mix(probs, weights, view)
