"""The vocabulary in a GGUF file: what each id writes, and texts read as llama.cpp reads them."""

from __future__ import annotations

import ctypes
import re
import secrets
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from flowinfer.backends.gguf.library import library
from flowinfer.errors import LoadError
from flowinfer.fusion.selfcheck import PROBES
from flowinfer.fusion.vocab import BYTE_PIECE, TokenBytes, byte_alphabet, is_mark

_MOST_BYTES = 1 << 16
"""Of one piece."""
_UNKNOWN, _NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 4, 8, 16, 32
"""Attributes of tokens, as llama.cpp numbers them."""
_WRITTEN = _NORMAL | _BYTE
_MOST_OUTSIDE = 0.02
"""Share of ids whose texts may be outside the alphabet."""
_ALPHABET = byte_alphabet()
_CURE = "convert the model again with a newer llama.cpp, or use its safetensors"


@dataclass(frozen=True)
class Encoding:
    """A text's ids, as `tokenizers` gives them."""

    ids: list[int]
    special_tokens_mask: list[int]
    """1 where an id stands around the text and not for it."""
    offsets: list[tuple[int, int]]
    """For each id where its part of the text begins and ends, in characters."""


class GgufTokenizer:
    """A vocabulary of llama.cpp's with what is asked of a `tokenizers` object.

    Args:
        vocabulary: llama.cpp's own.
        tokens: the bytes of its ids.
    """

    encode_special_tokens = False
    """Whether text that looks like a control token is ordinary text."""

    def __init__(self, vocabulary: Any, tokens: TokenBytes) -> None:  # a pointer
        self._lib = library()
        self._vocabulary = vocabulary
        self.tokens = tokens
        lib = self._lib
        self._before = [lib.llama_vocab_bos(vocabulary)] if lib.llama_vocab_get_add_bos(vocabulary) else []
        self._behind = [lib.llama_vocab_eos(vocabulary)] if lib.llama_vocab_get_add_eos(vocabulary) else []

    @property
    def begin_id(self) -> int | None:
        """Return the id that llama.cpp puts before every prompt, if it does."""
        return self._before[0] if self._before else None

    def finds(self, name: str) -> bool:
        """Return whether llama.cpp finds a token in every text, also where control tokens are not looked for."""
        token_id = {**self.tokens.specials, **self.tokens.marks}[name]
        return bool(self._lib.llama_vocab_get_attr(self._vocabulary, token_id) & _USER_DEFINED)

    def get_added_tokens_decoder(self) -> Mapping[int, str]:
        """Return the tokens that are found in a text before it is cut: control tokens, and marks."""
        return {i: name for name, i in {**self.tokens.specials, **self.tokens.marks}.items()}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Return the ids of a text, with what llama.cpp puts around it if that is asked for."""
        ids = self.ids(text, is_parsed=not self.encode_special_tokens)
        before, behind = (self._before, self._behind) if add_special_tokens else ([], [])
        mask = [*(1 for _ in before), *(0 for _ in ids), *(1 for _ in behind)]
        offsets = [*((0, 0) for _ in before), *self._offsets(text, ids), *((len(text), len(text)) for _ in behind)]
        return Encoding([*before, *ids, *behind], mask, offsets)

    def ids(self, text: str, *, is_parsed: bool) -> list[int]:
        """Return the ids of a text alone.

        Args:
            text: any.
            is_parsed: whether control tokens are found in it.
        """
        data = text.encode()
        room = len(data) + 8
        while True:
            found = (ctypes.c_int32 * room)()
            count = self._lib.llama_tokenize(self._vocabulary, data, len(data), found, room, False, is_parsed)
            if count >= 0:
                return found[:count]
            room = -count

    def _offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return where ids begin and end where they write the text; else all stand for the whole of it."""
        pieces = [self.tokens.pieces[i] or b"" for i in ids]
        data = text.encode()
        skipped = 1 if b"".join(pieces) == b" " + data else 0
        if not skipped and b"".join(pieces) != data:
            return [(0, len(text)) for _ in ids]
        starts = [0, *accumulate(byte < 0x80 or byte >= 0xC0 for byte in data)]  # characters begun before each byte
        ends = [max(0, end - skipped) for end in accumulate(map(len, pieces))]
        return [(starts[begin], starts[end]) for begin, end in zip([0, *ends], ends, strict=False)]


class Apart:
    """Reads texts in which only the marks that were written by secret names are marks; see `fusion.disguise`.

    Args:
        tokenizer: the vocabulary.
        marks: its control tokens and marks.
    """

    def __init__(self, tokenizer: GgufTokenizer, marks: Mapping[str, int]) -> None:
        nonce = secrets.token_hex(8)
        self.names = {mark: f"\ue000{nonce}.{index}\ue001" for index, mark in enumerate(marks)}
        self.tokenizer = self
        self._own = tokenizer
        self._id_of = {self.names[mark]: i for mark, i in marks.items()}
        self._secret = re.compile(f"(\ue000{nonce}\\.[0-9]+\ue001)")
        typed = sorted(filter(tokenizer.finds, marks), key=len, reverse=True)
        self._typed = re.compile("|".join(map(re.escape, typed))) if typed else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Return the ids of a text; see the class."""
        ids = [] if not add_special_tokens or self._own.begin_id is None else [self._own.begin_id]
        for part in filter(None, self._secret.split(text)):
            ids += [self._id_of[part]] if part in self._id_of else self._plain(part)
        return Encoding(ids, [0] * len(ids), [(0, len(text))] * len(ids))

    def _plain(self, text: str) -> Iterator[int]:
        """Yield the ids of ordinary text: llama.cpp would find marks in it, so these are covered by other tokens."""
        at = 0
        for found in self._typed.finditer(text) if self._typed else ():
            yield from self._part(text[at : found.start()], is_first=at == 0)
            yield from self._unmarked.cover(found[0].encode())
            at = found.end()
        yield from self._part(text[at:], is_first=at == 0)

    def _part(self, text: str, *, is_first: bool) -> Sequence[int]:
        if not is_first and self._own.tokens.has_dummy_prefix:  # llama.cpp would put a space before it
            return self._unmarked.cover(text.encode())
        return self._own.ids(text, is_parsed=False) if text else ()

    @cached_property
    def _unmarked(self) -> TokenBytes:
        tokens = self._own.tokens
        marks = frozenset(self._id_of.values())
        return replace(tokens, pieces=tuple(None if i in marks else one for i, one in enumerate(tokens.pieces)))


def read_tokens(vocabulary: Any, controls: Container[int] = ()) -> TokenBytes:  # a pointer
    """Read what every id writes, and check it.

    Args:
        vocabulary: llama.cpp's own.
        controls: ids that the file calls control tokens; llama.cpp may take some for text (those of gpt-oss).
    Raises:
        LoadError: the file has no vocabulary, one that loses text, or one that llama.cpp reads otherwise than it says.
    """
    lib = library()
    kind = lib.llama_vocab_type(vocabulary)
    if kind == lib.LLAMA_VOCAB_TYPE_NONE:
        raise LoadError("the file has no tokenizer", help=_CURE)
    if kind == lib.LLAMA_VOCAB_TYPE_WPM:
        raise LoadError(
            "WordPiece tokenizers lose spaces and case, so their bytes are not known",
            help="use a model with a byte-level or SentencePiece vocabulary",
        )
    entries = list(_entries(vocabulary))
    unreachable: Container[int] = ()
    if kind == lib.LLAMA_VOCAB_TYPE_BPE:
        unreachable = _unreachable(entries, (_byte_level, _marked))
    elif kind in (lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_UGM):
        unreachable = _unreachable(entries, (_marked,))
    specials = {one.text: i for i, one in enumerate(entries) if one.attributes & (_CONTROL | _UNKNOWN) or i in controls}
    silent = {*specials.values()}
    marks = {
        one.text: i
        for i, one in enumerate(entries)
        if one.attributes & _USER_DEFINED and i not in silent and is_mark(one.text)
    }
    tokens = TokenBytes(
        tuple(None if i in silent or i in unreachable else one.piece or None for i, one in enumerate(entries)),
        specials,
        byte_pieces=frozenset(i for i, one in enumerate(entries) if one.attributes & _BYTE),
        marks=marks,
    )
    return _probed(vocabulary, tokens)


class _Entry(NamedTuple):
    text: str
    """As it stands in the file."""
    attributes: int
    piece: bytes
    """As llama.cpp writes it."""


def _entries(vocabulary: Any) -> Iterator[_Entry]:
    lib = library()
    buffer = ctypes.create_string_buffer(_MOST_BYTES)
    for i in range(lib.llama_vocab_n_tokens(vocabulary)):
        size = lib.llama_token_to_piece(vocabulary, i, buffer, _MOST_BYTES, 0, True)
        text = lib.llama_vocab_get_text(vocabulary, i).decode(errors="replace")
        yield _Entry(text, lib.llama_vocab_get_attr(vocabulary, i), ctypes.string_at(buffer, max(size, 0)))


def _unreachable(entries: Sequence[_Entry], alphabets: Sequence[Callable[[str], bytes | None]]) -> set[int]:
    """Return ids whose texts are outside the vocabulary's alphabet, so that no text becomes them (emoji of Command-R).

    Args:
        entries: all ids.
        alphabets: what reads a text; that of the vocabulary is the one that can read most.
    Raises:
        LoadError: llama.cpp writes other bytes than a text says, or most are outside; with the first ids of that kind.
    """
    plain = [i for i, one in enumerate(entries) if one.attributes & _WRITTEN]
    said = min(
        ([_said(entries[i], alphabet) for i in plain] for alphabet in alphabets),
        key=lambda found: sum(own != entries[i].piece for i, own in zip(plain, found, strict=True)),
    )
    outside = {i for i, own in zip(plain, said, strict=True) if own is None}
    wrong = [i for i, own in zip(plain, said, strict=True) if own not in (None, entries[i].piece)]
    if len(outside) > _MOST_OUTSIDE * len(plain):
        wrong = sorted([*wrong, *outside])
    if wrong:
        shown = ", ".join(f"{i} ({entries[i].text!r} writes {entries[i].piece!r})" for i in wrong[:5])
        raise LoadError(f"{len(wrong)} tokens write other bytes than they say: {shown}", help=_CURE)
    return outside


def _said(entry: _Entry, alphabet: Callable[[str], bytes | None]) -> bytes | None:
    """Return what an entry's text says that it writes, None where it is outside the alphabet."""
    if entry.attributes & _BYTE:
        byte = BYTE_PIECE.fullmatch(entry.text)
        return bytes([int(byte[1], 16)]) if byte else None
    return alphabet(entry.text)


def _byte_level(text: str) -> bytes | None:
    values = [_ALPHABET.get(character) for character in text]
    return None if None in values else bytes(value for value in values if value is not None)


def _marked(text: str) -> bytes:
    return text.replace("\u2581", " ").encode()


def _probed(vocabulary: Any, tokens: TokenBytes) -> TokenBytes:
    """Return token bytes after texts have been read and written again.

    Raises:
        LoadError: llama.cpp loses a text in a way that is not known.
    """
    read = GgufTokenizer(vocabulary, tokens).ids
    loses = library().llama_vocab_type(vocabulary) == library().LLAMA_VOCAB_TYPE_UGM
    first = [tokens.pieces[i] for i in read("a", is_parsed=False)]
    tokens = replace(tokens, has_dummy_prefix=(first[0] if first else b"") in (b" ", b" a"))
    lost = 0
    for probe in PROBES:
        pieces = [tokens.pieces[i] for i in read(probe, is_parsed=False)]
        if None in pieces:
            continue  # characters outside a character vocabulary
        written = b"".join(piece or b"" for piece in pieces)
        wanted = {probe.encode(), probe.replace("\u2581", " ").encode()}
        if written in wanted or written.removeprefix(b" ") in wanted:
            continue
        lost += 1
        if not loses:
            raise LoadError(f"reading {probe!r} gives ids whose bytes are {written!r}", help=_CURE)
    return replace(tokens, losses=("characters are replaced by a table of SentencePiece",)) if lost else tokens
