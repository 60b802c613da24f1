"""Heads as models of bytes: against an enumeration of all covers, and what it puts right in a mean of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from flowinfer.errors import LoadError
from flowinfer.fusion.bytewise import END, ByteIndex, Covers
from flowinfer.fusion.fusers import Bytewise, FuserView, mean
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.vocab import HeadVocabulary, from_json
from tests.fusion import toys

Logits = Callable[[tuple[int, ...]], torch.Tensor]
TEXTS = ("hello the answer", "小明有3", "  don't\n\tx", "é naïve", "aaa", "他")


@cache
def kinds() -> dict[str, tuple[HeadVocabulary, Tokenizer]]:
    level, piece = toys.byte_level(), toys.sentencepiece()
    bare = toys.sentencepiece(has_dummy_prefix=False)
    return {
        "byte level": (toys.head(from_json(level.to_str()), [0, 2], 405), level),
        "sentencepiece": (toys.head(from_json(piece.to_str()), [2]), piece),
        "without dummy prefix": (toys.head(from_json(bare.to_str()), [2]), bare),
    }


def model(num_columns: int) -> Logits:
    """Return random logits in float64 that follow from all ids so far."""

    def logits(ids: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash(ids) % 2**31)
        return torch.randn(num_columns, generator=generator, dtype=torch.float64) * 2

    return logits


def index(head: HeadVocabulary, tokenizer: Tokenizer | None = None) -> ByteIndex:
    return ByteIndex(head, tokenizer, "sum", "A")


def settle(covers: Covers, of: ByteIndex, logits: Logits) -> None:
    while unread := covers.unread:
        covers.read(unread[0], of.probs(logits(unread[0].ids)[None])[0])


def followed(of: ByteIndex, logits: Logits, text: bytes, most: int = 0) -> list[NDArray[np.float64]]:
    """Return the distributions before each byte of a text and behind it."""
    covers, found = Covers(of, most), []
    for byte in (*text, None):
        settle(covers, of, logits)
        found.append(covers.next_bytes())
        if byte is not None:
            covers.append(byte)
    return found


class Enumeration:
    """The same from the definition: the probabilities of all covers of each text, added up."""

    def __init__(self, head: HeadVocabulary, tokenizer: Tokenizer | None, logits: Logits) -> None:
        self.head, self.tokenizer, self.logits = head, tokenizer, cache(logits)
        self.texts = {i: head.tokens.pieces[i] or b"" for i in head.text_ids()}
        self.ends = [i for i in head.eos_ids if i < head.num_columns]

    def next_bytes(self, text: bytes) -> NDArray[np.float64]:
        found = np.zeros(END + 1)
        self.add((), text, 1.0, found)
        return found / found.sum()

    def add(self, ids: tuple[int, ...], rest: bytes, mass: float, found: NDArray[np.float64]) -> None:
        """Add the covers that begin with some tokens to the bytes that they go on with.

        Args:
            rest: of the text, behind these tokens.
            mass: their probability.
        """
        chances = self.logits(ids)[[*self.texts, *self.ends]].softmax(-1).tolist()
        for (token, piece), chance in zip(self.texts.items(), chances, strict=False):
            if piece.startswith(rest) and piece != rest:
                found[piece[len(rest)]] += mass * chance
            elif rest.startswith(piece) and self.is_canonical(ids, token):
                self.add((*ids, token), rest[len(piece) :], mass * chance, found)
        found[END] += 0.0 if rest else mass * sum(chances[len(self.texts) :])

    def is_canonical(self, ids: tuple[int, ...], token: int) -> bool:
        """Return whether tokens are what the tokenizer makes of their text, once that is whole characters.

        Asked of the whole text: in BPE that is the same as pair by pair.
        """
        window = (*ids, token)
        try:
            text = b"".join(self.texts[i] for i in window).decode()
        except UnicodeDecodeError:
            return True
        return self.tokenizer is None or self.encoded(text) == window

    def encoded(self, text: str) -> tuple[int, ...]:
        assert self.tokenizer is not None
        anchor = "a" if self.head.tokens.has_dummy_prefix else ""
        before = self.tokenizer.encode(anchor, add_special_tokens=False).ids if anchor else []
        ids = self.tokenizer.encode(anchor + text, add_special_tokens=False).ids
        return tuple(ids[len(before) :]) if ids[: len(before)] == before else ()


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("is_canonical", [True, False], ids=["canonical", "all"])
def test_next_bytes_are_those_of_an_enumeration_of_all_covers(kind: str, is_canonical: bool) -> None:
    head, tokenizer = kinds()[kind]
    asked = tokenizer if is_canonical else None
    logits = model(head.num_columns)
    oracle, text = Enumeration(head, asked, logits), "heл小".encode() if is_canonical else b"hell"
    for length, found in enumerate(followed(index(head, asked), logits, text)):
        assert np.abs(found - oracle.next_bytes(text[:length])).max() < 1e-9


def test_probabilities_of_bytes_multiply_to_that_of_all_ways_to_write_a_text() -> None:
    head = kinds()["byte level"][0]
    of, logits, text = index(head), model(head.num_columns), b"hello"
    steps = [probs[symbol] for probs, symbol in zip(followed(of, logits, text), (*text, END), strict=True)]

    def written(ids: tuple[int, ...], rest: bytes) -> float:
        probs = of.probs(logits(ids)[None])[0]
        if not rest:
            return float(probs[-1])
        own = [(i, p) for i, p in zip(of.ids.tolist(), probs, strict=False) if rest.startswith(_tokens(head, [i]))]
        return sum(float(p) * written((*ids, i), rest[len(_tokens(head, [i])) :]) for i, p in own)

    assert np.prod(steps) == pytest.approx(written((), text), rel=1e-6)


@pytest.mark.parametrize("kind", kinds())
def test_of_a_text_mostly_the_tokenizers_own_ids_are_alive(kind: str) -> None:
    """Whole tokens that it would not write are forgotten as soon as their characters are whole."""
    head, tokenizer = kinds()[kind]
    of, logits = index(head, tokenizer), model(head.num_columns)
    for text in TEXTS:
        covers = Covers(of)
        for byte in text.encode():
            settle(covers, of, logits)
            covers.append(byte)
        whole = [cover.ids for cover in covers.unread]
        assert whole in ([], [tuple(of.spelled(text.encode()))])


def test_a_short_and_a_long_token_do_not_stand_against_each_other() -> None:
    """Two heads of three would say So.., in tokens of different lengths: a mean of tokens says Rome."""
    letters = [bytes([value]) for value in range(256)]
    long, short = toys.head([*letters, b"Sofia", b"Rome"]), toys.head([*letters, b"So", b"Rome"])
    likely = {b"Sofia": 0.6, b"So": 0.6, b"Rome": 0.4}
    probs = [[likely.get(piece or b"", 1e-9) for piece in one.tokens.pieces] for one in (long, short)]
    logits = [torch.tensor(one, dtype=torch.float64).log() for one in probs]
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)

    shared = SharedVocabulary([long, short])
    by_tokens = mean([shared.lift(k, one[None]) for k, one in enumerate(logits)], weights)[0]
    assert shared.keys[int(by_tokens.argmax())] == b"Rome"

    first = [
        followed(index(one), lambda _, own=own: own, b"")[0] for one, own in zip((long, short), logits, strict=True)
    ]
    by_bytes = (first[0] + first[1]) / 2
    assert (by_bytes.argmax(), round(float(by_bytes.max()), 6)) == (ord("S"), 0.6)


def test_one_cover_is_the_likeliest_and_enough_where_tokens_are_sure() -> None:
    head, tokenizer = kinds()["byte level"]
    ids = tokenizer.encode("hello the answer").ids

    def sure(before: tuple[int, ...]) -> torch.Tensor:
        logits = torch.zeros(head.num_columns, dtype=torch.float64)
        if len(before) < len(ids):
            logits[ids[len(before)]] = 12.0
        return logits

    of, text = index(head, tokenizer), b"hello the answer"
    for symbols in zip(followed(of, sure, text, 1), followed(of, sure, text), strict=True):
        assert len({int(one.argmax()) for one in symbols}) == 1


def test_a_text_that_a_head_would_not_write_is_read_in_tokens_that_write_it() -> None:
    """SentencePiece reads its own mark for a space as a space, so no cover of it is canonical."""
    head, tokenizer = kinds()["sentencepiece"]
    of, covers = index(head, tokenizer), Covers(index(head, tokenizer))
    logits = model(head.num_columns)
    for byte in "a▁b".encode():
        settle(covers, of, logits)
        covers.append(byte)
    settle(covers, of, logits)
    assert covers.next_bytes().sum() == pytest.approx(1.0)


def test_a_head_that_begins_with_a_space_says_what_follows_that_space() -> None:
    head, tokenizer = kinds()["sentencepiece"]
    of, logits = index(head, tokenizer), model(head.num_columns)
    covers = Covers(of, is_joined=True)
    settle(covers, of, logits)
    assert np.array_equal(covers.next_bytes(), followed(of, logits, b" ")[1])


def test_a_head_that_cannot_write_every_byte_is_refused() -> None:
    characters = toys.characters()
    with pytest.raises(LoadError, match="'A' cannot write every byte, which fuse=byte needs"):
        index(toys.head(from_json(characters.to_str()), [2]), characters)


@pytest.mark.parametrize("mix", ["mean", "product"])
def test_mixed_bytes_are_a_distribution(mix: str) -> None:
    rng = random.Random(1)
    probs = torch.tensor([[[rng.random() for _ in range(257)]] for _ in range(3)], dtype=torch.float64)
    probs /= probs.sum(-1, keepdim=True)
    bytes_head = toys.head([*(bytes([value]) for value in range(256)), None], [256])
    view = FuserView(SharedVocabulary([bytes_head] * 3), ("A", "B", "C"), (0, 1, 2))
    mixed = Bytewise(mix)(probs, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), view)
    assert float(mixed.sum()) == pytest.approx(1.0)


def _tokens(head: HeadVocabulary, ids: Sequence[int]) -> bytes:
    return b"".join(head.tokens.pieces[i] or b"" for i in ids)


@pytest.mark.parametrize("name", ["qwen2.5-instruct", "gpt2", "mistral-7b-v0.1", "baichuan-7b"])
def test_the_ids_of_a_real_tokenizer_are_canonical_pair_by_pair(name: str) -> None:
    """Else a head's own text would be forgotten as one that it would not write."""
    tokenizer, tokens = toys.real(name), toys.real_tokens(name)
    of = index(toys.head(tokens, toys.EOS[name]), tokenizer)
    for text in (
        "小明有3个苹果，又买了15个。\n答案：B",
        "The answer isn't 42, she said:\n\n  x += 1",
        "😀 naïve 한국어 12345",
    ):
        ids = list(of.spelled(text.encode()))
        assert _tokens(toys.head(tokens, ()), ids) == text.encode()
        refused = [at for at in range(len(ids)) if not of.is_canonical(ids[:at], ids[at])]
        assert not refused, [tokens.pieces[ids[at]] for at in refused]
