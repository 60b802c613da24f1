"""What the device knows about each row of the batch: what its heads hold, what waits, and its own decoding options.

The last axis of every tensor is the row's index in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowinfer.engine.loops.sampling import Draws
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.spec import Decoding


class RowStates:
    """The states of R rows of K heads.

    Args:
        heads: K.
        rows: R.
        device: of the loop.
    """

    def __init__(self, heads: int, rows: int, device: torch.device) -> None:
        def integers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self.length, self.first, self.waiting = (integers(heads, rows) for _ in range(3))
        """(K, R): ids in keys and values; where the waiting ids begin in the head's list of ids; how many wait."""
        self.live = torch.zeros(rows, dtype=torch.bool, device=device)
        self.utf8, self.count, self.limit, self.key = (integers(rows) for _ in range(4))
        """(R,): state of the text as UTF-8; tokens emitted, and the most of them; key of the row's noise."""
        self.options = torch.zeros(2, rows, dtype=torch.float64, device=device)
        """(2, R): temperature and top_p."""

    @property
    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        by_head = [self.length, self.first, self.waiting]
        return [*by_head, self.live, self.utf8, self.count, self.limit, self.key, self.options]

    def start(
        self,
        index: int,
        lengths: Sequence[int],
        firsts: Sequence[int],
        decoding: Decoding,
        *,
        key: int,
        count: int = 0,
        utf8: int = BOUNDARY,
    ) -> None:
        """Make a row live that has one id waiting for every head.

        Args:
            index: of the row.
            lengths: ids in keys and values, by head.
            firsts: where the waiting id stands in the head's list of ids, by head.
            decoding: its own options.
            key: of its noise.
            count: tokens emitted before.
            utf8: state of its text.
        """
        device, heads = self.live.device, len(lengths)
        numbers = [*lengths, *firsts, utf8, count, decoding.max_tokens, key]
        values = torch.tensor(numbers).to(device, non_blocking=True)
        self.length[:, index], self.first[:, index] = values[:heads], values[heads : 2 * heads]
        self.utf8[index], self.count[index], self.limit[index], self.key[index] = values[2 * heads :]
        options = torch.tensor([decoding.temperature, decoding.top_p], dtype=torch.float64)
        self.options[:, index] = options.to(device, non_blocking=True)
        self.waiting[:, index] = 1
        self.live[index] = True

    def stop(self, index: int) -> None:
        """End a row."""
        self.live[index] = False
        self.waiting[:, index] = 0

    def exchange(self, one: int, other: int) -> None:
        """Exchange two rows."""
        both = torch.tensor([one, other], device=self.live.device)
        for states in self.tensors:
            states[..., both] = states[..., both.flip(0)]

    def draws(self, rows: int, *, has_nucleus: bool) -> Draws:
        """Return how the first rows draw."""
        temperatures, top_ps = self.options[:, :rows]
        return Draws(temperatures, top_ps, self.key[:rows], self.count[:rows], has_nucleus)
