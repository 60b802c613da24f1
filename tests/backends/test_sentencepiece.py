"""SentencePiece models without tokenizer.json: the same ids as SentencePiece gives, or refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from flowinfer.backends.sentencepiece import convert
from flowinfer.backends.tokenizers import load_tokenizer
from flowinfer.errors import LoadError
from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.vocab import token_bytes
from tests.conftest import shared_path
from tests.fusion import toys

TEXTS = ("The robot has 3 apples and buys 15 more.", "小明有3个苹果，又买了15个。", "    return  x + 1\n\n\n", "a" * 50)
COMMON = {"vocab_size": 480, "byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2}
AS_IT_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
UNIGRAM = {"model_type": "unigram", "required_chars": "</s>0xA", **AS_IT_IS}
"""A vocabulary without one of these characters would find the name of a byte in a typed text, and is refused."""
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"model_type": "bpe", **AS_IT_IS},
    "Gemma": {
        "model_type": "bpe",
        **AS_IT_IS,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["▁▁", "▁▁▁", "<table>", "\n\n"],
    },
    "NFKC": {"model_type": "bpe"},
    "unigram": {**UNIGRAM},
    "unigram of spaces": {
        **UNIGRAM,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["▁▁", "<table>", "\n"],
    },
}


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("sentencepiece", reason="the extra 'sentencepiece' is not installed")


def trained(library: Any, folder: Path, **options: Any) -> Path:
    path = folder / "tokenizer.model"
    with path.open("wb") as file:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter([*toys.CORPUS, *TEXTS[:2]] * 3), model_writer=file, **COMMON | options
        )
    return path


@pytest.fixture(scope="module", params=list(KINDS))
def made(library: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(library, tmp_path_factory.mktemp("model"), **KINDS[request.param])


@pytest.mark.parametrize("text", [*TEXTS, "▁x  ▁ <table>\n\n\n", "½ ﬁ 😀", " </s> <0x0A>", ""])
def test_ids_are_those_of_sentencepiece(library: Any, made: Path, text: str) -> None:
    tokenizer = convert(made, {})
    with ordinary_text(tokenizer):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == library.SentencePieceProcessor(model_file=str(made)).encode(text)


def test_real_model_gives_the_ids_of_its_own_tokenizer_json(library: Any, tmp_path: Path) -> None:
    source = shared_path("data", "tokenizers", "mistral-7b-v0.1")
    shutil.copyfile(source / "tokenizer.model", tmp_path / "tokenizer.model")
    shutil.copyfile(source / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    shell, known = load_tokenizer(str(tmp_path)), toys.real("mistral-7b-v0.1")
    for text in TEXTS:
        assert shell.backend_tokenizer.encode(text, add_special_tokens=False).ids == (
            known.encode(text, add_special_tokens=False).ids
        )
    assert token_bytes(shell).pieces == toys.real_tokens("mistral-7b-v0.1").pieces
    assert shell.eos_token == "</s>"


def test_settings_beside_the_model_are_read(library: Any, tmp_path: Path) -> None:
    """Yi-Chat calls reserved pieces by other names, and brings its template in tokenizer_config.json."""
    trained(library, tmp_path, **KINDS["Gemma"])
    added = {"content": "<|im_end|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": "<|im_end|>",
        "chat_template": "{{ messages }}",
        "added_tokens_decoder": {"2": {**added, "single_word": False}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    shell = load_tokenizer(str(tmp_path))
    assert (shell.eos_token, shell.eos_token_id) == ("<|im_end|>", 2)
    assert shell.chat_template == "{{ messages }}"
    assert shell.backend_tokenizer.encode("a").ids[0] == shell.backend_tokenizer.token_to_id("<s>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "word"}, "is a SentencePiece model of words, characters or suffix spaces"),
        (
            {"model_type": "unigram", "treat_whitespace_as_suffix": True},
            "is a SentencePiece model of words, characters or suffix spaces",
        ),
        (
            {"model_type": "bpe", **AS_IT_IS, "user_defined_symbols": ["<sep>"]},
            "cannot be converted exactly: 'a<sep>b <sep>' gives other ids",
        ),
    ],
)
def test_models_that_cannot_be_converted_exactly_are_refused(
    library: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = trained(library, tmp_path, **options)
    with pytest.raises(LoadError, match=message) as caught:
        convert(path, {})
    assert "tokenizer.json" in str(caught.value.help)


def test_damaged_model_is_refused(library: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\xff\xff")
    with pytest.raises(LoadError, match=r"tokenizer\.model is no sound SentencePiece model"):
        load_tokenizer(str(tmp_path))


def test_missing_library_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x00")
    with pytest.raises(LoadError, match=r"tokenizer\.model needs the packages sentencepiece and protobuf") as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.help == "pip install 'flowinfer[sentencepiece]'"


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tiktoken.model", "tokenizer.model"])
def test_tiktoken_ranks_are_refused_with_a_cure(tmp_path: Path, name: str) -> None:
    """How words are cut stands in the code of the model, not in the file."""
    (tmp_path / name).write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(LoadError, match=f"{name} holds tiktoken ranks") as caught:
        load_tokenizer(str(tmp_path))
    assert "Qwen1.5" in str(caught.value.help)
