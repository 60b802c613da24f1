"""Token bytes: what every id writes, for each kind of tokenizer, and the check that refuses damaged ones."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flowinfer.errors import LoadError
from flowinfer.fusion.ends import eos_ids
from flowinfer.fusion.selfcheck import ordinary_text, verified, verify
from flowinfer.fusion.vocab import TokenBytes, byte_alphabet, from_json, token_bytes
from tests.fusion import replicas, toys

Make = Callable[[], Tokenizer]

PROBES = (
    "小明有3个苹果，又买了15个。",
    "答案是：B。\n\n",
    "深圳——“一夜崛起之城”",
    "𠮷野家",
    "価格は１２３円",
    "한국어 กรุงเทพ",
    "½ ² Ⅳ",
    "😀👨‍👩‍👧‍👦🇨🇳",
    "e\u0301 vs é",
    "naïve café",
    "\u200d\ufeff",
    "\x00\x01",
    "",
    "字" * 3000,
    "a" * 3000,
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
)


_NFKC = ("compatibility forms are replaced (NFKC)",)


def shown(text: str) -> str:
    return repr(text[:12])


def written(tokenizer: Tokenizer, tokens: TokenBytes, text: str) -> bytes:
    with ordinary_text(tokenizer):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    return b"".join(tokens.pieces[i] or b"<control>" for i in ids)


@pytest.mark.parametrize("text", PROBES, ids=shown)
@pytest.mark.parametrize("name", toys.REAL)
def test_bytes_of_encoded_text_are_the_text(name: str, text: str) -> None:
    """Up to what the tokenizer itself normalizes: NFC in Qwen2.5, a marked space in SentencePiece."""
    normal = unicodedata.normalize("NFC", text) if "qwen" in name else text
    if name in ("mistral-7b-v0.1", "baichuan-7b"):
        normal = normal.replace("▁", " ")
    data = written(toys.real(name), toys.real_tokens(name), text)
    prefix = b" " if toys.real_tokens(name).has_dummy_prefix and text else b""
    assert data == prefix + normal.encode()


@pytest.mark.parametrize("text", [probe for probe in PROBES if "▁" not in probe], ids=shown)
@pytest.mark.parametrize("make", [toys.byte_level, toys.sentencepiece])
def test_bytes_of_toy_encodings_are_the_text(make: Make, text: str) -> None:
    tokenizer = make()
    tokens = from_json(tokenizer.to_str())
    prefix = b" " if tokens.has_dummy_prefix and text else b""
    assert written(tokenizer, tokens, text) == prefix + text.encode()


def test_byte_alphabet_stands_for_all_256_bytes_once() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert len(alphabet) == 256


@pytest.mark.parametrize(
    ("character", "byte"), [("Ċ", 0x0A), ("ĉ", 0x09), ("Ġ", 0x20), ("Ń", 0xAD), ("!", 0x21), ("ÿ", 0xFF)]
)
def test_byte_alphabet_is_that_of_gpt2(character: str, byte: int) -> None:
    assert byte_alphabet()[character] == byte


@pytest.mark.parametrize("name", toys.REAL)
def test_every_byte_can_be_written_by_a_real_vocabulary(name: str) -> None:
    assert toys.real_tokens(name).missing_bytes == ()


@pytest.mark.parametrize("name", toys.REAL)
def test_cover_writes_exactly_the_bytes(name: str) -> None:
    tokens = toys.real_tokens(name)
    data = bytes(range(256)) + "小明 hello <|im_end|> </s>".encode()
    assert b"".join(tokens.pieces[i] or b"" for i in tokens.cover(data)) == data


def test_cover_takes_the_longest_token_first() -> None:
    tokens = toys.hand_made([b"a", b"ab", b"abc", b"b", b"c", b"d"])
    assert tokens.cover(b"abcdab") == (2, 5, 1)


def test_ids_beyond_a_models_columns_are_left_out() -> None:
    """A tokenizer may have grown beyond the embedding; ids out there can be neither written nor fed."""
    tokens = toys.hand_made([b"a", b"b", b"ab"]).limited(2)
    assert tokens.cover(b"ab") == (0, 1)
    assert tokens.fingerprint != toys.hand_made([b"a", b"b", b"ab"]).fingerprint


def test_cover_of_nothing_is_no_id() -> None:
    assert toys.hand_made([b"a"]).cover(b"") == ()


def test_character_vocabulary_cannot_cover_what_it_lacks() -> None:
    tokens = from_json(toys.characters().to_str())
    assert tokens.try_cover("é".encode()) is None
    with pytest.raises(LoadError, match=r"the vocabulary cannot write b'\\n'") as caught:
        tokens.cover(b"\n")
    assert caught.value.help == "use a model with byte fallback"


@pytest.mark.parametrize(("text", "byte"), [("\n", b"\n"), ("\t", b"\t")])
def test_newline_and_tab_are_the_same_bytes_in_every_class(text: str, byte: bytes) -> None:
    """Written Ċ in byte-level vocabularies and <0x0A> in SentencePiece ones."""
    for tokens in (from_json(toys.byte_level().to_str()), from_json(toys.sentencepiece().to_str())):
        assert tokens.pieces[tokens.id_of[byte]] == text.encode()


def test_real_piece_goes_before_its_fallback_twin() -> None:
    tokens = toys.hand_made([b"a", b"a", b"b"], fallback=[0])
    assert tokens.id_of[b"a"] == 1


def test_smallest_id_goes_first_among_equal_pieces() -> None:
    assert toys.hand_made([b"x", b"a", b"a"]).id_of[b"a"] == 1


def test_literal_angle_bracket_piece_is_text_in_byte_level_vocabularies() -> None:
    tokenizer = toys.byte_level()
    tokens = from_json(tokenizer.to_str())
    assert written(tokenizer, tokens, "<0x0A>") == b"<0x0A>"


@pytest.mark.parametrize("name", toys.REAL)
def test_control_tokens_write_nothing(name: str) -> None:
    tokens = toys.real_tokens(name)
    assert tokens.specials
    assert all(tokens.pieces[token_id] is None for token_id in tokens.specials.values())


def test_added_tokens_that_are_not_special_write_their_text_literally() -> None:
    """DeepSeek adds 'ø' as one character; decode() shows U+FFFD, encode() matches the character."""
    document = json.loads(toys.byte_level().to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    document["added_tokens"].append({"id": 500, "content": "ø", **flags})
    tokens = from_json(json.dumps(document))
    assert tokens.pieces[500] == "ø".encode()
    assert tokens.pieces[450] is None


@pytest.mark.parametrize("name", list(replicas.MADE))
def test_replicas_of_real_structures_load(name: str, fresh_cache: Path) -> None:
    tokenizer = replicas.MADE[name]()
    verify(tokenizer, from_json(tokenizer.to_str()), cache_key=name)


def test_added_tokens_go_before_their_namesakes_in_the_vocabulary() -> None:
    """DeepSeek-V3 keeps its control tokens in the vocabulary too, in characters that stand for no byte."""
    tokens = from_json(replicas.deepseek_v3().to_str())
    assert tokens.pieces[tokens.specials["<｜begin▁of▁sentence｜>"]] is None
    assert tokens.pieces[tokens.marks["<｜User｜>"]] == "<｜User｜>".encode()
    assert tokens.id_of["ø".encode()] == replicas.deepseek_v3().token_to_id("ø")


def test_runs_of_spaces_that_are_added_tokens_are_spaces() -> None:
    """Gemma writes them with U+2581."""
    tokenizer = replicas.gemma()
    tokens = from_json(tokenizer.to_str())
    assert tokens.pieces[tokenizer.token_to_id("▁▁▁")] == b"   "
    assert tokens.id_of[b"   "] == tokenizer.token_to_id("▁▁▁")
    assert written(tokenizer, tokens, "    x\n\ny") == b"    x\n\ny"


def test_unigram_vocabulary_with_byte_fallback_loads_and_tells_what_it_reads_names_of_bytes_as(
    fresh_cache: Path,
) -> None:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), ("▁", -2.0)]
    model: Any = models.Unigram([*pieces, *((chr(code), -5.0) for code in range(0x21, 0x7F))], 0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = from_json(tokenizer.to_str())
    verify(tokenizer, tokens, cache_key="unigram")
    assert tokens.losses == ("a name of a byte such as <0x0A> becomes that byte",)
    assert (tokens.pieces[11], tokens.missing_bytes) == (b"\n", ())


def test_unknown_piece_of_a_unigram_vocabulary_is_control() -> None:
    document = json.loads(replicas.unigram().to_str())
    document["added_tokens"] = []
    tokens = from_json(json.dumps(document))
    assert tokens.pieces[0] is None
    assert tokens.specials == {"<unk>": 0}


@pytest.mark.parametrize(
    ("content", "is_mark"),
    [
        *((text, True) for text in ("</think>", "<tool_call>", "[gMASK]", "|||IP_ADDRESS|||", "<｜User｜>", "<h1>")),
        *((text, False) for text in ("ø", "▁▁", "\n\n", "   ", "covid", "，", "----", "é")),
    ],
)
def test_marks_are_words_in_brackets_or_bars(content: str, is_mark: bool) -> None:
    document = json.loads(toys.byte_level().to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    document["added_tokens"].append({"id": 500, "content": content, **flags})
    assert from_json(json.dumps(document)).marks == ({content: 500} if is_mark else {})


def test_truncation_and_padding_are_reset() -> None:
    tokenizer = Tokenizer.from_str(toys.byte_level().to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    shell = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    token_bytes(shell)
    assert (shell.backend_tokenizer.truncation, shell.backend_tokenizer.padding) == (None, None)


@pytest.mark.parametrize(
    ("normalizer", "losses"),
    [
        (normalizers.NFC(), ()),
        (normalizers.Replace(" ", "▁"), ()),
        (normalizers.NFKC(), ("compatibility forms are replaced (NFKC)",)),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), (*_NFKC, "upper case is lost")),
        (normalizers.Strip(), ("spaces at the ends are lost",)),
        (normalizers.Replace("a", "b"), ("'a' becomes 'b'",)),
    ],
)
def test_what_a_normalizer_loses_is_listed(normalizer: Any, losses: tuple[str, ...]) -> None:
    tokenizer = Tokenizer.from_str(toys.byte_level().to_str())
    tokenizer.normalizer = normalizer
    assert from_json(tokenizer.to_str()).losses == losses


def test_marks_for_upper_case_are_refused(fresh_cache: Path) -> None:
    """What such a model writes is no text that another model, or a reader, could go on from."""
    tokenizer = Tokenizer.from_str(toys.byte_level().to_str())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("A", "⇧A"), normalizers.Lowercase()])
    with pytest.raises(LoadError, match="turns 'The Answer IS twelve' into 'the ⇧answer is twelve'"):
        verify(tokenizer, from_json(tokenizer.to_str()), cache_key="case")


def test_mark_for_spaces_is_a_space_wherever_it_stands() -> None:
    assert from_json(_pieces_json({"▁a▁b": 0, "▁": 1, "中": 2})).pieces == (b" a b", b" ", "中".encode())


def test_names_of_bytes_are_bytes_only_with_byte_fallback() -> None:
    tokens = from_json(_pieces_json({"<0xE4>": 0, "a": 1}))
    assert tokens.pieces[0] == b"\xe4"
    assert tokens.byte_pieces == {0}
    assert from_json(_pieces_json({"<0xE4>": 0}, fallback=False)).pieces[0] == b"<0xE4>"


def _pieces_json(vocabulary: dict[str, int], *, fallback: bool = True) -> str:
    parts = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    decoder = {"type": "Sequence", "decoders": [*parts, *([{"type": "ByteFallback"}] if fallback else [])]}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": None, "byte_fallback": fallback}
    return json.dumps({"model": model, "decoder": decoder, "added_tokens": []})


@pytest.mark.parametrize(
    ("name", "has_prefix"),
    [("mistral-7b-v0.1", True), ("baichuan-7b", False), ("qwen2.5-instruct", False), ("gpt2", False)],
)
def test_dummy_prefix_is_known(name: str, has_prefix: bool) -> None:
    assert toys.real_tokens(name).has_dummy_prefix is has_prefix


def test_equal_tokenizers_have_equal_fingerprints() -> None:
    one, two = (from_json(toys.byte_level().to_str()) for _ in range(2))
    assert one.fingerprint == two.fingerprint


def test_qwen_and_its_r1_distill_differ_in_fingerprint() -> None:
    """They share every text id, but their control tokens lie on one another's ids."""
    assert toys.real_tokens("qwen2.5-instruct").fingerprint != toys.real_tokens("deepseek-r1-distill-qwen").fingerprint


@pytest.mark.parametrize("make", [toys.byte_level, toys.sentencepiece, toys.characters])
def test_self_check_passes_a_sound_tokenizer(make: Make, fresh_cache: Path) -> None:
    tokenizer = make()
    verify(tokenizer, from_json(tokenizer.to_str()), cache_key="sound")
    assert [path.name for path in (fresh_cache / "tokenizers").iterdir()] == ["sound.v3.json"]


@pytest.mark.parametrize("name", toys.REAL)
def test_self_check_passes_a_real_tokenizer_and_keeps_what_it_writes(name: str, fresh_cache: Path) -> None:
    verify(toys.real(name), toys.real_tokens(name), cache_key=name)
    assert verified(name) == toys.real_tokens(name)


def test_what_is_kept_of_a_tokenizer_is_read_again_where_it_is_damaged(fresh_cache: Path) -> None:
    tokenizer = toys.sentencepiece()
    tokens = from_json(tokenizer.to_str())
    verify(tokenizer, tokens, cache_key="kept")
    assert verified("kept") == tokens and verified("other") is None
    (kept,) = (fresh_cache / "tokenizers").iterdir()
    for damage in (kept.read_bytes()[:40], b"[]", b'{"pieces": [1]}', b"\xff"):
        kept.write_bytes(damage)
        assert verified("kept") is None


@pytest.mark.parametrize("make", [toys.byte_level, toys.sentencepiece])
def test_self_check_names_the_ids_of_a_tampered_vocabulary(make: Make, fresh_cache: Path) -> None:
    tokenizer = make()
    tokens = from_json(tokenizer.to_str())
    first, second = tokens.id_of[b"b"], tokens.id_of[b"c"]
    pieces = list(tokens.pieces)
    pieces[first], pieces[second] = pieces[second], pieces[first]
    with pytest.raises(LoadError) as caught:
        verify(tokenizer, toys.hand_made(pieces), cache_key="tampered")
    shown = ", ".join(f"{i} ({pieces[i]!r})" for i in sorted((first, second)))
    assert caught.value.message == f"2 tokens decode to other bytes than their pieces say: {shown}"
    assert not (fresh_cache / "tokenizers").exists()


def test_self_check_refuses_an_encoder_that_loses_text(fresh_cache: Path) -> None:
    lossy = Tokenizer.from_str(toys.byte_level().to_str())
    tokens = from_json(lossy.to_str())
    lossy.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), lossy.pre_tokenizer])
    with pytest.raises(LoadError, match=r"encoding .* gives ids whose bytes are"):
        verify(lossy, tokens, cache_key="lossy")


def test_self_check_runs_once_per_tokenizer(fresh_cache: Path) -> None:
    verify(toys.byte_level(), from_json(toys.byte_level().to_str()), cache_key="once")
    verify(toys.byte_level(), toys.hand_made([b"wrong"]), cache_key="once")


def test_ordinary_text_reads_control_tokens_as_text_and_restores_the_flag() -> None:
    tokenizer = toys.byte_level()
    before = tokenizer.encode_special_tokens
    with ordinary_text(tokenizer):
        inside = tokenizer.encode("<|im_end|>", add_special_tokens=False).ids
    assert len(inside) > 1
    assert tokenizer.encode_special_tokens is before


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_word_tokenizers_are_refused(kind: str) -> None:
    with pytest.raises(LoadError) as caught:
        from_json(json.dumps({"model": {"type": kind, "vocab": {"a": 0}}}))
    assert caught.value.message == f"{kind} tokenizers lose spaces and case, so their bytes are not known"
    assert caught.value.help == "use a model with a byte-level or SentencePiece vocabulary"


def test_byte_level_piece_outside_the_alphabet_is_refused() -> None:
    document = {"model": {"type": "BPE", "vocab": {"a中": 7}}, "decoder": {"type": "ByteLevel"}}
    with pytest.raises(LoadError, match="token 7 'a中' holds '中', which is outside the byte-level alphabet"):
        from_json(json.dumps(document))


class Ranks:
    """A tokenizer of the tiktoken kind."""


def test_tokenizers_without_known_bytes_are_refused() -> None:
    with pytest.raises(LoadError, match=r"tokenizer class Ranks has no tokenizer.json, so its bytes are not known"):
        token_bytes(Ranks())


def _wrapped(eos: str | None) -> tuple[PreTrainedTokenizerFast, TokenBytes]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=toys.byte_level(), eos_token=eos)
    return tokenizer, from_json(toys.byte_level().to_str())


class Generation:
    def __init__(self, eos_token_id: object) -> None:
        self.eos_token_id = eos_token_id


@pytest.mark.parametrize(
    ("configured", "stop_tokens", "found"),
    [
        (None, (), {0, 2}),
        (7, (), {0, 2, 7}),
        ([7], (), {0, 2, 7}),
        ([7, 8], (), {0, 7, 8}),
        ([7, 8], ("<|im_end|>",), {0, 2, 7, 8}),
        (None, ("<|im_start|>",), {0, 1, 2}),
        (None, ("<|of another model|>",), {0, 2}),
    ],
)
def test_end_ids_are_those_of_tokenizer_config_and_user(
    configured: object, stop_tokens: tuple[str, ...], found: set[int]
) -> None:
    tokenizer, tokens = _wrapped("<|endoftext|>")
    assert eos_ids(tokenizer, Generation(configured), tokens, stop_tokens) == found


def test_end_of_a_turn_in_the_template_ends_an_answer() -> None:
    tokenizer, tokens = _wrapped(None)
    assert eos_ids(tokenizer, Generation([7, 8]), tokens, turn_end="<|im_start|>") == {1, 7, 8}


def test_control_token_that_stands_inside_answers_ends_none() -> None:
    """gpt-oss writes <|end|> behind its first channel, Phi behind its answer."""
    tokenizer, tokens = _wrapped(None)
    writing = tokens.writing(["<|im_end|>"])
    assert writing.pieces[2] == b"<|im_end|>"
    assert writing.fingerprint != tokens.fingerprint
    assert eos_ids(tokenizer, None, writing) == {0}


def test_well_known_end_tokens_count_without_any_config() -> None:
    tokenizer, tokens = _wrapped(None)
    assert eos_ids(tokenizer, None, tokens) == {0, 2}


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path))
    return tmp_path
