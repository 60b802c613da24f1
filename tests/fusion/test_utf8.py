"""The UTF-8 guard: the automaton against Python's own decoder, and trimming."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.utf8 import BOUNDARY, Utf8Guard, state_after, trim
from flowinfer.fusion.vocab import from_json
from tests.conftest import SHARED
from tests.fusion import toys

CHARACTERS = ("a", "é", "߿", "ࠀ", "中", "\ud7ff", "\ue000", "\uffff", "😀", "𠮷", "\U0010ffff", "\x00")


@pytest.mark.parametrize("character", CHARACTERS, ids=lambda c: f"U+{ord(c):04X}")
def test_automaton_ends_at_a_boundary_after_a_whole_character(character: str) -> None:
    assert state_after(character.encode()) == BOUNDARY


@pytest.mark.parametrize("character", CHARACTERS, ids=lambda c: f"U+{ord(c):04X}")
def test_automaton_is_inside_after_each_part_of_a_character(character: str) -> None:
    data = character.encode()
    assert all(state_after(data[:count]) != BOUNDARY for count in range(1, len(data)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xff",
        b"\xe4a",
        b"\xe4\xb8\xe4",
    ],
    ids=repr,
)
def test_automaton_refuses_overlong_forms_surrogates_and_strays(data: bytes) -> None:
    with pytest.raises(ValueError, match="invalid UTF-8"):
        state_after(data)


@given(st.binary(max_size=8))
def test_automaton_accepts_what_python_decodes_and_nothing_else(data: bytes) -> None:
    try:
        is_whole = state_after(data) == BOUNDARY
    except ValueError:
        is_whole = False
    try:
        data.decode()
    except UnicodeDecodeError:
        assert not is_whole
    else:
        assert is_whole


@given(st.text(max_size=20), st.integers(min_value=0, max_value=80))
def test_trim_leaves_whole_characters(text: str, cut: int) -> None:
    data = text.encode()[:cut]
    assert text.startswith(trim(data).decode())
    assert len(data) - len(trim(data)) <= 3


@given(st.text(max_size=20))
def test_trim_keeps_whole_text(text: str) -> None:
    assert trim(text.encode()) == text.encode()


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"", b""),
        (b"\xf0\x9f\x98", b""),
        (b"a\xf0\x9f", b"a"),
        (b"a\xe4", b"a"),
        (b"a\xe4\xb8", b"a"),
        (b"\xc3", b""),
        ("中\xe9".encode()[:-1], "中".encode()),
    ],
    ids=repr,
)
def test_trim_cuts_an_incomplete_character(data: bytes, kept: bytes) -> None:
    assert trim(data) == kept


KEYS = (b"\x80", b"\xad", b"\xb8", b"\xb8\xad", b"\xe4", b"\xe4\xb8", b"\xf0", b"\xff", b"a", b"a\xe4", "中".encode())


def test_mask_allows_only_what_continues_a_character() -> None:
    guard = Utf8Guard(KEYS, "cpu")
    allowed = guard.mask(torch.tensor([state_after(b"\xe4")]))[0].tolist()
    assert [key for key, is_allowed in zip(KEYS, allowed, strict=False) if is_allowed] == [
        b"\x80",
        b"\xad",
        b"\xb8",
        b"\xb8\xad",
    ]


def test_text_may_end_only_at_a_boundary() -> None:
    guard = Utf8Guard(KEYS, "cpu")
    assert guard.mask(torch.arange(8))[:, len(KEYS)].tolist() == [True, *[False] * 7]


def test_guard_follows_the_automaton_over_each_key() -> None:
    guard = Utf8Guard(KEYS, "cpu")
    for slot, key in enumerate(KEYS):
        if guard.mask(torch.tensor([BOUNDARY]))[0, slot]:
            assert guard.advance(BOUNDARY, slot) == state_after(key)


def test_guard_that_is_off_allows_everything() -> None:
    guard = Utf8Guard(KEYS, "cpu", is_strict=False)
    assert guard.mask(torch.arange(8)).all()
    assert guard.advance(BOUNDARY, KEYS.index(b"\xe4")) == BOUNDARY


@pytest.fixture(scope="module")
def vocabularies() -> dict[str, SharedVocabulary]:
    level = toys.head(from_json(toys.byte_level().to_str()), [0, 2])
    piece = toys.head(from_json(toys.sentencepiece().to_str()), [2])
    made = {"toys": SharedVocabulary([level, piece]), "byte-level alone": SharedVocabulary([level])}
    if (SHARED / "data" / "tokenizers").is_dir():
        names = ("gpt2", "mistral-7b-v0.1")
        made["gpt2 x mistral"] = SharedVocabulary([toys.head(toys.real_tokens(name), toys.EOS[name]) for name in names])
    return made


@pytest.mark.parametrize("name", ["toys", "byte-level alone", "gpt2 x mistral"])
@settings(max_examples=25)
@given(data=st.data())
def test_guard_never_lets_invalid_utf8_through(
    name: str, data: st.DataObject, vocabularies: dict[str, SharedVocabulary]
) -> None:
    """Random walks over allowed slots, most of them fragments of characters."""
    if name not in vocabularies:
        pytest.skip("real data not found")
    vocabulary = vocabularies[name]
    guard, state, text = vocabulary.guard, BOUNDARY, b""
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    for _ in range(30):
        allowed = guard.mask(torch.tensor([state]))[0].nonzero()[:, 0]
        assert len(allowed)
        slot = int(allowed[torch.randint(len(allowed), (1,), generator=rng)])
        if slot == vocabulary.eos_slot:
            text.decode()
            continue
        text += vocabulary.keys[slot]
        state = guard.advance(state, slot)
        trim(text).decode()
        assert (state == BOUNDARY) == (trim(text) == text)
