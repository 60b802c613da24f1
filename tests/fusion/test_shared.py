"""The shared vocabulary: whose tokens are one slot, how logits become shared probabilities, what is left out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch

from flowinfer.errors import LoadError
from flowinfer.fusion.shared import SharedVocabulary, SharedVocabularyWarning
from flowinfer.fusion.vocab import NEVER_VALID, HeadVocabulary, from_json
from tests.fusion import toys


def slot(vocabulary: SharedVocabulary, key: bytes) -> int:
    return vocabulary.keys.index(key)


def random_logits(head: HeadVocabulary, *, rows: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(head.num_columns)
    return torch.randn(rows, head.num_columns, generator=generator, dtype=torch.float64).to(dtype) * 3


def level(num_columns: int | None = None) -> HeadVocabulary:
    return toys.head(from_json(toys.byte_level().to_str()), [0, 2], num_columns)


def piece() -> HeadVocabulary:
    return toys.head(from_json(toys.sentencepiece().to_str()), [2])


def small() -> HeadVocabulary:
    return toys.head(from_json(toys.byte_level(300).to_str()), [0])


def real(name: str) -> HeadVocabulary:
    return toys.head(toys.real_tokens(name), toys.EOS[name])


A = [b"a", b"ab", b"b", None]
B = [None, b"b", b"a", b"a"]


def test_keys_are_the_sorted_union_of_all_text() -> None:
    vocabulary = SharedVocabulary([toys.head(A, [3]), toys.head(B, [0])])
    assert vocabulary.keys == (b"a", b"ab", b"b")
    assert (vocabulary.eos_slot, vocabulary.size) == (3, 4)


def test_slots_do_not_depend_on_the_order_of_the_heads() -> None:
    orders = [SharedVocabulary(list(heads)).keys for heads in permutations([level(), piece(), small()])]
    assert len(set(orders)) == 1


def test_probabilities_of_ids_with_equal_bytes_add() -> None:
    vocabulary = SharedVocabulary([toys.head(A, [3]), toys.head(B, [0])])
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    assert vocabulary.lift(1, probs.log())[0].tolist() == pytest.approx([0.7, 0.0, 0.2, 0.1])


def test_three_ids_of_one_key_add_too() -> None:
    vocabulary = SharedVocabulary([toys.head([b"x", b"x", b"x", b"y"]), toys.head([b"x", b"y"])])
    lifted = vocabulary.lift(0, torch.zeros(1, 4, dtype=torch.float64))[0]
    assert lifted.tolist() == pytest.approx([0.75, 0.25, 0.0])


@pytest.mark.parametrize("heads", [(level, piece), (level, level), (piece, level)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_lifted_rows_sum_to_1(heads: tuple[object, object], dtype: torch.dtype) -> None:
    made = [make() for make in heads]
    vocabulary = SharedVocabulary(made)
    for index, head in enumerate(made):
        lifted = vocabulary.lift(index, random_logits(head, dtype=dtype))
        assert lifted.sum(-1).double().tolist() == pytest.approx(
            [1.0, 1.0], abs=1e-9 if dtype is torch.float64 else 1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_upcast_before_softmax(dtype: torch.dtype) -> None:
    """In bfloat16 these two probabilities would round to a tie."""
    vocabulary = SharedVocabulary([toys.head([b"a", b"b", b"c"]), toys.head([b"c", b"b", b"a"])])
    logits = torch.tensor([[1.0, 1.0078125, 9.0]]).to(dtype)
    lifted = vocabulary.lift(0, logits)
    assert lifted.dtype is torch.float32
    assert lifted[0, 1] > lifted[0, 0]


@pytest.mark.parametrize("others", [(), (piece,)], ids=["alone", "with another class"])
@pytest.mark.parametrize("junk", [1e4, float("inf"), float("nan")])
def test_columns_without_a_token_never_count(others: tuple[object, ...], junk: float) -> None:
    """Qwen2.5-7B has 152,064 columns for 151,665 tokens."""
    width = len(level().tokens.pieces)
    head = level(width + 5)
    vocabulary = SharedVocabulary([head, *(make() for make in others)])
    logits = random_logits(head)
    clean = vocabulary.lift(0, logits)
    logits[:, width:] = junk
    assert torch.equal(vocabulary.lift(0, logits), clean)


@pytest.mark.parametrize("others", [(), (piece,)], ids=["alone", "with another class"])
def test_control_tokens_outside_the_end_class_never_count(others: tuple[object, ...]) -> None:
    vocabulary = SharedVocabulary([level(), *(make() for make in others)])
    logits = random_logits(level())
    clean = vocabulary.lift(0, logits)
    logits[:, level().tokens.specials["<|im_start|>"]] = 1e4
    assert torch.equal(vocabulary.lift(0, logits), clean)


@pytest.mark.parametrize(("eos", "mass"), [("sum", 0.7), ("max", 0.4)])
@pytest.mark.parametrize("others", [(), (piece,)], ids=["alone", "with another class"])
def test_end_tokens_of_a_head_are_pooled(eos: str, mass: float, others: tuple[object, ...]) -> None:
    vocabulary = SharedVocabulary([level(), *(make() for make in others)], eos=eos)
    probs = torch.full((1, level().num_columns), 1e-30, dtype=torch.float64)
    probs[0, [0, 2, 5]] = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
    assert float(vocabulary.lift(0, probs.log())[0, vocabulary.eos_slot]) == pytest.approx(mass)


def test_votes_to_end_are_pooled_over_heads_with_different_end_tokens() -> None:
    """No single end string wins, yet the group ends: each head gives 0.4 to its own and less to any other key."""
    heads = [
        toys.head([None, None, b"a", b"b", b"c"], [0, 1]),
        toys.head([b"a", b"b", b"c", None], [3]),
        toys.head([b"c", None, b"a", b"b"], [1]),
    ]
    rows = [[0.2, 0.2, 0.6, 0.0, 0.0], [0.0, 0.6, 0.0, 0.4], [0.6, 0.4, 0.0, 0.0]]
    vocabulary = SharedVocabulary(heads)
    mean = sum(vocabulary.lift(k, torch.tensor([row]).log()) / 3 for k, row in enumerate(rows))
    assert int(mean.argmax()) == vocabulary.eos_slot


def test_end_ids_beyond_the_columns_are_passed_over() -> None:
    vocabulary = SharedVocabulary([toys.head([b"a", b"b"], [7])])
    assert vocabulary.lift(0, torch.zeros(1, 2)).tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("others", [(), (piece,)], ids=["alone", "with another class"])
def test_a_key_goes_back_to_the_heads_own_id(others: tuple[object, ...]) -> None:
    head = level()
    vocabulary = SharedVocabulary([head, *(make() for make in others)])
    for token_id in head.text_ids():
        key = head.tokens.pieces[token_id]
        ids = vocabulary.ids(0, slot(vocabulary, key))
        assert ids == (token_id,)


def test_a_key_that_a_head_lacks_becomes_its_greedy_cover() -> None:
    first, second = level(), piece()
    vocabulary = SharedVocabulary([first, second])
    for index, head in enumerate((first, second)):
        for number, key in enumerate(vocabulary.keys):
            ids = vocabulary.ids(index, number)
            assert b"".join(head.tokens.pieces[i] or b"" for i in ids) == key


@pytest.mark.parametrize("heads", [(level(), piece()), (small(), level(), piece()), (level(), level())], ids=len)
def test_all_ids_are_the_ids_of_every_key(heads: tuple[HeadVocabulary, ...]) -> None:
    vocabulary = SharedVocabulary(heads)
    for head in range(len(heads)):
        counts, ids = vocabulary.all_ids(head)
        expected = [vocabulary.ids(head, slot) for slot in range(vocabulary.eos_slot)]
        assert counts.tolist() == [len(own) for own in expected]
        assert ids.tolist() == [token_id for own in expected for token_id in own]


def test_has_tells_which_keys_are_single_tokens_of_a_head() -> None:
    vocabulary = SharedVocabulary([toys.head(A, [3]), toys.head(B, [0])])
    assert vocabulary.has(0).tolist() == [True, True, True, True]
    assert vocabulary.has(1).tolist() == [True, False, True, True]


def test_first_slots_lead_to_the_first_token_of_the_cover() -> None:
    heads = [toys.head([b"a", b"b", b"abc", b"c"]), toys.head([b"ab", b"c", b"a", b"b"])]
    vocabulary = SharedVocabulary(heads)
    firsts = [vocabulary.keys[i] for i in vocabulary.first_slots(0).tolist()[:-1]]
    assert dict(zip(vocabulary.keys, firsts, strict=True)) == {
        b"a": b"a",
        b"ab": b"a",
        b"abc": b"abc",
        b"b": b"b",
        b"c": b"c",
    }


def test_a_first_token_that_is_left_out_counts_as_nothing() -> None:
    """A character head writes ö whole; the byte-level head starts it with a byte that the other cannot write."""
    character = toys.head(["ö".encode(), b"a", None], [2])
    with pytest.warns(SharedVocabularyWarning):
        vocabulary = SharedVocabulary([character, level()])
    first = int(vocabulary.first_slots(1)[slot(vocabulary, "ö".encode())])
    lifted = vocabulary.lift(1, random_logits(level()))
    assert lifted[:, first].tolist() == [0.0, 0.0]


def test_heads_with_one_map_are_fused_in_id_space() -> None:
    vocabulary = SharedVocabulary([level(), level()])
    assert vocabulary.is_identity
    assert vocabulary.size == len(level().text_ids()) + 1


@pytest.mark.parametrize(
    "other",
    [
        toys.head(from_json(toys.byte_level().to_str()), [0]),
        toys.head(from_json(toys.byte_level().to_str()), [0, 2], 500),
        toys.head(from_json(toys.byte_level(380).to_str()), [0, 2]),
    ],
    ids=["other end ids", "other columns", "other tokens"],
)
def test_heads_that_differ_are_not_fused_in_id_space(other: HeadVocabulary) -> None:
    assert not SharedVocabulary([level(), other]).is_identity


def test_qwen_and_its_r1_distill_are_not_fused_in_id_space() -> None:
    """Id 151643 ends an R1 answer and a document of Qwen's; higher ids mean different control tokens."""
    heads = [real("qwen2.5-instruct"), real("deepseek-r1-distill-qwen")]
    vocabulary = SharedVocabulary(heads)
    assert not vocabulary.is_identity
    shared = vocabulary.has(0) & vocabulary.has(1)
    assert int(shared.sum()) - 1 >= 151_600


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5-instruct"])
def test_a_character_is_one_slot_in_byte_level_and_sentencepiece(name: str) -> None:
    """'é' is Ã© in one vocabulary's strings and é in the other's."""
    vocabulary = SharedVocabulary([real(name), real("baichuan-7b")])
    shared = vocabulary.has(0) & vocabulary.has(1)
    assert shared[slot(vocabulary, "é".encode())]


def test_display_strings_that_look_alike_are_different_slots() -> None:
    """A SentencePiece piece 'Ã©' is four bytes; the byte-level piece of the same look writes é."""
    assert toys.real("gpt2").encode("é").tokens == ["Ã©"]
    vocabulary = SharedVocabulary([real("gpt2"), toys.head([*(bytes([i]) for i in range(256)), "Ã©".encode()])])
    both = (vocabulary.has(0) & vocabulary.has(1)).tolist()
    assert not both[slot(vocabulary, "é".encode())]
    assert not both[slot(vocabulary, "Ã©".encode())]


def test_qwen_and_baichuan_agree_on_chinese_where_strings_do_not() -> None:
    """String rules match none of the Chinese tokens of a byte-level and a SentencePiece vocabulary."""
    names = ("qwen2.5-instruct", "baichuan-7b")
    vocabulary = SharedVocabulary([real(name) for name in names])
    both = (vocabulary.has(0) & vocabulary.has(1)).tolist()
    by_bytes = sum(is_both and _is_cjk(key) for key, is_both in zip(vocabulary.keys, both, strict=False))
    left, right = (set(toys.real(name).get_vocab()) for name in names)
    by_strings = sum(_is_cjk(text.encode()) for text in left & right)
    assert by_bytes > 5000
    assert by_strings == 0


def _is_cjk(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return bool(text) and all("\u4e00" <= character <= "\u9fff" for character in text)


def test_bytes_that_stand_in_no_text_are_left_out_without_a_word() -> None:
    """A vocabulary of whole UTF-8 needs no 0xC0, 0xC1 or 0xF5 and up: that is no missing byte fallback."""
    full, valid = [bytes([i]) for i in range(256)], [bytes([i]) for i in range(256) if i not in NEVER_VALID]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocabulary = SharedVocabulary([toys.head(full), toys.head(valid)])
    assert len(vocabulary.keys) == 256 - len(NEVER_VALID)


def test_keys_that_babyllama_cannot_write_are_left_out_with_a_warning() -> None:
    heads = [toys.head(toys.story_tokens("stories260K"), [1, 2]), toys.head(toys.story_tokens("babyllama105"), [1, 2])]
    union = {head.tokens.pieces[i] for head in heads for i in head.text_ids()}
    with pytest.warns(SharedVocabularyWarning) as caught:
        vocabulary = SharedVocabulary(heads)
    assert [str(warning.message) for warning in caught] == [
        f"head 2 of the group has no byte fallback: {len(union) - len(vocabulary.keys)} of {len(union)} shared tokens"
        " that it cannot write are left out"
    ]
    assert 0 < len(vocabulary.keys) < len(union)


def test_every_key_that_is_kept_can_be_written_by_babyllama() -> None:
    heads = [toys.head(toys.story_tokens(name), [1, 2]) for name in ("stories260K", "babyllama105")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SharedVocabularyWarning)
        vocabulary = SharedVocabulary(heads)
    assert all(heads[1].tokens.try_cover(key) for key in vocabulary.keys)


def test_left_out_keys_are_told_every_time() -> None:
    """Also when the vocabulary is large enough to be kept on disk."""
    heads = [real("gpt2"), toys.head(toys.story_tokens("babyllama105"), [1, 2])]
    for _ in range(2):
        with pytest.warns(SharedVocabularyWarning, match="cannot write are left out"):
            SharedVocabulary(heads)


def test_mass_of_left_out_keys_is_shared_among_the_others() -> None:
    heads = [toys.head([b"a", b"\n", b"b"]), toys.head([b"a", b"b"])]
    with pytest.warns(SharedVocabularyWarning):
        vocabulary = SharedVocabulary(heads)
    lifted = vocabulary.lift(0, torch.tensor([[0.2, 0.6, 0.2]]).log())
    assert lifted[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_a_head_that_can_write_nothing_of_the_others_is_refused() -> None:
    with (
        warnings.catch_warnings(),
        pytest.raises(LoadError, match="head 1 of the group can write none of the others' tokens"),
    ):
        warnings.simplefilter("ignore", SharedVocabularyWarning)
        SharedVocabulary([toys.head([b"x"]), toys.head([b"y"])])


def test_a_large_vocabulary_read_from_disk_equals_the_built_one() -> None:
    heads = [real("gpt2"), real("mistral-7b-v0.1")]
    built, read = SharedVocabulary(heads), SharedVocabulary(heads)
    assert read.keys == built.keys
    for index, head in enumerate(heads):
        logits = random_logits(head, rows=1, dtype=torch.float32)
        assert torch.equal(read.lift(index, logits), built.lift(index, logits))


@pytest.mark.parametrize("damage", ["empty", "torn", "flipped", "other"])
def test_a_damaged_file_of_a_vocabulary_is_built_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path))
    heads = [real("gpt2"), real("mistral-7b-v0.1")]
    whole = SharedVocabulary(heads)
    (file,) = (tmp_path / "vocabularies").iterdir()
    data = file.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    file.write_bytes({"empty": b"", "torn": data[:middle], "flipped": flipped, "other": b"{}"}[damage])
    again = SharedVocabulary(heads)
    assert again.keys == whole.keys and file.read_bytes() == data
    logits = random_logits(heads[0], rows=1, dtype=torch.float32)
    assert torch.equal(again.lift(0, logits), whole.lift(0, logits))


@pytest.mark.parametrize("names", [("qwen2.5-instruct", "mistral-7b-v0.1"), ("gpt2", "baichuan-7b")])
def test_lifted_rows_of_real_vocabularies_sum_to_1(names: tuple[str, str]) -> None:
    heads = [real(name) for name in names]
    vocabulary = SharedVocabulary(heads)
    for index, head in enumerate(heads):
        assert float(vocabulary.lift(index, random_logits(head, rows=1)).sum()) == pytest.approx(1, abs=1e-9)


def test_a_dummy_prefix_is_taken_off_the_first_token_of_rows_that_begin() -> None:
    joined = replace(toys.hand_made([b" a", b"a", b" b", b"c", b"  a", b" ", b"b"]), has_dummy_prefix=True)
    vocabulary = SharedVocabulary([toys.head(joined), toys.head([b"a", b"b", b"c", b" "])])
    probs = vocabulary.lift(0, torch.tensor([[3.0, 1.0, 2.0, 0.5, 0.2, 0.1, -9.0]] * 2, dtype=torch.float64))
    first = vocabulary.lift_first(probs, torch.tensor([True, False]))
    a, spaced_a = slot(vocabulary, b"a"), slot(vocabulary, b" a")
    assert first[0, a] == pytest.approx(float(probs[0, a] + probs[0, spaced_a]))
    b, spaced_b = slot(vocabulary, b"b"), slot(vocabulary, b" b")
    assert first[0, b] == pytest.approx(float(probs[0, b] + probs[0, spaced_b]))
    assert first[0, spaced_a] == 0
    for kept in (b"c", b"  a", b" "):
        assert first[0, slot(vocabulary, kept)] == probs[0, slot(vocabulary, kept)]
    assert first[0].sum() == pytest.approx(1)
    assert torch.equal(first[1], probs[1])
