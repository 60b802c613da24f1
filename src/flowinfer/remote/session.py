"""Rows that a head elsewhere holds, as a session like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowinfer.backends.base import Session
from flowinfer.errors import HeadCut, RunError
from flowinfer.fusion.certified import Candidates
from flowinfer.remote import asked

if TYPE_CHECKING:
    from flowinfer.remote.client import RemoteModel


class RemoteSession(Session):
    """Rows that a head holds.

    Args:
        model: the head.
        number: its own among the sessions of the connection.
    """

    def __init__(self, model: RemoteModel, number: int) -> None:
        self._model, self._number, self._wire = model, number, model._wire
        self._made = 0
        self._lengths: dict[int, int] = {}
        self._queued: list[asked.Deed] = []
        self._numbers = count()
        self.num_answered = self.num_fetched = 0
        """Texts behind which candidates came, and those whose logits had to be fetched."""

    def __del__(self) -> None:
        """Let the head forget the rows; nothing is sent from here, which may be anywhere."""
        self._model.ended.append(self._number)

    @property
    def is_cut(self) -> bool:
        """Return whether the head has forgotten its rows."""
        return self._model._wire is not self._wire

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Let the head read prompts, in one message."""
        rows = list(range(self._made, self._made + len(prompts)))
        self._made += len(prompts)
        self._do(asked.Add(rows=rows, prompts=[list(prompt) for prompt in prompts]))
        self._lengths |= {row: len(prompt) for row, prompt in zip(rows, prompts, strict=True)}
        return rows

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids, with the next question."""
        self._queued.append(asked.Feed(chunks=[(row, list(ids)) for row, ids in chunks.items()]))
        self._grow({row: len(ids) for row, ids in chunks.items()})

    def leave_out(self, banned: Tensor) -> None:
        """Say which columns write nothing, with the next question."""
        self._queued.append(asked.LeaveOut(columns=banned.nonzero()[:, 0].tolist()))

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return rows' logits, (R, V_k)."""
        return self._whole(asked.Logits(rows=list(rows)), len(rows))

    def best(self, rows: Sequence[int], count: int) -> Candidates:
        """Return the candidates behind rows."""
        return self._some(asked.Logits(rows=list(rows), best=count, number=next(self._numbers)), len(rows))

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Append segments and return the logits behind each, (S, V_k)."""
        found = self._whole(asked.Verify(segments=_plain(segments)), sum(map(len, segments.values())))
        self._grow({row: sum(map(len, of_row)) for row, of_row in segments.items()})
        return found

    def verify_best(self, segments: Mapping[int, Sequence[Sequence[int]]], count: int) -> Candidates:
        """Append segments and return the candidates behind each."""
        deed = asked.Verify(segments=_plain(segments), best=count, number=next(self._numbers))
        found = self._some(deed, sum(map(len, segments.values())))
        self._grow({row: sum(map(len, of_row)) for row, of_row in segments.items()})
        return found

    def rollback(self, row: int, count: int) -> None:
        """Forget ids, with the next question."""
        if count:
            self._queued.append(asked.Rollback(row=row, count=count))
            self._lengths[row] -= count

    def remove(self, rows: Sequence[int]) -> None:
        """End rows, with the next question."""
        self._queued.append(asked.Remove(rows=list(rows)))
        for row in rows:
            del self._lengths[row]

    def length(self, row: int) -> int:
        """Return the number of ids in a row."""
        return self._lengths[row]

    def _grow(self, by: Mapping[int, int]) -> None:
        for row, more in by.items():
            self._lengths[row] += more

    def _whole(self, deed: asked.Logits | asked.Verify | asked.Fetch, count: int) -> Tensor:
        """Return the logits behind so many texts."""
        told = self._do(deed.model_copy(update={"is_direct": self._model.is_direct}))
        dtype, shape = asked.DTYPES.get(str(told.head.get("dtype"))), asked.shape_of(told.head.get("shape"))
        if dtype is None or shape is None or shape != (count, self._model.num_columns):
            raise RunError(f"{self._model.where}: what came are no logits")
        if told.beside is not None:
            return told.beside
        if len(told.body) != dtype.itemsize * shape[0] * shape[1]:
            raise RunError(f"{self._model.where}: what came are no logits")
        return torch.frombuffer(told.body, dtype=dtype).view(shape) if told.body else torch.empty(shape, dtype=dtype)

    def _some(self, deed: asked.Logits | asked.Verify, wanted: int) -> Candidates:
        """Return the candidates behind so many texts."""
        told = self._do(deed)
        shape, body = asked.shape_of(told.head.get("best")), told.body
        if shape is None or shape[0] != wanted or shape[1] < 1 or len(body) != 8 * shape[0] * shape[1]:
            raise RunError(f"{self._model.where}: what came are no candidates")
        count = shape[0] * shape[1]
        columns = torch.frombuffer(body, dtype=torch.int32, count=count).view(shape).long()
        if count and not 0 <= int(columns.min()) <= int(columns.max()) < self._model.num_columns:
            raise RunError(f"{self._model.where}: what came are candidates of another vocabulary")
        probs = torch.frombuffer(body, dtype=torch.float32, count=count, offset=4 * count).view(shape)

        def fetch(at: Sequence[int]) -> Tensor:
            self.num_fetched += len(at)
            return self._whole(asked.Fetch(number=deed.number, at=list(at)), len(at))

        self.num_answered += shape[0]
        return Candidates(columns, probs, fetch)

    def _do(self, deed: asked.Deed) -> asked.Answer:
        """Send what is queued and one thing more; wait for its answer."""
        if self.is_cut:
            raise HeadCut(f"{self._model.where}: its connection broke")
        deeds, self._queued = [*self._queued, deed], []
        return self._model._ask(asked.Work(session=self._number, deeds=deeds))


def _plain(segments: Mapping[int, Sequence[Sequence[int]]]) -> list[tuple[int, list[list[int]]]]:
    return [(row, [list(segment) for segment in of_row]) for row, of_row in segments.items()]
