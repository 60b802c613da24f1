"""Token bytes: what every id of a tokenizer writes, exactly, and verified at load.

Published ensembling code compares display strings, in which the same Chinese character differs between byte-level
and SentencePiece vocabularies. Bytes are what the tokens of any two vocabularies have in common.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from string import punctuation
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from flowinfer.errors import LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"

NEVER_VALID = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
"""Bytes that stand in no UTF-8 text."""


@dataclass(frozen=True)
class TokenBytes:
    """What each id of one tokenizer writes."""

    pieces: tuple[bytes | None, ...]
    """Id -> bytes; None = a control token or a hole, never text."""
    specials: Mapping[str, int] = field(default_factory=dict)
    """Control tokens by their written form."""
    has_dummy_prefix: bool = False
    """Whether encoding puts a space before the text (Llama-2, Mistral)."""
    byte_pieces: frozenset[int] = field(default=frozenset())
    """Ids that stand for one byte of a fallback alphabet, such as <0x0A>."""
    marks: Mapping[str, int] = field(default_factory=dict)
    """Added tokens that are text but stand for more than their characters, such as <think> and <tool_call>."""
    losses: tuple[str, ...] = ()
    """What the tokenizer changes in a text before it reads it, beyond canonical equivalence."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the id -> bytes map: equal maps can share one vocabulary."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(b"-" if piece is None else b"+%d:" % len(piece) + piece)
        return digest.hexdigest()

    @cached_property
    def id_of(self) -> Mapping[bytes, int]:
        """Bytes -> the id that writes them; a real piece goes before a fallback byte, then the smallest id."""
        ids: dict[bytes, int] = {}
        for token_id, piece in enumerate(self.pieces):
            if piece is not None and (piece not in ids or ids[piece] in self.byte_pieces):
                ids[piece] = token_id
        return ids

    @cached_property
    def missing_bytes(self) -> tuple[int, ...]:
        """Single bytes that no token writes alone (character vocabularies)."""
        return tuple(value for value in range(256) if bytes([value]) not in self.id_of)

    @cached_property
    def _longest_by_first(self) -> Mapping[int, int]:
        longest: dict[int, int] = {}
        for piece in self.id_of:
            longest[piece[0]] = max(longest.get(piece[0], 0), len(piece))
        return longest

    def try_cover(self, data: bytes) -> tuple[int, ...] | None:
        """Return the greedy longest-match ids that write `data`, or None where a byte cannot be written."""
        ids: list[int] = []
        at = 0
        while at < len(data):
            for length in range(min(self._longest_by_first.get(data[at], 0), len(data) - at), 0, -1):
                token_id = self.id_of.get(data[at : at + length])
                if token_id is not None:
                    ids.append(token_id)
                    at += length
                    break
            else:
                return None
        return tuple(ids)

    @cached_property
    def writable_specials(self) -> Mapping[str, int]:
        """Control tokens that the model's own chat template writes inside an answer, so that they are text."""
        return {name: i for name, i in self.specials.items() if i < len(self.pieces) and self.pieces[i] is not None}

    def writing(self, names: Iterable[str]) -> TokenBytes:
        """Return these tokens with some control tokens as what they are called: text that the model may write."""
        ids = {self.specials[name]: name.encode() for name in names}
        if not ids:
            return self
        return replace(self, pieces=tuple(ids.get(i, piece) for i, piece in enumerate(self.pieces)))

    def limited(self, num_columns: int) -> TokenBytes:
        """Return these tokens without the ids that a model of so many logit columns can neither write nor read."""
        if len(self.pieces) <= num_columns:
            return self
        return replace(self, pieces=self.pieces[:num_columns])

    def cover(self, data: bytes) -> tuple[int, ...]:
        """Return the greedy longest-match ids that write `data`.

        Raises:
            LoadError: the vocabulary cannot write one of the bytes.
        """
        ids = self.try_cover(data)
        if ids is None:
            raise LoadError(f"the vocabulary cannot write {data!r}", help="use a model with byte fallback")
        return ids


@dataclass(frozen=True)
class HeadVocabulary:
    """What fusion must know of one head."""

    tokens: TokenBytes
    eos_ids: frozenset[int]
    """Ids that end the answer."""
    num_columns: int
    """Width of the model's logits, which may exceed the tokenizer (padding) or fall short of it."""

    def text_ids(self) -> list[int]:
        """Return the ids that write text, ascending."""
        pieces = self.tokens.pieces[: self.num_columns]
        return [i for i, piece in enumerate(pieces) if piece is not None and i not in self.eos_ids]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Read the bytes of every id from a tokenizer and verify them.

    Raises:
        LoadError: a kind of tokenizer whose bytes are not known exactly, or a failed check.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise LoadError(
            f"tokenizer class {type(tokenizer).__name__} has no tokenizer.json, so its bytes are not known",
            help="convert it once: save_pretrained of the fast class of its kind writes a tokenizer.json",
        )
    backend.no_truncation()  # a tokenizer.json may declare both, which would change every text
    backend.no_padding()
    from flowinfer.fusion.selfcheck import verified, verify

    text = backend.to_str()
    cache_key = hashlib.sha256(text.encode()).hexdigest()
    found = verified(cache_key)
    if found is None:
        found = _read(json.loads(text))
        verify(backend, found, cache_key=cache_key)
    return found


def from_json(text: str) -> TokenBytes:
    """Read the bytes of every id from the text of a tokenizer.json, unverified."""
    return _read(json.loads(text))


def _read(document: dict[str, Any]) -> TokenBytes:
    model, added = document["model"], document.get("added_tokens") or []
    decoders = _flatten(document.get("decoder"), "decoders")
    pre = _flatten(document.get("pre_tokenizer"), "pretokenizers")
    normalizers = _flatten(document.get("normalizer"), "normalizers")
    kinds = {part["type"] for part in decoders} | {part["type"] for part in pre}
    if model.get("type") in ("WordPiece", "WordLevel") or "WordPiece" in kinds:
        raise LoadError(
            f"{model.get('type')} tokenizers lose spaces and case, so their bytes are not known",
            help="use a model with a byte-level or SentencePiece vocabulary",
        )
    vocabulary = _vocabulary(model)
    is_byte_level = "ByteLevel" in kinds
    has_fallback = not is_byte_level and ("ByteFallback" in kinds or bool(model.get("byte_fallback")))
    size = max([*vocabulary.values(), *(token["id"] for token in added)], default=-1) + 1
    pieces: list[bytes | None] = [None] * size
    fallback: set[int] = set()
    unknown = _unknown_piece(model)
    specials: dict[str, int] = {}
    if unknown in vocabulary:
        specials[unknown] = vocabulary[unknown]
    added_ids = {token["id"] for token in added}  # they go first: many stand in the vocabulary too, in another alphabet
    texts = [(piece, i) for piece, i in vocabulary.items() if i not in added_ids and piece != unknown]
    for token in added:
        if token["special"] or token["content"] == unknown:
            specials[token["content"]] = token["id"]
        elif is_byte_level:
            pieces[token["id"]] = token["content"].encode() or None
        else:
            texts.append((token["content"], token["id"]))
    for piece, token_id in texts:
        byte = BYTE_PIECE.fullmatch(piece) if has_fallback else None
        if byte:
            pieces[token_id] = bytes([int(byte[1], 16)])
            fallback.add(token_id)
        else:
            pieces[token_id] = (_byte_level_piece if is_byte_level else _marked_piece)(piece, token_id) or None
    has_prefix = any(part["type"] == "Prepend" for part in normalizers) or any(
        part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never" for part in pre
    )
    marks = {token["content"]: token["id"] for token in added if not token["special"] and is_mark(token["content"])}
    losses = list(dict.fromkeys(filter(None, map(_loss, normalizers))))
    if has_fallback and model.get("type") == "Unigram":  # its pieces are found in any text, those of bytes among them
        losses.append("a name of a byte such as <0x0A> becomes that byte")
    return TokenBytes(
        tuple(pieces),
        specials,
        has_prefix,
        frozenset(fallback),
        marks=marks,
        losses=tuple(losses),
    )


def _unknown_piece(model: dict[str, Any]) -> str | None:
    """Return what a vocabulary calls a text that it cannot write."""
    if isinstance(model["vocab"], list) and model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    name = model.get("unk_token")
    return None if name is None else str(name)


def is_mark(content: str) -> bool:
    """Return whether an added token is more than its characters: words in brackets or bars, not spaces or letters."""
    has_punctuation = any(normalize("NFKC", character) in punctuation for character in content)
    return has_punctuation and any(character.isalnum() for character in content)


_LOSSES = {
    "NFKC": "compatibility forms are replaced (NFKC)",
    "NFKD": "compatibility forms are replaced (NFKD)",
    "Lowercase": "upper case is lost",
    "Strip": "spaces at the ends are lost",
    "StripAccents": "accents are lost",
    "Nmt": "control characters are lost",
    "BertNormalizer": "case, accents or control characters are lost",
    "Precompiled": "characters are replaced by a table of SentencePiece",
}


def _loss(normalizer: dict[str, Any]) -> str | None:
    """Return what a normalizer loses; a marked space and canonical equivalence (NFC) are no loss."""
    kind = normalizer["type"]
    if kind != "Replace":
        return _LOSSES.get(kind)
    pattern, content = next(iter(normalizer["pattern"].values())), normalizer["content"]
    return None if (pattern, content) == (" ", _SPACE_MARK) else f"{pattern!r} becomes {content!r}"


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {entry[0]: index for index, entry in enumerate(vocabulary)}


def _flatten(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [leaf for inner in part[key] for leaf in _flatten(inner, key)]
    return [part]


def byte_alphabet() -> dict[str, int]:
    """Return the byte-level alphabet: printable characters that stand for the 256 bytes (GPT-2's order)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(printable)]
    return {chr(value): value for value in printable} | {chr(256 + index): value for index, value in enumerate(others)}


_ALPHABET = byte_alphabet()


def _byte_level_piece(piece: str, token_id: int) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in piece])
    except KeyError as error:
        raise LoadError(
            f"token {token_id} '{piece}' holds '{error.args[0]}', which is outside the byte-level alphabet",
            help="the tokenizer.json is damaged or of an unknown kind",
        ) from error


def _marked_piece(piece: str, token_id: int) -> bytes:
    del token_id  # every piece of this class can be read
    return piece.replace(_SPACE_MARK, " ").encode("utf-8", errors="surrogatepass")
