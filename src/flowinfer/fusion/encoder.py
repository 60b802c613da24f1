"""What contexts ask of a tokenizer: a `tokenizers` object, or another that reads texts as the model's own does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Encoding(Protocol):
    """A text as a tokenizer reads it."""

    @property
    def ids(self) -> Sequence[int]:
        """Return its ids."""

    @property
    def offsets(self) -> Sequence[tuple[int, int]]:
        """Return for each id where its part of the text begins and ends, in characters; several may share one."""


class Encoder(Protocol):
    """What reads a text."""

    encode_special_tokens: bool
    """Whether text that looks like a control token is read as ordinary text."""

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> Encoding:
        """Return a text's ids, with what stands around every prompt if that is asked for."""
