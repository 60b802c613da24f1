"""Contexts: how each head continues from the emitted bytes in its own ids.

Native contexts append a head's own token for the key, or the greedy cover of its bytes. Canonical contexts tokenize
the tail of the text again after each key, so that the head reads what it would have written; ids that changed are
rolled back. In both, the bytes of a head's ids are the text, at every step, and prompt ids never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.utf8 import trim
from flowinfer.fusion.vocab import TokenBytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WINDOW = 16
"""Least number of ids that are tokenized again."""
_OVERLAP = 4
"""Ids at the window's start that must come out unchanged."""


@dataclass(frozen=True)
class Advance:
    """How a row's cached ids change: first drop `rollback` ids from the end, then append `ids`."""

    rollback: int
    ids: tuple[int, ...]


class Context(Protocol):
    """One head's view of one row's emitted text."""

    def append(self, key: bytes, native: Sequence[int]) -> Advance:
        """Add an emitted key, given as bytes and in the head's native ids."""


class NativeContext:
    """Append native ids, never look back."""

    __slots__ = ("ids",)

    def __init__(self) -> None:
        self.ids: list[int] = []

    def append(self, key: bytes, native: Sequence[int]) -> Advance:
        """Append the key's native ids."""
        self.ids.extend(native)
        return Advance(0, tuple(native))


class CanonicalContext:
    """Keep the ids that the head's own tokenizer gives for the text.

    Args:
        tokenizer: the head's `tokenizers` object.
        tokens: its bytes.
    """

    __slots__ = ("_anchor", "_tokenizer", "_tokens", "ids", "text")

    def __init__(self, tokenizer: Tokenizer, tokens: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._anchor = self._encode_raw("\n") if tokens.has_dummy_prefix else []
        self.ids: list[int] = []
        self.text = b""

    def append(self, key: bytes, native: Sequence[int]) -> Advance:
        """Append a key and tokenize the tail again; fall back to native ids where that would change the bytes."""
        before = self.ids
        self.text += key
        self.ids = self._retokenized([*before, *native])
        kept = _common_prefix(before, self.ids)
        return Advance(len(before) - kept, tuple(self.ids[kept:]))

    def _retokenized(self, ids: list[int]) -> list[int]:
        window = _WINDOW
        while True:
            start = max(0, len(ids) - window)
            fresh = self._encode_tail(ids[start:])
            if fresh is not None and (start == 0 or fresh[:_OVERLAP] == ids[start : start + _OVERLAP]):
                return ids[:start] + fresh
            if start == 0:
                return ids
            window *= 2

    def _encode_tail(self, ids: Sequence[int]) -> list[int] | None:
        """Tokenize the bytes of ids again, or return None where the result would write other bytes."""
        data = b"".join(self._tokens.pieces[i] or b"" for i in ids)
        whole = trim(data)
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            return None
        encoded = self._encode_raw("\n" + text if self._anchor else text)
        if self._anchor:
            if encoded[: len(self._anchor)] != self._anchor:
                return None
            encoded = encoded[len(self._anchor) :]
        rest = data[len(whole) :]
        fresh = [*encoded, *(self._tokens.try_cover(rest) or ())]
        pieces = [self._tokens.pieces[i] if i < len(self._tokens.pieces) else None for i in fresh]
        if any(piece is None for piece in pieces) or b"".join(piece or b"" for piece in pieces) != data:
            return None
        return fresh

    def _encode_raw(self, text: str) -> list[int]:
        with ordinary_text(self._tokenizer):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def new_context(kind: Literal["native", "canonical"], tokenizer: Tokenizer | None, tokens: TokenBytes) -> Context:
    """Return an empty context of a head for one row."""
    if kind == "native" or tokenizer is None:
        return NativeContext()
    return CanonicalContext(tokenizer, tokens)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
