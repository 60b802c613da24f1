"""A head as a model of bytes: how likely each next byte of a text is, whatever tokens the head writes it in.

A text may be covered in several ways: after "So" a head may have written the token "So", or be in the middle of
"Sofia". The probability of a text is that of all its covers together: sequences of tokens that write it, of which the
last may reach past its end. That of a next byte is the share of the covers that go on with it, so tokens of any length
compete fairly, and heads of any two vocabularies share the 256 bytes and the end.

A cover counts while its whole tokens are canonical: each is what the head's own tokenizer makes of its bytes and those
of the token before it. So nearly always very few are alive. What a head says behind a cover is read once.
Source: ByteSampler (arXiv 2506.14123), whose tree of covers this is; it decides by merges what is canonical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowinfer.errors import LoadError
from flowinfer.fusion.advance import CanonicalContext
from flowinfer.fusion.utf8 import trim
from flowinfer.fusion.vocab import NEVER_VALID, HeadVocabulary, TokenBytes

if TYPE_CHECKING:
    from flowinfer.fusion.encoder import Encoder

END = 256
"""The symbol behind the 256 bytes: the end of the text."""
BYTES = HeadVocabulary(TokenBytes((*(bytes([value]) for value in range(256)), None)), frozenset((END,)), 257)
"""A head over bytes; its logits are logarithms of what `Covers.next_bytes` returns."""
_NEGLIGIBLE = 1e-12
"""Share of the probability of all covers below which one is forgotten."""


class ByteIndex:
    """A head's tokens in the order of their bytes, so that those that begin alike stand together.

    Args:
        vocabulary: of the head.
        tokenizer: which says what is canonical; without one every cover is.
        eos: how several end tokens are pooled.
        name: of the head, for messages.
    Raises:
        LoadError: the head cannot write every text.
    """

    def __init__(
        self, vocabulary: HeadVocabulary, tokenizer: Encoder | None, eos: Literal["sum", "max"], name: str
    ) -> None:
        self.tokens, self._eos = vocabulary.tokens, eos
        if not NEVER_VALID.issuperset(self.tokens.missing_bytes):
            raise LoadError(
                f"'{name}' cannot write every byte, which fuse=byte needs", help="use a model with byte fallback"
            )
        pieces = self.tokens.pieces
        ids = sorted(vocabulary.text_ids(), key=lambda i: (pieces[i] or b"", i))
        self.ids: NDArray[np.int64] = np.array(ids)
        """(V,), those of equal bytes ascending."""
        self.lengths: NDArray[np.int64] = np.array([len(pieces[i] or b"") for i in ids])
        self._starts = self.lengths.cumsum() - self.lengths
        self._blob = np.frombuffer(b"".join(pieces[i] or b"" for i in ids), dtype=np.uint8)
        self._firsts = self._blob[self._starts]
        ends = sorted(i for i in vocabulary.eos_ids if i < vocabulary.num_columns)
        self._columns = torch.tensor([*ids, *ends])
        self._speller = CanonicalContext(tokenizer, self.tokens) if tokenizer else None
        self._is_canonical: dict[tuple[int, ...], bool] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def probs(self, logits: Tensor) -> NDArray[np.float64]:
        """Return the probabilities of the tokens in order, and of the end: (N, V_k) -> (N, V + 1)."""
        wide = logits if logits.dtype is torch.float64 else logits.float()
        self._columns = self._columns.to(logits.device)
        own = wide.index_select(1, self._columns).softmax(-1).double().cpu()  # (N, V + E)
        texts, ends = own[:, : len(self)], own[:, len(self) :]
        if not ends.shape[1]:
            end = torch.zeros(len(own), dtype=torch.float64)
        else:
            end = ends.sum(-1) if self._eos == "sum" else ends.amax(-1)
        return torch.cat([texts, end[:, None]], dim=1).numpy()

    def bytes_at(self, first: int, last: int, depth: int) -> NDArray[np.uint8]:
        """Return the byte at a depth of tokens [first, last), all of them longer; ascending where they begin alike."""
        return self._blob[self._starts[first:last] + depth] if depth else self._firsts[first:last]

    def is_canonical(self, ids: Sequence[int], token: int) -> bool:
        """Return whether a token may stand behind others: they are what the tokenizer makes of their bytes.

        Asked is about the token and the one before it, and further back over tokens that begin or end inside a
        character. While their bytes are no whole characters nobody can be asked: then it may.
        """
        start = max(0, len(ids) - 1)
        while start > 0 and _cuts_characters(self.tokens.pieces[ids[start]] or b""):
            start -= 1
        window = (*ids[start:], token)
        if window not in self._is_canonical:
            self._is_canonical[window] = self._spells(window)
        return self._is_canonical[window]

    def spelled(self, text: bytes) -> Sequence[int]:
        """Return some ids that write a text: the tokenizer's own, else the greedy cover."""
        own = self._speller.spelled(text.decode()) if self._speller and _is_whole(text) else None
        return self.tokens.cover(text) if own is None else own

    def _spells(self, window: tuple[int, ...]) -> bool:
        data = b"".join(self.tokens.pieces[i] or b"" for i in window)
        if self._speller is None or not _is_whole(data):
            return True
        return tuple(self._speller.spelled(data.decode()) or ()) == window


@dataclass(eq=False)
class Cover:
    """One way to write a text: whole tokens, and one that has begun, of which only the first bytes are in the text."""

    ids: tuple[int, ...]
    """The whole tokens."""
    mass: float
    """Their probability, as a share of that of all covers."""
    first: int = 0
    last: int = 0
    """What the token that has begun can be: entries [first, last) of the index."""
    depth: int = 0
    """How many bytes of it are in the text; 0 = none has begun."""
    probs: NDArray[np.float64] | None = None
    """(last - first,), of these tokens behind the whole ones; None = the head has not been asked."""
    end: float = 0.0
    """Probability of the end behind the whole tokens."""

    @property
    def weight(self) -> float:
        """Return its probability with all that may follow."""
        return self.mass if self.probs is None or not self.depth else self.mass * float(self.probs.sum())


class Covers:
    """What one head thinks of one row's text.

    Args:
        index: the head's tokens.
        most: how many covers are followed, the most probable ones; 0 = all.
        is_joined: whether the head begins the answer with a space that is not in the text (see `engine.loops.spaces`):
            then its text has that space, and nothing else is possible.
    """

    def __init__(self, index: ByteIndex, most: int = 0, *, is_joined: bool = False) -> None:
        self._index, self._most, self._joins_next = index, most, is_joined
        self._text = bytearray()
        self._alive = [Cover((), 1.0)]

    @property
    def unread(self) -> list[Cover]:
        """Return the covers behind which the head is to be asked, before anything else."""
        return [cover for cover in self._alive if cover.probs is None]

    def read(self, cover: Cover, probs: NDArray[np.float64]) -> None:
        """Take what the head says behind a cover's whole tokens: (V + 1,), a row of `ByteIndex.probs`."""
        cover.first, cover.last, cover.probs, cover.end = 0, len(self._index), probs[:-1], float(probs[-1])
        if self._joins_next:
            self._joins_next = False
            self.append(0x20)

    def next_bytes(self) -> NDArray[np.float64]:
        """Return the probabilities of the next byte and of the end: (257,), summing to 1."""
        found: NDArray[np.float64] = np.zeros(END + 1)
        for cover in self._alive:
            assert cover.probs is not None, "every cover was read"
            values = self._index.bytes_at(cover.first, cover.last, cover.depth)
            found[:END] += cover.mass * np.bincount(values, weights=cover.probs, minlength=END)
            found[END] += cover.mass * cover.end
        found /= found.sum()
        return found

    def append(self, byte: int) -> None:
        """Take a byte into the text: covers that do not write it are forgotten, tokens that it completes are whole."""
        self._text.append(byte)
        alive = [further for cover in self._alive for further in self._extended(cover, byte)]
        total = sum(cover.weight for cover in alive)
        if not total > 0:  # nothing that the head would write: it goes on from some tokens that write it
            self._alive = [Cover(tuple(self._index.spelled(bytes(self._text))), 1.0)]
            return
        for cover in alive:
            cover.mass /= total
        alive = [cover for cover in alive if cover.weight > _NEGLIGIBLE]
        if self._most:
            alive = sorted(alive, key=lambda cover: -cover.weight)[: self._most]
        self._alive = alive

    def _extended(self, cover: Cover, byte: int) -> list[Cover]:
        """Return what a cover becomes with one byte more: one for each token that ends there, and the longer ones."""
        index, probs = self._index, cover.probs
        assert probs is not None, "every cover was read"
        values = index.bytes_at(cover.first, cover.last, cover.depth)
        low, high = (int(np.searchsorted(values, byte, side)) for side in ("left", "right"))
        first, last, depth = cover.first + low, cover.first + high, cover.depth + 1
        whole = int(np.count_nonzero(index.lengths[first:last] == depth))  # they stand first
        found = [
            Cover((*cover.ids, token), cover.mass * chance)
            for token, chance in zip(
                index.ids[first : first + whole].tolist(), probs[low : low + whole].tolist(), strict=True
            )
            if chance > 0 and index.is_canonical(cover.ids, token)
        ]
        rest = probs[low + whole : high]
        if rest.any():
            found.append(Cover(cover.ids, cover.mass, first + whole, last, depth, rest.copy()))
        return found


def _cuts_characters(piece: bytes) -> bool:
    """Return whether bytes begin or end inside a character."""
    return 0x80 <= piece[0] < 0xC0 or trim(piece) != piece


def _is_whole(data: bytes) -> bool:
    """Return whether bytes are whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
