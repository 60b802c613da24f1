"""Headers of GGUF files: what they hold, and what is wrong with those that come from anywhere."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from flowinfer.errors import LoadError
from flowinfer.stores.gguf import Array, read_gguf
from tests.ggufs import META, TENSORS, split, write


def test_a_header_tells_what_a_file_holds(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path / "m.gguf"))
    assert (found.architecture, found.quantization, found.context_length) == ("llama", "F32", 512)
    assert (found.num_parameters, found.is_float32) == (32, True)
    assert found.chat_template == "{{ messages[0].content }}"
    assert [(one.name, one.type, one.shape, one.num_bytes) for one in found.tensors] == [
        ("token_embd.weight", "F32", (8, 3), 96),
        ("output_norm.weight", "F32", (8,), 32),
    ]
    assert found.num_bytes == (tmp_path / "m.gguf").stat().st_size


def test_lists_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path / "m.gguf", {**META, "llama.attention.head_count_kv": [1, 4, 2]}))
    tokens = found.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Array) and tokens.count == 3 and tokens.values() == ["a", "b", "ab"]
    assert found.whole("attention.head_count_kv") == 4  # of one for each layer, the largest


def test_a_file_that_does_not_say_how_it_is_quantized_is_asked_its_tensors(tmp_path: Path) -> None:
    meta = {key: one for key, one in META.items() if key != "general.file_type"}
    assert read_gguf(write(tmp_path / "m.gguf", meta)).quantization == "F32"


OTHERS = {
    "is an adapter (LoRA), which changes a model and is none": {"general.type": "adapter", "adapter.type": "lora"},
    "reads pictures or sound for a model and writes nothing": {"general.architecture": "clip"},
    "helps to make or to steer a model and is none": {"general.type": "imatrix"},
    "turns texts into vectors (embeddings, ranks) and writes none": {"general.architecture": "nomic-bert"},
    "turns texts into vectors": {"llama.pooling_type": 3},
}


@pytest.mark.parametrize("told", OTHERS)
def test_files_that_are_no_language_models_say_what_they_are(told: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        read_gguf(write(tmp_path / "m.gguf", {**META, **OTHERS[told]}))
    assert caught.value.message.startswith(f"{tmp_path / 'm.gguf'} {told}") and caught.value.help


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="holds a vocabulary and no weights"):
        read_gguf(write(tmp_path / "m.gguf", META, {}))


def test_a_split_model_is_read_whole_from_any_of_its_files(tmp_path: Path) -> None:
    first, second = split(tmp_path / "big.gguf")
    for part in (first, second):
        found = read_gguf(part)
        assert found.parts == (first, second) and found.architecture == "llama" and len(found.tensors) == 2
    second.unlink()
    with pytest.raises(LoadError, match=r"of its 2 files 'big-00002-of-00002.gguf' is missing") as caught:
        read_gguf(first)
    assert caught.value.help == "download them all"


def test_a_split_model_whose_files_were_renamed_is_refused(tmp_path: Path) -> None:
    first, _ = split(tmp_path / "big.gguf")
    with pytest.raises(LoadError, match="one of 2 files of a model, and its name does not say which"):
        read_gguf(first.rename(tmp_path / "model.gguf"))


def at(data: bytes, place: int, form: str, number: int) -> bytes:
    """Return data with another number in one place."""
    return data[:place] + struct.pack(form, number) + data[place + struct.calcsize(form) :]


DAMAGED = {
    "empty": (lambda data: b"", "it has 0 bytes"),
    "another file": (lambda data: b"PK" + data[2:], "it does not begin as GGUF files do"),
    "cut short": (lambda data: data[:-40], "it ends 40 bytes too early"),
    "cut in the header": (lambda data: data[:200], "its header"),
    "endless tensors": (lambda data: at(data, 8, "<Q", 2**63), "its header tells of more than it holds"),
    "endless metadata": (lambda data: at(data, 16, "<Q", 2**40), "its header tells of more than it holds"),
    "endless text": (lambda data: at(data, 24, "<Q", 2**62), "its header is longer than the file"),
    "no kind of value": (lambda data: at(data, 24 + 8 + 20, "<I", 77), "a kind of value, 77, that there is not"),
    "a huge tensor": (
        lambda data: data.replace(struct.pack("<QQ", 8, 3), struct.pack("<QQ", 2**40, 2**20)),
        "a shape that cannot be: 1099511627776 x 1048576",
    ),
    "many axes": (lambda data: data.replace(struct.pack("<IQQ", 2, 8, 3), struct.pack("<IQQ", 9, 8, 3)), "has 9 axes"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_with_what_is_wrong_with_it(kind: str, tmp_path: Path) -> None:
    change, told = DAMAGED[kind]
    path = write(tmp_path / "m.gguf")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(LoadError) as caught:
        read_gguf(path)
    assert caught.value.message.startswith(f"{path} is damaged: ") and told in caught.value.message
    assert caught.value.help == "download it again"


@pytest.mark.parametrize(
    ("begin", "told", "cure"),
    [
        (b"GGUF" + struct.pack("<I", 1), "is of version 1; llama.cpp reads versions 2 and 3", "convert the model anew"),
        (b"GGUF" + struct.pack(">I", 3), "is big-endian; llama.cpp reads versions 2 and 3", "convert the model anew"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS", "git lfs pull, in its folder"),
    ],
)
def test_a_whole_file_of_another_kind_is_not_called_damaged(begin: bytes, told: str, cure: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(begin + path.read_bytes()[len(begin) :])
    with pytest.raises(LoadError) as caught:
        read_gguf(path)
    assert caught.value.message.startswith(f"{path} {told}") and caught.value.help == cure


def test_any_bytes_are_a_model_or_a_message(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data))
        try:
            found = read_gguf(path)
            assert found.quantization and found.num_parameters >= 0
            for one in found.metadata.values():
                assert not isinstance(one, Array) or len(one.values()) == one.count
        except LoadError as error:
            assert str(path) in error.message and error.help


def test_nothing_waits_for_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, told in (
        ("pipe.gguf", "it is no regular file"),
        (".", "cannot be read"),
        ("absent.gguf", "cannot be read"),
    ):
        with pytest.raises(LoadError, match=told):
            read_gguf(tmp_path / name)


def test_tensors_that_lie_side_by_side_are_all_counted(tmp_path: Path) -> None:
    assert len(read_gguf(write(tmp_path / "m.gguf", META, TENSORS, version=2)).tensors) == len(TENSORS)
