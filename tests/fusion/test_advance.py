"""Contexts: each head's ids are the emitted bytes at every step; canonical ones are what it would have written."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from flowinfer.fusion.advance import CanonicalContext, Context, NativeContext, new_context
from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.utf8 import trim
from flowinfer.fusion.vocab import TokenBytes, byte_alphabet, from_json
from tests.fusion import replicas, toys

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


def test_a_window_widens_where_its_first_ids_would_change() -> None:
    """Digits grouped in threes from the right: one more digit moves every boundary back to the run's start."""
    alphabet = {piece: index for index, piece in enumerate(byte_alphabet())}
    tokenizer = Tokenizer(models.BPE(alphabet | {"11": 256, "111": 257}, [("1", "1"), ("11", "1")]))
    groups = pre_tokenizers.Split(Regex(r"\d{1,3}(?=(\d{3})*(?!\d))"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([groups, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokens = from_json(tokenizer.to_str())
    context = new_context("canonical", tokenizer, tokens)
    for length in range(1, 90):
        context.append(b"1", tokens.cover(b"1"))
        assert context.ids == tokenizer.encode("1" * length).ids


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece"])
@settings(max_examples=30)
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


@pytest.mark.parametrize("base", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("kind", ["nfkc", "lower", "strip", "accents", "replace", "shorten", "lengthen"])
def test_canonical_ids_write_the_text_whatever_the_normalizer_loses(kind: str, base: str) -> None:
    """What a tokenizer would change is covered by tokens that write it as it stands."""
    steps = {
        "nfkc": [normalizers.NFKC()],
        "lower": [normalizers.Lowercase()],
        "strip": [normalizers.Strip()],
        "accents": [normalizers.NFD(), normalizers.StripAccents()],
        "replace": [normalizers.Replace("a", "b")],
        "shorten": [normalizers.Replace(Regex(" {2,}"), " ")],
        "lengthen": [normalizers.Replace("½", "one half")],
    }[kind]
    made = Tokenizer.from_str(known(base)[0].to_str())
    own = [made.normalizer] if made.normalizer else []
    made.normalizer = normalizers.Sequence([*steps, *own])
    tokens = from_json(made.to_str())
    context = CanonicalContext(made, tokens)
    emitted = b""
    for key in re.findall(rb".{1,3}", "  The ½ ﬁne  Café １２３ ÀB\n aab  \t x ".encode(), re.DOTALL):
        emitted += key
        context.append(key, tokens.cover(key))
        assert b"".join(tokens.pieces[i] or b"<control>" for i in context.ids) == emitted


@pytest.mark.parametrize("kind", ["native", "canonical"])
def test_control_tokens_inside_answers_are_read_as_they_were_written(kind: str) -> None:
    """A head that writes <|channel|> reads that token again, however many ids the next key has."""
    tokenizer = replicas.gpt_oss()
    tokens = from_json(tokenizer.to_str()).writing(["<|channel|>", "<|message|>"])
    context = new_context(kind, tokenizer, tokens)
    for key in (b"<|channel|>", b"ana", b"lysis", b"<|message|>", b"one <|end|> two"):
        context.append(key, [tokens.id_of[key]] if key in tokens.id_of else tokens.cover(key))
    specials = {tokens.specials[name] for name in tokens.specials}
    assert [i for i in context.ids if i in specials] == [tokens.specials["<|channel|>"], tokens.specials["<|message|>"]]


def test_ids_before_a_key_of_many_ids_are_tokenized_again() -> None:
    """A key that takes more ids than the window used to leave a broken character before it as bytes."""
    tokenizer, tokens = known("sentencepiece")
    text = "é111111中中😀"
    keys = [text.encode()[:1], text.encode()[1:]]
    assert len(tokens.cover(keys[1])) > 16
    *_, (_, cached, _) = play("canonical", "sentencepiece", keys)
    assert cached == encoded(tokenizer, tokens, text)


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


def test_a_key_longer_than_the_window_completes_the_character_before_it() -> None:
    """The window once began inside the new key, so that é stayed in two fallback bytes."""
    raw = "é111111中中😀".encode()
    *_, (_, cached, _) = play("canonical", "sentencepiece", [raw[:1], raw[1:]])
    assert cached == encoded(*known("sentencepiece"), raw.decode())


LOSSY = (
    ("qwen2.5-instruct", "e\u0301"),
    ("mistral-7b-v0.1", "▁x"),
    ("baichuan-7b", "▁x"),
    ("baichuan-7b", "<unk>"),
)


@pytest.mark.parametrize(("name", "lossy"), LOSSY)
def test_text_that_a_tokenizer_would_change_does_not_change_how_the_rest_is_read(name: str, lossy: str) -> None:
    """Such text was once kept in native ids, and all that followed it too."""
    tokenizer, tokens = known(name)
    rest = " the answer is forty two because the girl had three apples and she gave one to the boy"
    *_, (_, cached, emitted) = play("canonical", name, keys_of(f"so {lossy}{rest}", "bytes"))
    assert written(tokens, cached) == emitted
    wanted = encoded(tokenizer, tokens, "so" + rest)[1:]
    assert cached[-len(wanted) :] == wanted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "lossy"), LOSSY)
def test_ids_do_not_depend_on_cuts_where_a_tokenizer_would_change_the_text(name: str, lossy: str, seed: int) -> None:
    raw = f"so {lossy} the answer is {lossy}{lossy} forty two 中{lossy}文 because {lossy}".encode() * 2
    draw = random.Random(seed)
    cuts = sorted({0, len(raw), *draw.sample(range(1, len(raw)), 30)})
    keys = [raw[start:end] for start, end in itertools.pairwise(cuts)]
    *_, (_, whole, _) = play("canonical", name, [raw])
    *_, (_, pieced, _) = play("canonical", name, keys)
    assert pieced == whole


@pytest.mark.parametrize("kind", ["native", "canonical"])
@pytest.mark.parametrize("name", ["sentencepiece", "mistral-7b-v0.1"])
def test_joined_contexts_begin_with_the_heads_own_space(name: str, kind: str) -> None:
    tokenizer, tokens = known(name)
    context = new_context(kind, tokenizer, tokens, lstrip_first=True)
    for key in keys_of("hello world and more", "gpt2"):
        context.append(key, tokens.cover(key))
    assert written(tokens, context.ids) == b" hello world and more"
    if kind == "canonical":
        assert context.ids == tokenizer.encode("hello world and more", add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["native", "canonical"])
def test_heads_without_a_dummy_prefix_read_their_own_token_with_the_space(kind: str) -> None:
    tokenizer, tokens = known("gpt2")
    for key, read in ((b"the", b" the"), ("的".encode(), "的".encode())):
        context = new_context(kind, tokenizer, tokens, lstrip_first=True)
        context.append(key, tokens.cover(key))
        assert written(tokens, context.ids) == read
        context.append(b" end", tokens.cover(b" end"))
        assert written(tokens, context.ids) == read + b" end"
