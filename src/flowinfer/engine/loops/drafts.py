"""Drafts: guesses of the next keys, which the heads then verify together. A wrong guess costs time, never the text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from flowinfer.engine.loops.rows import LiveRow
from flowinfer.fusion.shared import SharedVocabulary

_LONGEST_MATCH = 64
"""Bytes of the text's end that are looked for; more would not tell two places apart."""
_LEAST_UPSTREAM = 3
_LEAST_NGRAM = 6
"""Bytes that must match: an earlier stage's text is likely to be repeated, a prompt is not."""


class Drafter(Protocol):
    """Proposes the next keys of rows."""

    def propose(self, rows: Sequence[LiveRow], limits: Sequence[int]) -> list[list[int]]:
        """Return for each row at most so many slots of the shared vocabulary; none where it has no guess."""

    def forget(self, rows: Sequence[LiveRow]) -> None:
        """Let go of rows that have ended."""


class Script:
    """A text that a row may repeat, cut into slots.

    Args:
        pieces: what it consists of.
        keys: of the shared vocabulary.
    """

    def __init__(self, slots: Iterable[int], keys: Sequence[bytes]) -> None:
        self._keys = keys
        self.text = bytearray()
        self.slots: list[int] = []
        self._starts: list[int] = []
        self.extend(slots)

    def extend(self, slots: Iterable[int]) -> None:
        """Append to it."""
        for slot in slots:
            self._starts.append(len(self.text))
            self.text += self._keys[slot]
            self.slots.append(slot)

    def after(self, place: int, limit: int, cover: Callable[[bytes], list[int]]) -> list[int]:
        """Return the slots that follow a place; where it lies inside a key, that key's rest is covered first.

        Args:
            place: index of a byte.
            limit: most slots.
            cover: cuts bytes into slots.
        """
        index = bisect_left(self._starts, place)
        end = self._starts[index] if index < len(self._starts) else len(self.text)
        rest = cover(bytes(self.text[place:end])) if end > place else []
        return [*rest, *self.slots[index : index + limit]][:limit]


def longest_suffix(
    text: bytes, script: bytes | bytearray, *, least: int, near: int = 0, most: int | None = None
) -> int:
    """Return where a script goes on after the longest end of a text that it holds; -1 where that is shorter than least.

    Args:
        text: what was emitted.
        script: what may be repeated.
        near: among equals, the first place from here on is taken.
        most: bytes of the script that may be matched.
    Example: text=b"so the cat", script=b"the cat sat" -> 7.
    """
    last = len(script) if most is None else most
    low, high, found = least - 1, min(len(text), _LONGEST_MATCH), -1
    while low < high:  # an end that is found has ends that are found too
        length = (low + high + 1) // 2
        end = text[len(text) - length :]
        place = script.find(end, max(0, near - length), last)
        place = place if place >= 0 else script.find(end, 0, last)
        if place < 0:
            high = length - 1
        else:
            low, found = length, place + length
    return found


class TextDrafter:
    """Proposes what followed the same words before: in an earlier stage's text, in the prompt, in the row's own text.

    Args:
        vocabulary: of the group.
        spell: a text as slots, as the head `k` would tokenize it.
        shares: weight of each head.
        upstream: whether to look into earlier stages' texts.
        ngram: whether to look into the prompt and the row's own text.
    """

    def __init__(
        self,
        vocabulary: SharedVocabulary,
        spell: Callable[[int, str], list[int]],
        shares: Sequence[float],
        *,
        upstream: bool,
        ngram: bool,
    ) -> None:
        self._vocabulary, self._spell, self._shares = vocabulary, spell, shares
        self._upstream, self._ngram = upstream, ngram
        self._open: dict[int, _Reader] = {}

    def propose(self, rows: Sequence[LiveRow], limits: Sequence[int]) -> list[list[int]]:
        """Return what followed the longest match of each row's end."""
        return [self._one(row, limit) if limit > 0 else [] for row, limit in zip(rows, limits, strict=True)]

    def forget(self, rows: Sequence[LiveRow]) -> None:
        """Drop the scripts of rows."""
        for row in rows:
            self._open.pop(id(row), None)

    def _one(self, row: LiveRow, limit: int) -> list[int]:
        reader = self._open.get(id(row))
        if reader is None:
            reader = self._open[id(row)] = _Reader(row, self._vocabulary, self._spell, self._shares)
        text = bytes(row.text)
        found = reader.upstream(text, limit) if self._upstream else []
        return found or (reader.ngram(text, limit) if self._ngram else [])


class _Reader:
    """The scripts of one row, each cut as each head would when that head first leads."""

    def __init__(
        self,
        row: LiveRow,
        vocabulary: SharedVocabulary,
        spell: Callable[[int, str], list[int]],
        shares: Sequence[float],
    ) -> None:
        self._row, self._vocabulary, self._spell, self._shares = row, vocabulary, spell, shares
        self._cut: dict[tuple[int, str], Script] = {}
        self._own = Script((), vocabulary.keys)
        self._at: dict[str, int] = {}

    def upstream(self, text: bytes, limit: int) -> list[int]:
        """Return what follows in the first earlier text that holds the end of this one."""
        for source in self._row.row.sources:
            raw = source.encode()
            least = min(_LEAST_UPSTREAM, len(text)) if raw.startswith(text) else _LEAST_UPSTREAM
            place = longest_suffix(text, raw, least=least, near=self._at.get(source, 0)) if text else 0
            if place >= 0:
                self._at[source] = place
                return self._script(source).after(place, limit, self._cover)
        return []

    def ngram(self, text: bytes, limit: int) -> list[int]:
        """Return what followed the end of this text before, in the text itself or in the prompt."""
        self._own.extend(self._row.slots[len(self._own.slots) :])
        if not text:
            return []
        place = longest_suffix(text, self._own.text, least=_LEAST_NGRAM, most=len(self._own.text) - 1)
        if place >= 0:
            return self._own.after(place, limit, self._cover)
        for prompt in dict.fromkeys(self._row.row.prompts.values()):
            place = longest_suffix(text, prompt.encode(), least=_LEAST_NGRAM)
            if place >= 0:
                return self._script(prompt).after(place, limit, self._cover)
        return []

    @property
    def _leader(self) -> int:
        """Return the head whose tokens are emitted most: by its weight at first, later by what it wanted too."""
        return max(
            range(len(self._shares)), key=lambda k: (self._row.heads[k].agreed * self._shares[k], self._shares[k])
        )

    def _script(self, text: str) -> Script:
        leader = self._leader
        if (leader, text) not in self._cut:
            self._cut[leader, text] = Script(self._spell(leader, text), self._vocabulary.keys)
        return self._cut[leader, text]

    def _cover(self, data: bytes) -> list[int]:
        leader = self._leader
        ids = self._vocabulary.heads[leader].tokens.try_cover(data)
        return self._vocabulary.slots(leader, ids or ())
