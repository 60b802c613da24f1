"""What devices know about each row of the batch: what its heads hold, what waits, and its own decoding options.

The last axis of every tensor is the row's index in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowinfer.engine.loops.sampling import Draws
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.spec import Decoding


class HeadStates:
    """What K heads hold of R rows, as each device of the loop knows it.

    Args:
        heads: K.
        rows: R.
        device: one of the loop's.
    """

    def __init__(self, heads: int, rows: int, device: torch.device) -> None:
        self.length, self.first, self.waiting = (_integers(heads, rows, device=device) for _ in range(3))
        """(K, R): ids in keys and values; where the waiting ids begin in the head's list of ids; how many wait."""

    @property
    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        return [self.length, self.first, self.waiting]

    def start(self, index: int, lengths: Sequence[int], firsts: Sequence[int]) -> None:
        """Let one id of a row wait for every head.

        Args:
            index: of the row.
            lengths: ids in keys and values, by head.
            firsts: where the waiting id stands in the head's list of ids, by head.
        """
        values = sent(torch.tensor([*lengths, *firsts]), self.length.device)
        self.length[:, index], self.first[:, index] = values[: len(lengths)], values[len(lengths) :]
        self.waiting[:, index] = 1

    def stop(self, index: int) -> None:
        """Let nothing of a row wait."""
        self.waiting[:, index] = 0


class RowStates:
    """What the fusing device alone knows of R rows.

    Args:
        rows: R.
        device: where slots are chosen.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.live = torch.zeros(rows, dtype=torch.bool, device=device)
        self.utf8, self.count, self.limit, self.key = (_integers(rows, device=device) for _ in range(4))
        """(R,): state of the text as UTF-8; tokens emitted, and the most of them; key of the row's noise."""
        self.options = torch.zeros(2, rows, dtype=torch.float64, device=device)
        """(2, R): temperature and top_p."""

    @property
    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        return [self.live, self.utf8, self.count, self.limit, self.key, self.options]

    def start(self, index: int, decoding: Decoding, *, key: int, count: int = 0, utf8: int = BOUNDARY) -> None:
        """Make a row live.

        Args:
            index: of the row.
            decoding: its own options.
            key: of its noise.
            count: tokens emitted before.
            utf8: state of its text.
        """
        device = self.live.device
        values = sent(torch.tensor([utf8, count, decoding.max_tokens, key]), device)
        self.utf8[index], self.count[index], self.limit[index], self.key[index] = values
        options = torch.tensor([decoding.temperature, decoding.top_p], dtype=torch.float64)
        self.options[:, index] = sent(options, device)
        self.live[index].fill_(True)  # assigned, a number would be waited for, and with it all that is queued

    def stop(self, index: int) -> None:
        """End a row."""
        self.live[index].fill_(False)

    def draws(self, rows: int, *, has_nucleus: bool) -> Draws:
        """Return how the first rows draw."""
        temperatures, top_ps = self.options[:, :rows]
        return Draws(temperatures, top_ps, self.key[:rows], self.count[:rows], has_nucleus)


def exchange(tensors: Sequence[Tensor], one: int, other: int) -> None:
    """Exchange two rows in tensors whose last axis is the row's index."""
    if not tensors:
        return
    both = sent(torch.tensor([one, other]), tensors[0].device)
    for states in tensors:
        states[..., both] = states[..., both.flip(0)]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device; the host goes on meanwhile, as it would not from memory that is not page-locked."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _integers(*shape: int, device: torch.device) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, device=device)
