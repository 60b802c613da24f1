"""Whether a head agrees with a token of another: how likely it is to write the same bytes, in tokens of its own.

A head that would write "Sofia" agrees with one that writes "So": so the probability counts of every token that begins
with those bytes. Where a head writes them in several tokens, it is that of these one after another, of which the last
may reach past their end.
Source: SAFE (arXiv 2510.15346), which verifies so the tokens of a drafting model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from flowinfer.fusion.shared import SharedVocabulary

_DIGITS = 9
"""To which agreements are rounded, so that what else is asked with one does not decide."""


@dataclass(frozen=True)
class Asked:
    """Some bytes, and where a head is to write them."""

    pieces: Sequence[bytes]
    """The bytes in the head's own N tokens."""
    slots: Sequence[int | None]
    """Of the pieces; None = nobody can write it."""
    rows: Sequence[int]
    """The distributions behind the text, and behind it with each of the pieces but the last: N."""


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

    def of(self, probs: Tensor, asked: Sequence[Asked]) -> list[float]:
        """Return the probability that a head goes on with each of some bytes.

        Args:
            probs: shape (R, V).
            asked: which bytes, and behind which of the R texts.
        """
        begun = [(one.rows[-1], one.pieces[-1]) for one in asked]
        begun += [(one.rows[0], b"".join(one.pieces)) for one in asked if len(one.pieces) > 1]
        begins = iter(self._beginning_with(probs, begun))
        lasts = [next(begins) for _ in asked]
        between = [(row, slot) for one in asked for row, slot in zip(one.rows[:-1], one.slots, strict=False)]
        values = probs[[row for row, _ in between], [slot or 0 for _, slot in between]].tolist() if between else []
        chances = iter([0.0 if slot is None else value for (_, slot), value in zip(between, values, strict=True)])
        found = []
        for one, last in zip(asked, lasts, strict=True):
            own = last * prod(next(chances) for _ in one.rows[:-1])
            found.append(round(own + next(begins) if len(one.pieces) > 1 else own, _DIGITS))
        return found

    def _beginning_with(self, probs: Tensor, asked: Sequence[tuple[int, bytes]]) -> list[float]:
        """Return the probability of all keys that begin with some bytes, each in a row of (R, V)."""
        bounds = [self._bounds(data) for _, data in asked]
        counts = [high - low for low, high in bounds]
        rows = np.repeat([row for row, _ in asked], counts)
        places = np.concatenate([np.arange(low, high) for low, high in bounds])
        ends = list(accumulate(counts))
        self._order = self._order.to(probs.device)
        where = torch.from_numpy(np.stack([rows, places])).to(probs.device)  # (2, M)
        sums = probs[where[0], self._order[where[1]]].double().cumsum(0)  # (M,)
        told = torch.nn.functional.pad(sums, (1, 0))[torch.tensor([0, *ends], device=probs.device)].tolist()
        return [high - low for low, high in pairwise(told)]

    def _bounds(self, data: bytes) -> tuple[int, int]:
        """Return where the keys that begin with some bytes stand."""
        low, kept = bisect_left(self._keys, data), data.rstrip(b"\xff")
        behind = kept[:-1] + bytes([kept[-1] + 1]) if kept else None  # the least bytes behind all that begin so
        return low, len(self._keys) if behind is None else bisect_left(self._keys, behind)
