"""Contexts: each head's ids are the emitted bytes at every step; canonical ones are what it would have written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from flowinfer.fusion.advance import CanonicalContext, Context, NativeContext, new_context
from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.utf8 import trim
from flowinfer.fusion.vocab import TokenBytes, from_json
from tests.fusion import toys

TEXTS = (
    "小明有3个苹果，又买了15个。答案是：B。\n\n",
    "深圳——“一夜崛起之城” 𠮷野家 価格は１２３円",
    "한국어 กรุงเทพ ½ ²",
    "😀👨‍👩‍👧‍👦🇨🇳 naïve café, don't I'LL",
    "The answer is 42. Once upon a time there was a little girl named Lily.\r\n\t x",
    "    return  x+1\n\n\n\tif a:\n\t\tb()   ",
    "12345678901234567890 3.14 1,000,000 #### 42",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "字" * 60,
    "x</s>y <|im_end|> <0x0A> z",
)
NAMES = ("byte-level", "sentencepiece", "qwen2.5-instruct", "gpt2", "mistral-7b-v0.1", "baichuan-7b")


@cache
def known(name: str) -> tuple[Tokenizer, TokenBytes]:
    if name == "byte-level":
        return toys.byte_level(), from_json(toys.byte_level().to_str())
    if name == "sentencepiece":
        return toys.sentencepiece(), from_json(toys.sentencepiece().to_str())
    return toys.real(name), toys.real_tokens(name)


def written(tokens: TokenBytes, ids: list[int]) -> bytes:
    return b"".join(tokens.pieces[i] or b"<control>" for i in ids)


def encoded(tokenizer: Tokenizer, tokens: TokenBytes, text: str) -> list[int]:
    """Return the ids of a text that continues another: without the space that some tokenizers put first."""
    with ordinary_text(tokenizer):
        if not tokens.has_dummy_prefix:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        anchor = tokenizer.encode("\n", add_special_tokens=False).ids
        return list(tokenizer.encode("\n" + text, add_special_tokens=False).ids[len(anchor) :])


def keys_of(text: str, writer: str) -> list[bytes]:
    """Cut a text into keys as another head would emit them; "bytes" is one byte at a time."""
    if writer == "bytes":
        return [bytes([byte]) for byte in text.encode()]
    tokenizer, tokens = known(writer)
    return [tokens.pieces[i] or b"" for i in encoded(tokenizer, tokens, text)]


def play(kind: str, name: str, keys: list[bytes]) -> Iterator[tuple[Context, list[int], bytes]]:
    """Append keys one by one; yield the context, the cached ids as a session would hold them, and the text."""
    tokenizer, tokens = known(name)
    context = new_context(kind, tokenizer, tokens)
    cached: list[int] = []
    text = b""
    for key in keys:
        step = context.append(key, tokens.cover(key))
        del cached[len(cached) - step.rollback :]
        cached += step.ids
        text += key
        yield context, cached, text


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:10]))
@pytest.mark.parametrize("writer", ["bytes", "gpt2", "baichuan-7b"])
@pytest.mark.parametrize("kind", ["native", "canonical"])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_a_heads_ids_are_the_text_at_every_step(name: str, kind: str, writer: str, text: str) -> None:
    _, tokens = known(name)
    for context, cached, emitted in play(kind, name, keys_of(text, writer)):
        assert written(tokens, cached) == emitted
        assert context.ids == cached


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:10]))
@pytest.mark.parametrize("writer", ["bytes", "gpt2", "baichuan-7b", "qwen2.5-instruct"])
@pytest.mark.parametrize("name", NAMES)
def test_canonical_ids_are_the_full_encoding_at_character_boundaries(name: str, writer: str, text: str) -> None:
    tokenizer, tokens = known(name)
    for _, cached, emitted in play("canonical", name, keys_of(text, writer)):
        if trim(emitted) == emitted:
            assert cached == encoded(tokenizer, tokens, emitted.decode())


@pytest.mark.parametrize("alphabet", ["0123456789", "aeths", " \n\tx", "-=*#/.", "ae、。的是小明1 \n"], ids=repr)
@pytest.mark.parametrize("name", ["gpt2", "mistral-7b-v0.1", "baichuan-7b"])
def test_canonical_ids_are_the_full_encoding_of_long_runs(name: str, alphabet: str) -> None:
    """Windows then start inside a run that a pre-tokenizer does not split."""
    tokenizer, tokens = known(name)
    text = "".join(random.Random(0).choices(alphabet, k=120))
    for _, cached, emitted in play("canonical", name, keys_of(text, "bytes")):
        if trim(emitted) == emitted:
            assert cached == encoded(tokenizer, tokens, emitted.decode())


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece"])
@settings(max_examples=60)
@given(text=st.text(alphabet="ab theansw 1中é\n😀", max_size=60), data=st.data())
def test_canonical_ids_do_not_depend_on_how_the_text_was_cut_into_keys(
    name: str, text: str, data: st.DataObject
) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=12)))
    ends = [*(cut for cut in cuts if cut < len(raw)), len(raw)]
    keys = [raw[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if start < end]
    last: list[int] = []
    for _, cached, _ in play("canonical", name, keys):
        last = list(cached)
    assert last == encoded(*known(name), text)


def test_native_ids_are_never_rolled_back() -> None:
    context = NativeContext()
    steps = [context.append(b"a", (1,)), context.append("中".encode(), (2, 3, 4))]
    assert [(step.rollback, step.ids) for step in steps] == [(0, (1,)), (0, (2, 3, 4))]


@pytest.mark.parametrize(("name", "writer"), [("baichuan-7b", "qwen2.5-instruct"), ("qwen2.5-instruct", "gpt2")])
def test_canonical_contexts_feed_little_more_than_one_id_a_step(name: str, writer: str) -> None:
    """No hidden tokenizing and prefilling from the start."""
    fed = steps = 0
    tokenizer, tokens = known(name)
    context = CanonicalContext(tokenizer, tokens)
    for key in keys_of(TEXTS[0] + TEXTS[4], writer):
        step = context.append(key, tokens.cover(key))
        assert step.rollback <= 6
        fed += len(step.ids)
        steps += 1
    assert fed <= 2 * steps


@pytest.mark.parametrize("kind", ["native", "canonical"])
@pytest.mark.parametrize("text", ["<|im_end|>", "</s>", "<s>x</s>"])
@pytest.mark.parametrize("name", NAMES)
def test_text_that_looks_like_a_control_token_never_becomes_one(name: str, text: str, kind: str) -> None:
    _, tokens = known(name)
    for _, cached, _ in play(kind, name, keys_of(text, "bytes")):
        assert not set(cached) & set(tokens.specials.values())


def test_normalized_text_stays_in_native_ids() -> None:
    """Qwen2.5 composes e + U+0301 to é, which would be other bytes than were emitted."""
    _, tokens = known("qwen2.5-instruct")
    text = "e\u0301 vs é"
    for _, cached, emitted in play("canonical", "qwen2.5-instruct", keys_of(text, "bytes")):
        assert written(tokens, cached) == emitted


def test_model_without_a_tokenizer_object_gets_a_native_context() -> None:
    assert isinstance(new_context("canonical", None, toys.hand_made([b"a"])), NativeContext)
