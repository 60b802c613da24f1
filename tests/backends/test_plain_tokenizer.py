"""A tokenizer whose files are understood is the one that transformers makes of them; any other is transformers' own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from flowinfer.backends.plain_tokenizer import understood
from tests.backends.gguf_files import LAB

_REAL = Path(__file__).parents[3] / "shared/data/tokenizers"
Change = Callable[[Path], object]


def same(folder: Path) -> bool:
    """Whether a folder's tokenizer is understood, and so that nothing tells it from transformers'."""
    found, theirs = understood(folder), PreTrainedTokenizerFast.from_pretrained(str(folder))
    if found is None:
        return False
    assert found.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert (found.eos_token_id, found.special_tokens_map) == (theirs.eos_token_id, theirs.special_tokens_map)
    assert found.get_chat_template() == (theirs.get_chat_template() if theirs.chat_template else None)
    return True


def config(**entries: Any) -> Change:
    """Let a tokenizer's config say more."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def backend(**entries: Any) -> Change:
    """Let a tokenizer.json say other things."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def file(name: str, text: str) -> Change:
    """Put another file beside."""
    return lambda folder: (folder / name).write_text(text)


def listed(**flags: bool) -> Change:
    """Let the config list the added tokens too, the first one with other flags."""

    def change(folder: Path) -> None:
        added = {str(one.pop("id")): one for one in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
        next(iter(added.values())).update(flags)
        config(added_tokens_decoder=added)(folder)

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the smallest real tokenizer's files."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(LAB / "qwen" / name, tmp_path / name)
    return tmp_path


_LOUD = {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "normalized": True, "rstrip": False}


@pytest.mark.parametrize(
    "change",
    [
        config(),
        config(eos_token=_LOUD | {"single_word": False}),
        config(eos_token=None),
        config(bos_token="<|endoftext|>", add_bos_token=True, add_eos_token=True),
        config(extra_special_tokens=["<|im_start|>"]),
        config(additional_special_tokens=["<|im_start|>", "<|im_end|>"], legacy=True, sp_model_kwargs={}),
        config(chat_template="{{ messages }}"),
        lambda folder: (folder / "chat_template.jinja").unlink(),
        backend(post_processor=None),
        listed(),
    ],
)
def test_what_is_understood_is_what_transformers_makes_of_it(change: Change, folder: Path) -> None:
    change(folder)
    assert same(folder)


@pytest.mark.parametrize(
    "change",
    [
        config(eos_token="<|other|>"),
        config(eos_token="the"),
        config(pad_token="<|new|>"),
        config(extra_special_tokens=["<|new|>"]),
        config(extra_special_tokens={"image_token": "<|im_start|>"}),
        config(image_token="<|im_start|>"),
        config(add_prefix_space=True),
        config(chat_template=[{"name": "default", "template": "{{ messages }}"}]),
        config(padding_side="left"),
        backend(truncation={"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}),
        listed(normalized=True),
        listed(special=False),
        file("special_tokens_map.json", '{"eos_token": "<|im_start|>"}'),
        file("added_tokens.json", '{"<|new|>": 2000}'),
    ],
)
def test_anything_else_is_left_to_transformers(change: Change, folder: Path) -> None:
    change(folder)
    assert not same(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"model": 5}', None])
def test_damaged_and_missing_files_are_not_understood(name: str, text: str | None, folder: Path) -> None:
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    assert understood(folder) is None


@pytest.mark.slow
@pytest.mark.skipif(not _REAL.is_dir(), reason="no real tokenizers here")
@pytest.mark.parametrize(
    "name", ["qwen2.5-instruct", "deepseek-r1-distill-qwen", "gpt2", "mistral-7b-v0.1", "baichuan-7b"]
)
def test_published_tokenizers_are_understood(name: str) -> None:
    assert same(_REAL / name)
