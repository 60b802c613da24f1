"""The shared vocabulary of a group: all heads' token bytes, sorted, and one end slot.

Slots are numbered by the sorted bytes, so they do not depend on the order of the heads. Where all heads have one
id -> bytes map, slots are that map's own text ids in order, and fusing happens in id space.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowinfer.errors import LoadError
from flowinfer.fusion import unions
from flowinfer.fusion.certified import Candidates
from flowinfer.fusion.unions import Keys
from flowinfer.fusion.utf8 import Utf8Guard
from flowinfer.fusion.vocab import NEVER_VALID, HeadVocabulary

_CACHE_FROM = 20_000
"""Shared vocabularies smaller than this are quicker built than read."""


class SharedVocabularyWarning(UserWarning):
    """Some keys cannot be written by every head and are left out."""


@dataclass(frozen=True)
class Lift:
    """How one head's columns become slots."""

    banned: Tensor
    """(V_k,) bool: columns that write nothing (control tokens, holes, padding, keys left out)."""
    banned_ids: Tensor
    """The same as their numbers: on a CPU few are set three times as fast as all are looked at."""
    source: Tensor
    """(V,): for each slot the column that is its first id, or a column that is always 0."""
    has_zero: bool
    """Whether such a column stands among the logits (a banned one); else one is appended."""
    primary_slots: Tensor
    extras: tuple[tuple[Tensor, Tensor], ...]
    """Rounds of (slots, ids) for further ids of a slot; slots are unique within a round, so adding is deterministic."""
    eos_ids: Tensor


class SharedVocabulary:
    """Lift each head's logits to probabilities over shared keys.

    Args:
        heads: the group's heads; a head alone is a group of one.
        eos: how a head's several end tokens are pooled: their sum, or the largest.
        device: where distributions are fused.
        is_strict: keep emitted bytes valid UTF-8.
    """

    def __init__(
        self,
        heads: Sequence[HeadVocabulary],
        *,
        eos: Literal["sum", "max"] = "sum",
        device: torch.device | str = "cpu",
        is_strict: bool = True,
    ) -> None:
        self.heads = tuple(heads)
        self.eos = eos
        self.device = torch.device(device)
        self.is_identity = _are_equal(self.heads)
        """Whether all heads share one id -> bytes map, so that slots are ids."""
        self.keys, self._slot_of_id = _identity(self.heads) if self.is_identity else _union(self.heads)
        self.eos_slot = len(self.keys)
        self.size = len(self.keys) + 1
        self.lifts = tuple(self._make_lift(k) for k in range(len(self.heads)))
        self.is_strict = is_strict

    @cached_property
    def guard(self) -> Utf8Guard:
        """Return the UTF-8 automaton over this vocabulary."""
        return Utf8Guard(self.keys, self.device, is_strict=self.is_strict)

    def lift(self, head: int, logits: Tensor) -> Tensor:
        """Turn a head's logits into probabilities over the shared slots.

        Args:
            head: index of the head.
            logits: shape (B, V_k), any float type; columns without a token may hold anything.
        Returns:
            shape (B, V), float32 (float64 for float64 logits), rows sum to 1 (with eos="max": at most 1).
        Source: the paper, eq. (7), with probabilities of equal bytes added.
        """
        return self._pooled(head, self._columns(head, logits))

    def lift_likely(self, logits: Sequence[Tensor], least: float) -> tuple[Tensor, list[Tensor]]:
        """Turn heads' logits into probabilities over the slots that matter, on a CPU: what `lift` gives there.

        Args:
            logits: of every head, shape (B, V_k).
            least: columns that are less probable in all rows name no slot.
        Returns:
            The S slots, rising, shape (S,), with the end among them; and K of shape (B, S). What a head gives to any
            other slot is less than `least` times `most_columns`.
        """
        columns = [self._columns(head, own) for head, own in enumerate(logits)]
        is_named = torch.zeros(self.size, dtype=torch.bool)
        is_named[self.eos_slot] = True
        for head, own in enumerate(columns):
            likely = np.flatnonzero(own.numpy() >= least) % own.shape[1]  # torch takes four times as long
            is_named[self._slots_of_columns(head)[torch.from_numpy(likely)]] = True
        slots = torch.from_numpy(np.flatnonzero(is_named.numpy()))
        return slots, [self._pooled(head, own, slots) for head, own in enumerate(columns)]

    @cached_property
    def most_columns(self) -> int:
        """Return the most columns of a head that stand for one slot but the end."""
        return 1 + max(len(plan.extras) for plan in self.lifts)

    def _columns(self, head: int, logits: Tensor) -> Tensor:
        """Turn logits into probabilities of columns, 0 where they write nothing: shape (B, V_k), or one more."""
        plan = self.lifts[head]
        wide = logits if logits.dtype is torch.float64 else logits.float()
        spoken = wide[:, : plan.banned.shape[0]].index_fill(1, plan.banned_ids, -torch.inf)  # (B, V_k)
        probs = spoken.softmax(-1)
        return probs if plan.has_zero else torch.nn.functional.pad(probs, (0, 1))

    def _pooled(self, head: int, probs: Tensor, among: Tensor | None = None) -> Tensor:
        """Sum probabilities of columns by slots: (B, V_k) -> (B, V), or (B, S) of S rising slots, the end the last."""
        plan = self.lifts[head]
        lifted = probs.index_select(1, plan.source if among is None else plan.source[among])
        for slots, ids in plan.extras:
            if among is not None:
                places = torch.searchsorted(among, slots)  # none is behind the last: that is the end
                is_there = among[places] == slots
                slots, ids = places[is_there], ids[is_there]
            lifted[:, slots] += probs[:, ids]
        if plan.eos_ids.numel():
            ends = probs[:, plan.eos_ids]  # (B, E)
            lifted[:, -1] = ends.sum(-1) if self.eos == "sum" else ends.amax(-1)
        return lifted

    def lift_some(self, head: int, found: Candidates) -> tuple[Tensor, Tensor]:
        """Turn the most probable columns of a head into what they give to each slot, and what is missing at most.

        Returns:
            twice shape (N, V), float32: a slot's probability lies between the first and the sum of both, and is the
            first where nothing is missing.
        """
        slots = self._slots_of_columns(head)[found.columns]  # (N, k)
        is_end = slots == self.eos_slot
        given = found.probs.new_zeros(len(found), self.size).scatter_add_(1, slots, found.probs)
        if self.eos == "max":
            given[:, self.eos_slot] = found.probs.masked_fill(~is_end, 0.0).amax(-1)
        seen = torch.zeros_like(given).scatter_add_(1, slots, torch.ones_like(found.probs))
        return given, (self._columns_of_slots(head) - seen) * found.probs[:, -1:]

    def lift_first(self, probs: Tensor, is_joined: Tensor) -> Tensor:
        """Count a key after a space as the key itself, in rows whose answer a head begins with a space.

        Args:
            probs: shape (B, V), what `lift` returned.
            is_joined: shape (B,), bool, such rows that have emitted nothing yet.
        """
        spaced, bare = self._spaced_slots
        joined = probs.index_add(1, bare, probs.index_select(1, spaced)).index_fill_(1, spaced, 0.0)
        return torch.where(is_joined[:, None], joined, probs)

    def ids(self, head: int, slot: int) -> tuple[int, ...]:
        """Return a key in a head's own ids: its token for it, else the greedy longest cover of the bytes."""
        if self.is_identity:
            return (int(self._identity_ids[slot]),)
        tokens = self.heads[head].tokens
        key = self.keys[slot]
        token_id = tokens.id_of.get(key)
        return (token_id,) if token_id is not None else tokens.cover(key)

    def slots(self, head: int, ids: Iterable[int]) -> list[int]:
        """Return the slots of a head's ids, up to the first that has none: a control token, or a key left out."""
        slot_of = self._slot_of_id[head]
        found = (int(slot_of[i]) if i < len(slot_of) else -1 for i in ids)
        return list(takewhile(lambda slot: slot >= 0, found))

    @cached_property
    def slot_of_key(self) -> Mapping[bytes, int]:
        """Return the slot of every key."""
        return {key: slot for slot, key in enumerate(self.keys)}

    def all_ids(self, head: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return every key in a head's own ids, as `ids` does: how many each has, (V - 1,), and all of them in turn."""
        if self.is_identity:
            return np.ones(self.eos_slot, dtype=np.int64), self._identity_ids
        own = self.lifts[head].source.cpu().numpy()[:-1]
        is_own = self.has(head).cpu().numpy()[:-1]
        counts = np.ones(self.eos_slot, dtype=np.int64)
        covers = {int(slot): self.ids(head, int(slot)) for slot in np.nonzero(~is_own)[0]}
        for slot, cover in covers.items():
            counts[slot] = len(cover)
        ids = np.empty(int(counts.sum()), dtype=np.int64)
        firsts = counts.cumsum() - counts
        ids[firsts[is_own]] = own[is_own]
        for slot, cover in covers.items():
            ids[firsts[slot] : firsts[slot] + len(cover)] = cover
        return counts, ids

    def has(self, head: int) -> Tensor:
        """Return which slots a head owns as single tokens: shape (V,), bool."""
        owned = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        owned[self.lifts[head].primary_slots] = True
        owned[self.eos_slot] = True
        return owned

    def first_slots(self, head: int) -> Tensor:
        """Return for each slot the slot of the first token that a head writes it with: shape (V,), int64.

        Source: UniTE (arXiv 2410.12777), which gives a key that a head lacks the probability of its first token.
        """
        if head not in self._first_slots:
            own = self.has(head).cpu().numpy()
            slots = np.arange(self.size)
            slot_of = self._slot_of_id[head]
            for slot in np.nonzero(~own)[0]:
                first = slot_of[self.heads[head].tokens.cover(self.keys[slot])[0]]
                slots[slot] = first if first >= 0 else slot  # a first token that is left out counts as nothing
            self._first_slots[head] = torch.from_numpy(slots).to(self.device)
        return self._first_slots[head]

    @cached_property
    def _spaced_slots(self) -> tuple[Tensor, Tensor]:
        """Return the slots of keys that begin with one space, and of the same keys without it."""
        slot_of = self.slot_of_key
        bare = {slot: slot_of.get(key[1:]) for key, slot in slot_of.items() if len(key) > 1 and key[:1] == b" "}
        pairs = [(slot, found) for slot, found in bare.items() if found is not None and self.keys[found][:1] != b" "]
        return self._tensor([spaced for spaced, _ in pairs]), self._tensor([bare for _, bare in pairs])

    @cached_property
    def _first_slots(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def _identity_ids(self) -> NDArray[np.int64]:
        return np.array(self.heads[0].text_ids(), dtype=np.int64)

    def _slots_of_columns(self, head: int) -> Tensor:
        """Return for each column that writes something its slot: shape (V_k,), 0 for the others."""
        if head not in self._column_slots:
            plan = self.lifts[head]
            slots = torch.zeros(len(plan.banned), dtype=torch.int64, device=self.device)
            for own, ids in ((plan.primary_slots, plan.source[plan.primary_slots]), *plan.extras):
                slots[ids] = own
            slots[plan.eos_ids] = self.eos_slot
            self._column_slots[head] = slots
        return self._column_slots[head]

    def _columns_of_slots(self, head: int) -> Tensor:
        """Return how many columns write each slot: shape (V,), float32."""
        if head not in self._slot_columns:
            written = self._slots_of_columns(head)[~self.lifts[head].banned]
            self._slot_columns[head] = written.bincount(minlength=self.size).float()
        return self._slot_columns[head]

    @cached_property
    def _column_slots(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def _slot_columns(self) -> dict[int, Tensor]:
        return {}

    def _make_lift(self, head: int) -> Lift:
        vocabulary, slot_of = self.heads[head], self._slot_of_id[head]
        ids = np.nonzero(slot_of >= 0)[0]
        is_preferred = np.zeros(max(len(vocabulary.tokens.pieces), len(slot_of)), dtype=bool)
        is_preferred[list(vocabulary.tokens.id_of.values())] = True
        ids = ids[np.lexsort((ids, ~is_preferred[ids]))]
        slots, turns = slot_of[ids], _turns(slot_of[ids])
        rounds = [(slots[turns == turn], ids[turns == turn]) for turn in range(int(turns.max(initial=0)) + 1)]
        ends = sorted(i for i in vocabulary.eos_ids if i < vocabulary.num_columns)
        banned = np.ones(vocabulary.num_columns, dtype=bool)
        banned[ids] = False
        banned[ends] = False
        has_zero = bool(banned.any())
        source = np.full(self.size, int(banned.argmax()) if has_zero else vocabulary.num_columns, dtype=np.int64)
        source[rounds[0][0]] = rounds[0][1]
        extras = tuple((self._tensor(slots), self._tensor(own)) for slots, own in rounds[1:])
        return Lift(
            banned=self._tensor(banned),
            banned_ids=self._tensor(np.nonzero(banned)[0]),
            source=self._tensor(source),
            has_zero=has_zero,
            primary_slots=self._tensor(rounds[0][0]),
            extras=extras,
            eos_ids=self._tensor(ends),
        )

    def _tensor(self, values: Sequence[int] | NDArray[Any]) -> Tensor:
        if isinstance(values, np.ndarray):
            return torch.from_numpy(values).to(self.device)
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _turns(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each entry occurred before. Example: 5 7 5 5 7 -> 0 0 1 2 1."""
    order = np.argsort(slots, kind="stable")
    places = np.arange(len(slots))
    begins = np.diff(slots[order], prepend=-1) != 0
    turns = np.empty_like(slots)
    turns[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return turns


def _are_equal(heads: Sequence[HeadVocabulary]) -> bool:
    first = heads[0]
    return all(
        head.tokens.fingerprint == first.tokens.fingerprint
        and head.eos_ids == first.eos_ids
        and head.num_columns == first.num_columns
        for head in heads
    )


def _identity(heads: Sequence[HeadVocabulary]) -> tuple[Keys, list[NDArray[np.int64]]]:
    ids = heads[0].text_ids()
    slot_of = np.full(heads[0].num_columns, -1, dtype=np.int64)
    slot_of[ids] = np.arange(len(ids))
    pieces = heads[0].tokens.pieces
    return tuple(pieces[i] or b"" for i in ids), [slot_of] * len(heads)


def _union(heads: Sequence[HeadVocabulary]) -> tuple[Keys, list[NDArray[np.int64]]]:
    is_kept = sum(head.num_columns for head in heads) >= _CACHE_FROM
    is_kept = is_kept and not any(head.tokens.missing_bytes for head in heads)  # what is left out is told every time
    path = unions.path_of(heads)
    stored = unions.read(path, len(heads)) if is_kept else None
    if stored is not None:
        return stored
    keys = _writable(sorted({head.tokens.pieces[i] or b"" for head in heads for i in head.text_ids()}), heads)
    slot_of_key = {key: slot for slot, key in enumerate(keys)}
    slots = [_slots(head, slot_of_key) for head in heads]
    for index, slot_of in enumerate(slots):
        if not (slot_of >= 0).any():
            raise LoadError(f"head {index + 1} of the group can write none of the others' tokens")
    if is_kept:
        unions.write(path, keys, slots)
    return keys, slots


def _slots(head: HeadVocabulary, slot_of_key: dict[bytes, int]) -> NDArray[np.int64]:
    slot_of = np.full(head.num_columns, -1, dtype=np.int64)
    for token_id in head.text_ids():
        slot_of[token_id] = slot_of_key.get(head.tokens.pieces[token_id] or b"", -1)
    return slot_of


def _writable(keys: list[bytes], heads: Sequence[HeadVocabulary]) -> Keys:
    """Leave out the keys that some head cannot write."""
    kept = keys
    for index, head in enumerate(heads):
        if not head.tokens.missing_bytes:
            continue
        before, lost = len(kept), {key for key in kept if head.tokens.try_cover(key) is None}
        kept = [key for key in kept if key not in lost]
        if any(NEVER_VALID.isdisjoint(key) for key in lost):  # the others stand in no text: nobody misses them
            warnings.warn(
                f"head {index + 1} of the group has no byte fallback: {len(lost)} of {before} shared tokens"
                " that it cannot write are left out",
                SharedVocabularyWarning,
                stacklevel=4,
            )
    return tuple(kept)
