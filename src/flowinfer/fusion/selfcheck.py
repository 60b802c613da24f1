"""The check that a tokenizer's bytes are what its own decoder and encoder do, run once per tokenizer and machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_dir

from flowinfer.errors import LoadError
from flowinfer.files import write_whole
from flowinfer.fusion.encoder import Encoder
from flowinfer.fusion.vocab import BYTE_PIECE, TokenBytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_VERSION = 3
"""Of what is kept of a tokenizer; raise it when `vocab` would read another thing, or checks have become stricter."""
_SENTENCE = "The Answer IS twelve"

PROBES = (
    "小明有3个苹果，又买了15个。",
    "答案是：B。\n\n",
    "深圳——“一夜崛起之城”",
    "𠮷野家",
    "价格は１２３円",
    "한국어 กรุงเทพ",
    "½ ² Ⅳ",
    "😀👨‍👩‍👧‍👦🇨🇳",
    "e\u0301 vs é",
    "naïve café",
    "\u200d\ufeff",
    "\x00\x01",
    "",
    "字" * 300,
    "a" * 300,
    "\r\n\t \n\n  x",
    "    return  x+1\n\n\n",
    "\tif a:\n\t\tb()",
    "  leading",
    "trailing ",
    " ",
    "don't I'LL",
    "12345 3.14 1,000,000 #### 42",
    "\\frac{1}{2}",
    "<0x0A>",
    "<|im_end|>",
    "</s>",
    "▁x Ġx Ċ",
    "ø ö ÿ",
    *(chr(code) + "a" for code in range(0x20, 0x7F)),
    *(f"x{chr(code)}" for code in range(0xA0, 0x100)),
)
"""Texts that every tokenizer must keep, up to its own declared normalization."""


def cache_folder() -> Path:
    """Return the folder of flowinfer's derived data ($FLOWINFER_CACHE, else the user's cache folder)."""
    return Path(os.environ.get("FLOWINFER_CACHE") or user_cache_dir("flowinfer"))


def checks_folder() -> Path:
    """Return the folder of what checks of models at load have found."""
    return cache_folder() / "checks"


def verified(cache_key: str) -> TokenBytes | None:
    """Return the bytes of a tokenizer's ids as they were when it passed; None where it has not, or that is damaged."""
    try:
        stored = json.loads(_path(cache_key).read_bytes())
        pieces = tuple(None if piece is None else piece.encode("latin-1") for piece in stored.pop("pieces"))
        lists = {name: stored.pop(name) for name in ("byte_pieces", "losses")}
        return TokenBytes(pieces, byte_pieces=frozenset(lists["byte_pieces"]), losses=tuple(lists["losses"]), **stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _path(cache_key: str) -> Path:
    return cache_folder() / "tokenizers" / f"{cache_key}.v{_VERSION}.json"


def _plain(tokens: TokenBytes) -> dict[str, Any]:
    """Return token bytes as plain data; a byte is a character of that number."""
    return {
        "pieces": [None if piece is None else piece.decode("latin-1") for piece in tokens.pieces],
        "specials": dict(tokens.specials),
        "has_dummy_prefix": tokens.has_dummy_prefix,
        "byte_pieces": sorted(tokens.byte_pieces),
        "marks": dict(tokens.marks),
        "losses": list(tokens.losses),
    }


def verify(tokenizer: Tokenizer, tokens: TokenBytes, *, cache_key: str) -> None:
    """Check all ids and the probes, unless this tokenizer has passed before.

    Raises:
        LoadError: with the offending ids or probe.
    """
    passed = _path(cache_key)
    if passed.is_file():
        return
    _check_ids(tokenizer, tokens)
    _check_probes(tokenizer, tokens)
    keep(tokens, cache_key)


def keep(tokens: TokenBytes, cache_key: str) -> None:
    """Keep the bytes of a tokenizer's ids that have passed for the next time; see `verified`."""
    passed = _path(cache_key)
    try:
        passed.parent.mkdir(parents=True, exist_ok=True)
        write_whole(passed, json.dumps(_plain(tokens)).encode())
    except OSError:
        return  # a read-only cache costs a second check, nothing else


@contextmanager
def ordinary_text(tokenizer: Encoder) -> Iterator[None]:
    """Encode text that looks like a control token as the ordinary text it is."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        yield
    finally:
        tokenizer.encode_special_tokens = before


def _check_ids(tokenizer: Tokenizer, tokens: TokenBytes) -> None:
    anchor = tokens.id_of.get(b"a")
    if anchor is None:
        raise LoadError("the vocabulary has no token for 'a'", help="this tokenizer cannot be verified")
    added = set(tokenizer.get_added_tokens_decoder())
    ids = [
        token_id
        for token_id, piece in enumerate(tokens.pieces)
        if piece is not None and token_id not in added and _is_utf8(piece)
    ]
    decoded = tokenizer.decode_batch([[anchor, i, anchor] for i in ids], skip_special_tokens=False)
    wrong = [i for i, text in zip(ids, decoded, strict=True) if text.encode() != b"a%ba" % (tokens.pieces[i] or b"")]
    if wrong:
        shown = ", ".join(f"{i} ({tokens.pieces[i]!r})" for i in wrong[:5])
        raise LoadError(
            f"{len(wrong)} tokens decode to other bytes than their pieces say: {shown}",
            help="the tokenizer.json is damaged, or its decoder is of a kind that flowinfer does not know",
        )


def _check_probes(tokenizer: Tokenizer, tokens: TokenBytes) -> None:
    normalizer = tokenizer.normalizer
    if normalizer:
        _refuse_foreign_characters(normalizer.normalize_str(_SENTENCE))
    with ordinary_text(tokenizer):
        encoded = tokenizer.encode_batch(list(PROBES), add_special_tokens=False)
    for probe, encoding in zip(PROBES, encoded, strict=True):
        pieces = [tokens.pieces[i] for i in encoding.ids]
        if any(piece is None for piece in pieces):
            continue  # characters outside a character vocabulary
        kept = b"".join(piece for piece in pieces if piece is not None)
        normal = normalizer.normalize_str(probe) if normalizer else probe
        wanted = {text.encode() for text in (probe, normal, normal.replace("\u2581", " "))}
        if tokens.byte_pieces and type(tokenizer.model).__name__ == "Unigram":
            wanted |= {_with_named_bytes(text) for text in wanted}
        if kept not in wanted and kept.removeprefix(b" ") not in wanted:
            raise LoadError(
                f"encoding {probe!r} gives ids whose bytes are {kept!r}",
                help="this tokenizer loses text in a way that flowinfer does not know",
            )


def _with_named_bytes(text: bytes) -> bytes:
    return re.sub(BYTE_PIECE.pattern.encode(), lambda name: bytes([int(name[1], 16)]), text)


def _refuse_foreign_characters(normal: str) -> None:
    """Refuse a tokenizer whose model writes marks for what its normalizer took away, such as upper case."""
    foreign = set(normal) - set(_SENTENCE + _SENTENCE.lower() + _SENTENCE.upper() + "\u2581")
    if foreign:
        raise LoadError(
            f"the tokenizer turns {_SENTENCE!r} into {normal!r}, and its model would write such text",
            help="its tokens write no plain text (marks for case or the like), so no other model can read on from them",
        )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
