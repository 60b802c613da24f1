"""Each head's own ids for every slot, on a device: what a chosen slot becomes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowinfer.fusion.shared import SharedVocabulary


@dataclass(frozen=True)
class IdTables:
    """Slot -> a stretch of one flat list of ids, for K heads.

    A list goes on with every id by itself, so that a prompt's last id can wait like a slot's.
    """

    firsts: Tensor
    """(K, V): where a slot's stretch begins in the head's list."""
    counts: Tensor
    """(K, V): how many ids it has; the end slot feeds nothing."""
    ids: Sequence[Tensor]
    """K lists."""
    singles: Sequence[int]
    """Where the list of single ids begins, by head."""
    most: Sequence[int]
    """Most ids of a slot, by head."""

    @classmethod
    def of(cls, vocabulary: SharedVocabulary) -> IdTables:
        """Make those of a shared vocabulary, in the host's memory."""
        firsts, counts, lists, singles = [], [], [], []
        for k, head in enumerate(vocabulary.heads):
            own, ids = vocabulary.all_ids(k)
            firsts.append(np.concatenate([[0], own.cumsum()]))
            counts.append(np.append(own, 0))
            lists.append(torch.from_numpy(np.concatenate([ids, np.arange(head.num_columns)])))
            singles.append(len(ids))
        most = [max(1, int(own.max(initial=1))) for own in counts]
        return cls(torch.from_numpy(np.stack(firsts)), torch.from_numpy(np.stack(counts)), lists, singles, most)

    def to(self, device: torch.device) -> IdTables:
        """Return them on a device."""
        ids = [own.to(device) for own in self.ids]
        return IdTables(self.firsts.to(device), self.counts.to(device), ids, self.singles, self.most)
