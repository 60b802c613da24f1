"""Drafts that a model writes: its own greedy tokens, given to the heads as keys of the shared vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from flowinfer.backends.base import TokenModel
from flowinfer.engine.loops.drafts import Drafter
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.fusion.shared import SharedVocabulary


@dataclass
class _Reading:
    """A row as the drafting model reads it."""

    handle: int
    prompt_length: int
    num_slots: int = 0
    """Emitted slots of the row that are fed, or about to be."""


class ModelDrafter:
    """Lets a model write ahead in a session of its own.

    Args:
        model: which drafts; a head of the group or any other.
        vocabulary: of the group.
        node: whose prompt it reads.
        prefill: what the answer begins with.
    """

    def __init__(self, model: TokenModel, vocabulary: SharedVocabulary, node: str, prefill: str) -> None:
        self._model, self._vocabulary, self._node, self._prefill = model, vocabulary, node, prefill
        own = model.vocabulary()
        self._tokens, self._ends = own.tokens, own.eos_ids
        writes = torch.zeros(own.num_columns, dtype=torch.bool)
        writes[[*own.text_ids(), *(i for i in own.eos_ids if i < own.num_columns)]] = True
        self._is_silent = ~writes.to(model.device)
        self._session = model.open()
        self._rows: dict[int, _Reading] = {}

    def propose(self, rows: Sequence[LiveRow], limits: Sequence[int]) -> list[list[int]]:
        """Catch up on what was emitted, then write ahead, all rows together."""
        wanted = {id(row): limit for row, limit in zip(rows, limits, strict=True) if limit > 0}
        asked = [row for row in rows if id(row) in wanted]
        self._admit([row for row in asked if id(row) not in self._rows])
        pending = {id(row): self._catch_up(row) for row in asked if id(row) in self._rows}
        drafts: dict[int, list[int]] = {row: [] for row, ids in pending.items() if ids is not None}
        fed = dict.fromkeys(drafts, 0)
        chunks: Mapping[int, Sequence[int]] = {row: ids for row, ids in pending.items() if ids}
        going = list(drafts)
        while going:
            self._session.feed({self._rows[row].handle: chunk for row, chunk in chunks.items()})
            logits = self._session.logits([self._rows[row].handle for row in going])
            best = logits.masked_fill(self._is_silent, -torch.inf).argmax(-1).tolist()
            chunks = {}
            for row, token in zip(going, best, strict=True):
                slots = self._slots(token)
                drafts[row] += slots
                if slots and len(drafts[row]) < wanted[row] and self._has_room(row):
                    chunks[row] = [token]
                    fed[row] += 1
            going = list(chunks)
        for row, count in fed.items():
            self._session.rollback(self._rows[row].handle, count)
        return [drafts.get(id(row), [])[: wanted.get(id(row), 0)] for row in rows]

    def forget(self, rows: Sequence[LiveRow]) -> None:
        """Drop rows from its session."""
        gone = [self._rows.pop(id(row)) for row in rows if id(row) in self._rows]
        if gone:
            self._session.remove([reading.handle for reading in gone])

    def _admit(self, rows: Sequence[LiveRow]) -> None:
        prompts = [self._model.prompt(row.row.prompts[self._node], self._prefill).ids for row in rows]
        fitting = [
            (row, ids) for row, ids in zip(rows, prompts, strict=True) if 0 < len(ids) < self._model.max_positions
        ]
        if not fitting:
            return
        handles = self._session.add([ids for _, ids in fitting])
        for (row, ids), handle in zip(fitting, handles, strict=True):
            self._rows[id(row)] = _Reading(handle, len(ids))

    def _catch_up(self, row: LiveRow) -> list[int] | None:
        """Return the ids of what the row has emitted since; None where the model cannot write or hold it."""
        reading = self._rows[id(row)]
        data = b"".join(self._vocabulary.keys[slot] for slot in row.slots[reading.num_slots :])
        ids = self._tokens.try_cover(data)
        if ids is None or self._session.length(reading.handle) + len(ids) >= self._model.max_positions:
            return None
        reading.num_slots = len(row.slots)
        return list(ids)

    def _has_room(self, row: int) -> bool:
        return self._session.length(self._rows[row].handle) + 1 < self._model.max_positions

    def _slots(self, token: int) -> list[int]:
        """Return a token of the model in shared slots; none where it ends or cannot be written."""
        piece = self._tokens.pieces[token] if token < len(self._tokens.pieces) else None
        if token in self._ends or piece is None:
            return []
        slot = self._vocabulary.slot_of_key.get(piece)
        return [slot] if slot is not None else cover(piece, self._vocabulary)


def cover(piece: bytes, vocabulary: SharedVocabulary) -> list[int]:
    """Cut bytes into the longest keys of a shared vocabulary; nothing where one byte has no key."""
    slots, at = [], 0
    while at < len(piece):
        found = next((end for end in range(len(piece), at, -1) if piece[at:end] in vocabulary.slot_of_key), None)
        if found is None:
            return []
        slots.append(vocabulary.slot_of_key[piece[at:found]])
        at = found
    return slots


class Alternate:
    """Lets several drafters propose in turn, round by round."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = tuple(drafters)
        self._turn = 0

    def propose(self, rows: Sequence[LiveRow], limits: Sequence[int]) -> list[list[int]]:
        """Ask the next drafter."""
        self._turn += 1
        return self._drafters[self._turn % len(self._drafters)].propose(rows, limits)

    def forget(self, rows: Sequence[LiveRow]) -> None:
        """Let every drafter drop rows."""
        for drafter in self._drafters:
            drafter.forget(rows)
