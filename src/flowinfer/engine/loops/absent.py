"""What stands in for a head elsewhere that is lost, where its group goes on without it (`min=`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

import torch
from torch import Tensor

from flowinfer.backends.base import Session


class AbsentSession(Session):
    """Rows of a head that is not there: it reads nothing, and what it says is counted by nobody.

    Args:
        num_columns: V_k of the head.
    """

    def __init__(self, num_columns: int) -> None:
        self._num_columns = num_columns
        self._handles = count()

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return handles."""
        return [next(self._handles) for _ in prompts]

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Do nothing."""

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return zeros, (R, V_k)."""
        return torch.zeros(len(rows), self._num_columns)

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Return zeros behind each segment, (S, V_k)."""
        return torch.zeros(sum(map(len, segments.values())), self._num_columns)

    def rollback(self, row: int, count: int) -> None:
        """Do nothing."""

    def remove(self, rows: Sequence[int]) -> None:
        """Do nothing."""

    def length(self, row: int) -> int:
        """Return 0."""
        return 0
