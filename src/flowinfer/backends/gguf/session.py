"""The decoding state of a GGUF head: one llama.cpp context, whose sequences are the rows.

All rows share the cells of one unified cache of keys and values. A row's last ids are forgotten by removing their
cells; prompts that begin alike share cells. A context has a fixed number of sequences and cells: where it becomes too
small, the rows move to a larger one, their keys and values as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowinfer.backends.base import Session
from flowinfer.backends.gguf.context import Context, Entry, Settings

_LEAST_CELLS = 512
_LEAST_SHARED = 32
"""Ids that prompts must begin with alike to share them."""


@dataclass
class _Row:
    sequence: int
    ids: list[int] = field(default_factory=list)


class GgufSession(Session):
    """A `Session` over one context at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = Context(settings, 1, _LEAST_CELLS)
        self._rows: dict[int, _Row] = {}
        self._logits: dict[int, Tensor] = {}
        self._next_handle = 0

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read new prompts, what they share with each other or with a row only once."""
        handles = list(range(self._next_handle, self._next_handle + len(prompts)))
        self._next_handle += len(prompts)
        self._make_room(len(prompts), sum(map(len, prompts)))
        taken = {row.sequence for row in self._rows.values()}
        free = (sequence for sequence in range(self._context.num_sequences) if sequence not in taken)
        self._rows |= {handle: _Row(sequence) for handle, sequence in zip(handles, free, strict=False)}
        try:
            if self._settings.can_forget:
                self._share(handles, prompts)
            self.feed({handle: prompt[self.length(handle) :] for handle, prompt in zip(handles, prompts, strict=True)})
        except BaseException:
            self.remove(handles)
            raise
        return handles

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids to rows."""
        if named := {row: [ids] for row, ids in chunks.items() if ids}:
            self.verify(named)

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Append segments; return the logits behind each, (S, V_k)."""
        self._make_room(0, sum(len(segment) for own in segments.values() for segment in own))
        logits = self._context.read([entry for row, own in segments.items() for entry in self._entries(row, own)])
        at = 0
        for row, own in segments.items():
            self._rows[row].ids += (i for segment in own for i in segment)
            at += len(own)
            self._logits[row] = logits[at - 1]
        return logits

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the last logits of rows, (R, V_k)."""
        return torch.stack([self._logits[row] for row in rows])

    def rollback(self, row: int, count: int) -> None:
        """Remove the cells of a row's last ids; where that is impossible the others are read again."""
        if not count:
            return
        held = self._rows[row]
        kept = held.ids[: len(held.ids) - count]
        if self._settings.can_forget and self._context.forget(held.sequence, len(kept)):
            held.ids = kept
            return
        self._context.forget(held.sequence, 0)
        held.ids = []
        self.feed({row: kept})

    def remove(self, rows: Sequence[int]) -> None:
        """Free the cells of rows."""
        for row in rows:
            self._context.forget(self._rows.pop(row).sequence, 0)
            self._logits.pop(row, None)

    def length(self, row: int) -> int:
        """Return the number of ids in a row."""
        return len(self._rows[row].ids)

    def _entries(self, row: int, segments: Sequence[Sequence[int]]) -> Iterator[Entry]:
        held = self._rows[row]
        position = len(held.ids)
        for segment in segments:
            for index, token_id in enumerate(segment, 1):
                yield Entry(held.sequence, position, token_id, index == len(segment))
                position += 1

    def _share(self, handles: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Give new rows the cells of a row whose ids begin like theirs; all but the last id."""
        common = min(_common(prompts[0], prompt[:-1]) for prompt in prompts) if len(prompts) > 1 else 0
        if common >= _LEAST_SHARED and self._best(handles[0], prompts[0])[0] < common:
            self.feed({handles[0]: prompts[0][:common]})
        for handle, prompt in zip(handles, prompts, strict=True):
            length, source = self._best(handle, prompt)
            if length >= _LEAST_SHARED and length > self.length(handle):
                own = self._rows[handle]
                self._context.share(self._rows[source].sequence, own.sequence, length)
                own.ids = list(prompt[:length])

    def _best(self, handle: int, prompt: Sequence[int]) -> tuple[int, int]:
        """Return how many ids of a prompt, but for its last, another row begins with, at most, and that row."""
        others = (other for other, row in self._rows.items() if other != handle and row.ids)
        return max(((_common(prompt[:-1], self._rows[other].ids), other) for other in others), default=(0, handle))

    def _make_room(self, rows: int, ids: int) -> None:
        """See to a context that holds so many further rows and ids."""
        before = self._context
        sequences = rows + len(self._rows)
        cells = ids + sum(len(row.ids) for row in self._rows.values())
        if sequences <= before.num_sequences and cells <= before.num_cells:
            return
        self._context = Context(self._settings, max(sequences, before.num_sequences), max(2 * cells, before.num_cells))
        for sequence, row in enumerate(self._rows.values()):
            before.move(row.sequence, self._context, sequence)
            row.sequence = sequence


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many ids two rows begin with alike."""
    length = min(len(left), len(right))
    return next((index for index in range(length) if left[index] != right[index]), length)
