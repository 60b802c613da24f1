"""GGUF heads: llama.cpp's logits, bytes and prompts are those of the same models in transformers, or are refused."""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from flowinfer.backends import hf
from flowinfer.backends.base import Session
from flowinfer.backends.gguf import library
from flowinfer.backends.gguf.context import Context
from flowinfer.backends.gguf.load import GgufModel, load
from flowinfer.errors import LoadError, MemoryShort
from flowinfer.fusion.advance import CanonicalContext
from flowinfer.spec import ModelSpec
from tests.backends.gguf_files import LAB, written

TEXTS = (
    "What is 12 * 3?",
    "小明有3个苹果，又买了15个。他一共有几个？",
    "a <think> b </think>, <|im_end|> and </s>: don't I'll \n\n\t x 12345 \u2581 é 😀",
    "",
)
NAMES = ("qwen", "ds", "yi")


def test_without_the_package_its_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library.library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)
    with pytest.raises(LoadError, match="backend 'gguf' needs the package llama-cpp-python") as caught:
        load(ModelSpec(name="M", ref="m.gguf", backend="gguf"), "cpu")
    assert caught.value.help == ("pip install 'flowinfer[gguf]'; it is built from source: that needs a C++ compiler")


@pytest.fixture(scope="module", autouse=True)
def _kept_library() -> None:
    library.library.cache_clear()


def model(path: Path, **options: Any) -> GgufModel:
    pytest.importorskip("llama_cpp", reason="needs flowinfer[gguf]")
    return load(ModelSpec(name="M", ref=str(path), backend="gguf", **options), "cpu")


@cache
def both(name: str) -> tuple[GgufModel, hf.HfModel]:
    """Return a model of the lab zoo by llama.cpp, in float32, and by transformers."""
    return model(written(name)), hf.load(ModelSpec(name=name, ref=str(LAB / name)), "cpu")


def wanted(session: Session, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the logits behind rows that are read one by one."""
    return torch.cat([session.logits(session.add([row])) for row in rows])


def ids_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(5, 1380), k=length)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_marks_ends_and_prompts_are_those_of_the_checkpoint(name: str) -> None:
    ours, theirs = both(name)
    mine, known = ours.vocabulary(), theirs.vocabulary()
    assert (mine.tokens.pieces, mine.eos_ids, mine.num_columns) == (
        known.tokens.pieces,
        known.eos_ids,
        known.num_columns,
    )
    assert (mine.tokens.specials, mine.tokens.marks) == (known.tokens.specials, known.tokens.marks)
    assert mine.tokens.byte_pieces == known.tokens.byte_pieces
    assert ours.max_positions == theirs.max_positions
    for text in TEXTS:
        assert ours.prompt(text) == theirs.prompt(text)
        assert ours.prompt(text, "<think>\nSo") == theirs.prompt(text, "<think>\nSo")


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers_in_float32(name: str) -> None:
    ours, theirs = both(name)
    rows = [ids_of(60), ids_of(7, 1), ids_of(31, 2), [9]]
    mine = ours.open()
    handles = mine.add(rows)
    assert (mine.logits(handles) - wanted(theirs.open(), rows)).abs().max() < 5e-5
    mine.feed({handles[0]: [7, 8, 9], handles[2]: [11]})
    mine.rollback(handles[0], 5)
    mine.feed({handles[0]: [12]})
    fed = [[*rows[0][:58], 12], rows[1], [*rows[2], 11]]
    assert [mine.length(row) for row in handles[:3]] == [59, 7, 32]
    assert (mine.logits(handles[:3]) - wanted(theirs.open(), fed)).abs().max() < 5e-5


def test_verifying_segments_gives_what_feeding_them_would() -> None:
    ours, _ = both("qwen")
    session = ours.open()
    first, second = session.add([ids_of(20), ids_of(9, 1)])
    found = session.verify({second: [[4, 5], [6]], first: [[7], [8, 9, 10]]})
    rows = [[*ids_of(9, 1), 4, 5], [*ids_of(9, 1), 4, 5, 6], [*ids_of(20), 7], [*ids_of(20), 7, 8, 9, 10]]
    assert (found - wanted(ours.open(), rows)).abs().max() < 5e-5
    assert torch.equal(session.logits([first, second]), found[[3, 1]])


def test_rows_come_and_go_as_a_context_grows() -> None:
    """Sequences and cells are fixed in a context, so rows move: as 24 come, and as one outgrows the 256 first cells."""
    ours, _ = both("qwen")
    session, rows = ours.open(), {}
    for seed in range(24):
        ids = ids_of(6 + 2 * seed, seed)
        handle = session.add([ids])[0]
        rows[handle] = ids
        if seed % 3 == 2:
            gone = next(iter(rows))
            session.remove([gone])
            del rows[gone]
    session.feed({row: [5, 6] for row in rows} | {handle: ids_of(250)})
    fed = [[*ids, 5, 6] for ids in list(rows.values())[:-1:5]] + [[*rows[handle], *ids_of(250)]]
    assert (session.logits([*list(rows)[:-1:5], handle]) - wanted(ours.open(), fed)).abs().max() < 5e-5


def test_prompts_that_begin_alike_share_what_is_read_and_nothing_else() -> None:
    ours, _ = both("ds")
    begin = ids_of(50)
    rows = [[*begin, *ids_of(5, 1)], [*begin, *ids_of(9, 2)], begin, [*begin[:20], *ids_of(30, 3)]]
    session = ours.open()
    handles = session.add(rows[:2])
    handles += session.add(rows[2:])
    alone = torch.cat([wanted(ours.open(), [row]) for row in rows])
    assert (session.logits(handles) - alone).abs().max() < 5e-5
    session.remove(handles[:1])
    session.rollback(handles[1], 20)
    session.feed({handles[1]: [3], handles[2]: [4]})
    fed = [[*rows[1][:-20], 3], [*begin, 4]]
    found = torch.cat([wanted(ours.open(), [row]) for row in fed])
    assert (session.logits(handles[1:3]) - found).abs().max() < 5e-5


def test_more_rows_than_llama_cpp_holds_are_short_memory() -> None:
    ours, _ = both("yi")
    with pytest.raises(MemoryShort, match="'M' holds at most 256 rows at once"):
        ours.open().add([[5]] * 300)


@pytest.mark.parametrize("name", NAMES)
def test_canonical_contexts_are_those_of_the_checkpoints_tokenizer(name: str) -> None:
    ours, theirs = both(name)
    for text in TEXTS:
        found = []
        for head in (ours, theirs):
            tokens = head.vocabulary().tokens
            context = CanonicalContext(head.tokenizer, tokens)
            for byte in text.encode():
                context.append(bytes([byte]), tokens.cover(bytes([byte])))
            found.append(context.ids)
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("kind", "options", "is_exact"),
    [
        ("F32", {}, True),
        ("F32", {"kv_type": "float16"}, False),
        ("F16", {}, False),
        ("Q8_0", {"kv_type": "float32"}, False),
        ("Q4_0", {"kv_type": "q8_0"}, False),
    ],
)
def test_only_float32_throughout_is_exact(kind: str, options: dict[str, str], is_exact: bool) -> None:
    ours = model(written("qwen", kind), **options)
    assert ours.is_exact is is_exact
    exact = both("qwen")[0]
    ids = list(exact.prompt("What is 12 * 3?").ids)
    assert (wanted(ours.open(), [ids]) - wanted(exact.open(), [ids])).abs().max() < (1e-9 if is_exact else 2)


def test_a_prompt_begins_once_with_what_llama_cpp_begins_every_prompt_with(tmp_path: Path) -> None:
    bare = model(written("ds", folder=tmp_path, add_bos=True, template=None))
    begin = bare.tokenizer.begin_id
    assert bare.prompt("ab").ids == (begin, *both("ds")[0].tokenizer.ids("ab", is_parsed=False))
    assert (
        both("ds")[0].prompt("ab").ids.count(begin)
        == 1
        == model(written("ds", add_bos=True)).prompt("ab").ids.count(begin)
    )


def test_fewer_positions_and_plain_prompts_can_be_asked_for() -> None:
    ours = model(written("yi"), context_length=64, chat="off", mmap=False, threads=1)
    assert ours.max_positions == 64 and ours.prompt("ab").text == "ab" and not ours.notes


def test_heads_of_one_file_hold_its_weights_once(tmp_path: Path) -> None:
    path = written("yi", folder=tmp_path)
    first, second, apart = model(path), model(path, system="Be brief.", chat="auto"), model(path, mmap=False)
    assert first._settings.model is second._settings.model is not apart._settings.model
    held = weakref.ref(first._settings.model)
    del first
    assert held() is not None
    del second
    gc.collect()
    assert held() is None


def test_more_positions_than_the_file_has_are_not_had() -> None:
    (note,) = model(written("yi"), context_length=100_000).notes
    assert note == f"'M' reads {both('yi')[0].max_positions} tokens at most, whatever context_length says"


@pytest.mark.parametrize(("device", "layers", "cure"), [("cuda:0", None, "device=cpu"), ("cpu", -1, "doctor` says")])
def test_a_gpu_that_llama_cpp_was_not_built_for_is_told(device: str, layers: int | None, cure: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs flowinfer[gguf]")
    spec = ModelSpec(name="M", ref=str(written("yi")), backend="gguf", gpu_layers=layers)
    if library.library().llama_supports_gpu_offload():
        pytest.skip("it was built for GPUs")
    (note,) = load(spec, device).notes
    assert note.startswith("llama.cpp was built without GPUs here: 'M' computes on the CPU (") and cure in note
    assert load(spec.model_copy(update={"gpu_layers": 0}), "cpu").notes == ()


class Asked:
    """llama.cpp that notes what it is asked to load, and loads nothing."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def llama_model_load_from_file(self, path: bytes, wanted: Any) -> None:
        self.path, self.wanted = path, wanted


@pytest.mark.parametrize(
    ("device", "options", "told"),
    [
        ("cpu", {}, {"n_gpu_layers": 0, "load_mode": "LLAMA_LOAD_MODE_AUTO"}),
        ("cpu", {"gpu_layers": -1}, {"n_gpu_layers": -1, "split_mode": "LLAMA_SPLIT_MODE_LAYER"}),
        ("cpu", {"mmap": False}, {"load_mode": "LLAMA_LOAD_MODE_NONE"}),
        ("cuda:0", {"gpu_layers": 0}, {"n_gpu_layers": 0}),
        ("cuda:1", {}, {"n_gpu_layers": -1, "split_mode": "LLAMA_SPLIT_MODE_NONE", "main_gpu": 1}),
        ("cuda", {"gpu_layers": 7}, {"n_gpu_layers": 7, "split_mode": "LLAMA_SPLIT_MODE_NONE", "main_gpu": 0}),
    ],
)
def test_llama_cpp_is_asked_for_what_the_options_say(
    device: str, options: dict[str, Any], told: dict[str, int | str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="needs flowinfer[gguf]")
    asked = Asked(library.library())
    monkeypatch.setattr("flowinfer.backends.gguf.load.library", lambda: asked)
    spec = ModelSpec(name="M", ref=str(written("yi", folder=tmp_path)), backend="gguf", **options)
    with pytest.raises(LoadError, match="model 'M' cannot be loaded"):
        load(spec, device)
    wanted = {name: getattr(asked, one) if isinstance(one, str) else one for name, one in told.items()}
    assert {name: getattr(asked.wanted, name) for name in told} == wanted
    assert not vars(asked.wanted), "a field that llama.cpp does not have"


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("F32", {}, {"type_k": 0, "type_v": 0, "flash_attn_type": 0, "n_seq_max": 3, "n_ctx": 3 * 256}),
        ("F32", {"kv_type": "q8_0"}, {"type_k": 8, "type_v": 8, "flash_attn_type": -1}),
        ("Q8_0", {"threads": 3}, {"type_k": 1, "flash_attn_type": -1, "n_threads": 3, "n_threads_batch": 3}),
        ("Q8_0", {}, {"offload_kqv": False, "op_offload": False, "kv_unified": False, "swa_full": True}),
    ],
)
def test_a_context_is_made_as_the_options_say(kind: str, options: dict[str, Any], told: dict[str, int]) -> None:
    made = Context(model(written("qwen", kind), **options)._settings, 3, 100)._parameters()
    assert {name: getattr(made, name) for name in told} == told and not vars(made)


def test_a_system_message_needs_a_template() -> None:
    with pytest.raises(LoadError, match="the file has no chat template, which the option 'system' needs"):
        model(written("yi", template=None), system="Be brief.")


def test_what_holds_no_model_that_llama_cpp_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LoadError, match=r"model 'M' cannot be loaded from '.*gguf': .*unknown model architecture: 'new'"
    ):
        model(written("qwen", folder=tmp_path, architecture="new"))


@pytest.mark.parametrize(
    ("kind", "reason"), [("bert", "WordPiece tokenizers lose spaces and case"), ("none", "the file has no tokenizer")]
)
def test_a_vocabulary_whose_bytes_are_not_known_is_refused(kind: str, reason: str) -> None:
    with pytest.raises(LoadError, match=f"model 'M' .*: {reason}"):
        model(written("qwen", tokenizer=kind))


def test_a_vocabulary_that_writes_other_bytes_than_it_says_is_refused() -> None:
    with pytest.raises(
        LoadError, match=r"300 tokens write other bytes than they say: 700 \('中700' writes b'\[UNK_BYTE"
    ):
        model(written("qwen", prefix="中"))
