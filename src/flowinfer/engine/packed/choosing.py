"""From logits to slots inside a step: in three kernels where they serve, else in the mixer's own tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.mixing import Mixer
from flowinfer.engine.sampling import greedy_with_leads
from flowinfer.spec import Decoding


@dataclass(frozen=True)
class Choice:
    """What a step's heads chose together."""

    slots: Tensor
    """(R,) int64."""
    leads: Tensor
    """(R,): fused probability of the best slot minus that of the second."""
    favourites: Tensor
    """(K, R) int64: each head's own best slot."""


Choose = Callable[[Sequence[Tensor], Tensor, Tensor, Tensor], Choice]
"""(logits of each head (R, V_k), UTF-8 states (R,), noise keys (R,), token indices (R,)) -> choice."""


def by_mixer(mixer: Mixer, decoding: Decoding) -> Choose:
    """Return a choice by the mixer's tensor operations: every fuser that never asks the host."""
    del decoding

    def choose(logits: Sequence[Tensor], states: Tensor, keys: Tensor, indices: Tensor) -> Choice:
        del keys, indices
        probs = mixer.lift(logits, ())
        fused = mixer.fuse(probs).probs
        best = greedy_with_leads(fused, mixer.vocabulary.guard.mask(states))
        return Choice(best.slots, best.leads, torch.stack([one.argmax(-1) for one in probs]))

    return choose
