"""Whether a head agrees with a token of another: how likely it is to write the same bytes, in tokens of its own.

A head that would write "Sofia" agrees with one that writes "So": so the probability counts of every token that begins
with those bytes. Where a head writes them in several tokens, it is that of these one after another, of which the last
may reach past their end.
Source: SAFE (arXiv 2510.15346), which verifies so the tokens of a drafting model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from flowinfer.fusion.shared import SharedVocabulary


class Agreement:
    """How likely heads are to write given bytes.

    Args:
        vocabulary: shared by the heads.
    """

    def __init__(self, vocabulary: SharedVocabulary) -> None:
        order = sorted(range(len(vocabulary.keys)), key=vocabulary.keys.__getitem__)
        self._keys = [vocabulary.keys[slot] for slot in order]
        self._order = torch.tensor(order)
        """Slots in the order of their bytes: those of keys that begin alike stand together."""

    def with_text(self, probs: Tensor, pieces: Sequence[bytes], slots: Sequence[int | None]) -> Tensor:
        """Return the probability that a head goes on with some bytes: scalar.

        Args:
            probs: shape (N, V), behind the text, and behind it with each of the pieces but the last.
            pieces: the bytes in the head's own N tokens.
            slots: of the pieces; None = nobody can write it.
        """
        chance = self._beginning_with(probs[-1], pieces[-1])
        for own, slot in zip(probs[:-1], slots, strict=False):
            chance = chance * (0.0 if slot is None else own[slot])
        return chance + self._beginning_with(probs[0], b"".join(pieces)) if len(pieces) > 1 else chance

    def _beginning_with(self, probs: Tensor, data: bytes) -> Tensor:
        """Return the probability of all keys that begin with some bytes: (V,) -> scalar."""
        low, kept = bisect_left(self._keys, data), data.rstrip(b"\xff")
        behind = kept[:-1] + bytes([kept[-1] + 1]) if kept else None  # the least bytes behind all that begin so
        high = len(self._keys) if behind is None else bisect_left(self._keys, behind)
        self._order = self._order.to(probs.device)
        return probs.index_select(0, self._order[low:high]).sum()
