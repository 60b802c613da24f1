"""Contexts: how each head continues from the emitted bytes in its own ids.

Native contexts append a head's own token for the key, or the greedy cover of its bytes. Canonical contexts tokenize
the tail of the text again after each key, so that the head reads what it would have written; ids that changed are
rolled back. In both, the bytes of a head's ids are the text, at every step, and prompt ids never change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from typing import Literal, NamedTuple, Protocol

from flowinfer.fusion.encoder import Encoder, Encoding
from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.utf8 import trim
from flowinfer.fusion.vocab import TokenBytes

_WINDOW = 16
"""Least number of ids of the text so far that are tokenized again."""
_OVERLAP = 4
"""Ids at the window's start that must come out unchanged."""
_ANCHORS = ("\n", ".", "a")
"""Texts that may stand before a tail, so that a tokenizer's dummy prefix falls on them."""


class Advance(NamedTuple):
    """How a row's cached ids change: first drop `rollback` ids from the end, then append `ids`."""

    rollback: int
    ids: tuple[int, ...]


class Context(Protocol):
    """One head's view of one row's emitted text."""

    ids: list[int]
    """The head's ids after its prompt."""

    def append(self, key: bytes, native: Sequence[int]) -> Advance:
        """Add an emitted key, given as bytes and in the head's native ids."""

    def fork(self) -> Context:
        """Return a copy that goes its own way, to try a draft."""


class NativeContext:
    """Append native ids, never look back.

    Args:
        joined: token bytes of a head whose first id carries a space (see `new_context`), else None.
    """

    __slots__ = ("_joined", "ids")

    def __init__(self, joined: TokenBytes | None = None) -> None:
        self._joined = joined
        self.ids: list[int] = []

    def append(self, key: bytes, native: Sequence[int]) -> Advance:
        """Append the key's native ids."""
        if self._joined and not self.ids:
            native = _spaced(self._joined, key, native)
        self.ids.extend(native)
        return Advance(0, tuple(native))

    def fork(self) -> NativeContext:
        """Return a copy with ids of its own."""
        forked = copy(self)
        forked.ids = self.ids.copy()
        return forked


class CanonicalContext:
    """Keep the ids that the head's own tokenizer gives for the text.

    The ids are a function of the text alone, however it was cut into keys (while it is valid UTF-8): the tokenizer's
    own ids where they write the text, the greedy cover of the bytes where it would write others (a normalizer) or a
    control token. A character that is not complete yet is covered too.

    Args:
        tokenizer: what reads texts for the head.
        tokens: its bytes.
        is_joined: whether the ids begin with a space that is not in the text (see `new_context`).
    """

    __slots__ = ("_anchor", "_anchor_ids", "_is_joined", "_tokenizer", "_tokens", "ids", "text")

    def __init__(self, tokenizer: Encoder, tokens: TokenBytes, *, is_joined: bool = False) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._is_joined = is_joined
        self._anchor = self._find_anchor() if tokens.has_dummy_prefix else ""
        self._anchor_ids = list(self._encode(self._anchor).ids) if self._anchor else []
        self.ids: list[int] = []
        self.text = b""

    def append(self, key: bytes, native: Sequence[int]) -> Advance:
        """Append a key and tokenize the tail again; fall back to native ids where that is impossible."""
        if self._is_joined and not self.ids:
            native = _spaced(self._tokens, key, native)
        before = self.ids
        self.text += key
        self.ids = self._retokenized(before, native)
        kept = common_prefix(before, self.ids)
        return Advance(len(before) - kept, tuple(self.ids[kept:]))

    def fork(self) -> CanonicalContext:
        """Return a copy; ids and text are never changed in place."""
        return copy(self)

    def _retokenized(self, before: list[int], native: Sequence[int]) -> list[int]:
        """Return the ids of the text, from a window that reaches back into what was there before the key."""
        ids, window = [*before, *native], _WINDOW
        while True:
            start = self._character_start(before, len(before) - window)
            fresh = self._encode_tail(ids[start:])
            if fresh is not None and (start == 0 or fresh[:_OVERLAP] == before[start : start + _OVERLAP]):
                return before[:start] + fresh
            if start == 0:
                return ids
            window *= 2

    def _character_start(self, ids: Sequence[int], start: int) -> int:
        """Return the last place at or before `start` where an id begins with a whole character."""
        while start > 0 and 0x80 <= (self._tokens.pieces[ids[start]] or b"\0")[0] < 0xC0:
            start -= 1
        return max(0, start)

    def _encode_tail(self, ids: Sequence[int]) -> list[int] | None:
        """Tokenize the bytes of ids again, or return None where that is impossible."""
        data = b"".join(self._tokens.pieces[i] or b"" for i in ids)
        whole = trim(data)
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            return None
        fresh, rest = self.spelled(text), self._tokens.try_cover(data[len(whole) :])
        return None if fresh is None or rest is None else [*fresh, *rest]

    def spelled(self, text: str) -> Sequence[int] | None:
        """Return the head's own ids for a text, or None where they would not write it."""
        specials = self._tokens.writable_specials
        if not any(name in text for name in specials):
            return self._spelled_part(text)
        parts = re.split(f"({'|'.join(map(re.escape, sorted(specials, key=len, reverse=True)))})", text)
        spelled: list[int] = []
        for part in filter(None, parts):
            own = [specials[part]] if part in specials else self._spelled_part(part)
            if own is None:
                return None
            spelled += own
        return spelled

    def _spelled_part(self, text: str) -> Sequence[int] | None:
        encoding, skipped = self._encode(self._anchor + text), len(self._anchor_ids)
        if encoding.ids[:skipped] != self._anchor_ids:
            return None
        fresh: Sequence[int] = encoding.ids[skipped:]
        if self._written(fresh) == text.encode():
            return fresh
        return self._mended(text, fresh, [end - len(self._anchor) for _, end in encoding.offsets[skipped:]])

    def _mended(self, text: str, ids: Sequence[int], ends: Sequence[int]) -> list[int] | None:
        """Replace the ids that do not write their part of the text by the cover of that part.

        Args:
            text: what was tokenized.
            ids: what came out.
            ends: for each id, where in the text its part ends; ids of one character end together.
        """
        mended: list[int] = []
        first = done = 0
        for index, end in enumerate(ends):
            if index + 1 < len(ids) and (ends[index + 1] <= end or end <= done):
                continue  # the next id belongs to the same part
            part = text[done:end].encode()
            own = ids[first : index + 1]
            kept = own if self._written(own) == part else self._tokens.try_cover(part)
            if kept is None:
                return None
            mended += kept
            first, done = index + 1, max(end, done)
        rest = self._tokens.try_cover(text[done:].encode())
        return None if rest is None else [*mended, *rest]

    def _written(self, ids: Sequence[int]) -> bytes | None:
        """Return the bytes of ids, or None where one is no text."""
        pieces = [self._tokens.pieces[i] if i < len(self._tokens.pieces) else None for i in ids]
        return None if None in pieces else b"".join(piece or b"" for piece in pieces)

    def _find_anchor(self) -> str:
        for anchor in _ANCHORS:
            written = self._written(self._encode(anchor).ids)
            if written is not None and written.removeprefix(b" ") == anchor.encode():
                return anchor
        return ""

    def _encode(self, text: str) -> Encoding:
        with ordinary_text(self._tokenizer):
            return self._tokenizer.encode(text, add_special_tokens=False)


def new_context(
    kind: Literal["native", "canonical"],
    tokenizer: Encoder | None,
    tokens: TokenBytes,
    *,
    lstrip_first: bool = False,
) -> Context:
    """Return an empty context of a head for one row.

    Args:
        kind: native or canonical.
        tokenizer: what reads texts for the head; without one the context is native.
        tokens: the head's token bytes.
        lstrip_first: whether the head begins its answer with a space that is not in the text: its ids then write one
            space more than was emitted (see `SharedVocabulary.lift_first`), where it has such ids.
    """
    if kind == "native" or tokenizer is None:
        return NativeContext(tokens if lstrip_first else None)
    return CanonicalContext(tokenizer, tokens, is_joined=lstrip_first)


def _spaced(tokens: TokenBytes, key: bytes, native: Sequence[int]) -> Sequence[int]:
    """Return a key's ids with a space before it, as a head would have written them.

    A head without a dummy prefix writes so what is one token of its own; other keys (digits, Chinese) it begins alone.
    """
    if tokens.has_dummy_prefix:
        return tokens.try_cover(b" " + key) or native
    own = tokens.id_of.get(b" " + key)
    return native if own is None else (own,)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many ids two texts begin with alike."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
