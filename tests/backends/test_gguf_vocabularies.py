"""Vocabularies that llama.cpp carries for its own tests: ours are exact on them, or they are refused.

Their folder is in llama-cpp-python's source; `make test-gguf` says where with $FLOWINFER_TEST_LLAMA.
"""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flowinfer.backends.gguf.library import library
from flowinfer.backends.gguf.tokens import Apart, GgufTokenizer, read_tokens
from flowinfer.errors import LoadError
from flowinfer.fusion.advance import CanonicalContext
from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.vocab import NEVER_VALID, TokenBytes
from tests.fusion import toys
from tests.fusion.test_advance import TEXTS

pytest.importorskip("llama_cpp", reason="needs flowinfer[gguf]")
FOUND = sorted(Path(os.environ.get("FLOWINFER_TEST_LLAMA", ".")).glob("**/vendor/llama.cpp/models/ggml-vocab-*.gguf"))
FILES = {path.stem.removeprefix("ggml-vocab-"): path for path in FOUND}
if not FILES:
    pytest.skip("no source of llama-cpp-python (set FLOWINFER_TEST_LLAMA)", allow_module_level=True)
REFUSED = {"bert-bge": "WordPiece"}
READ = sorted(FILES.keys() - REFUSED)
REAL = {"gpt-2": "gpt2", "qwen2": "qwen2.5-instruct"}
"""Of which the same tokenizer is at hand as a tokenizer.json."""


@cache
def vocabulary(name: str) -> Any:  # a pointer
    lib = library()
    wanted = lib.llama_model_default_params()
    wanted.vocab_only = True
    return lib.llama_model_get_vocab(lib.llama_model_load_from_file(os.fsencode(FILES[name]), wanted))


@cache
def tokens_of(name: str) -> TokenBytes:
    return read_tokens(vocabulary(name))


def tokenizer_of(name: str) -> GgufTokenizer:
    return GgufTokenizer(vocabulary(name), tokens_of(name))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_vocabularies_that_lose_text_are_refused(name: str) -> None:
    with pytest.raises(LoadError, match=REFUSED[name]):
        read_tokens(vocabulary(name))


@pytest.mark.parametrize("name", READ)
def test_every_text_is_read_into_ids_that_write_it(name: str) -> None:
    tokens, tokenizer = tokens_of(name), tokenizer_of(name)
    if tokens.losses:
        pytest.skip(f"it says that it loses text: {tokens.losses}")
    for text in TEXTS:
        ids = tokenizer.ids(text, is_parsed=False)
        assert b"".join(tokens.pieces[i] or b"" for i in ids).decode() in (text, f" {text}")
        assert "".join(text[a:b] for a, b in dict.fromkeys(tokenizer.encode(text).offsets)) == text


@pytest.mark.parametrize("name", READ)
def test_contexts_write_the_text_however_it_was_cut(name: str) -> None:
    tokens = tokens_of(name)
    if len(tokens.missing_bytes) > len(NEVER_VALID):
        pytest.skip("it cannot write every text")
    draw = random.Random(0)
    for text in TEXTS[:6]:
        context, written = CanonicalContext(tokenizer_of(name), tokens), b""
        data = text.encode()
        while data:
            size = draw.randint(1, 9)
            key, data = data[:size], data[size:]
            written += key
            context.append(key, tokens.cover(key))
            assert b"".join(tokens.pieces[i] or b"" for i in context.ids) == written


@pytest.mark.parametrize("name", READ)
def test_typed_marks_are_text(name: str) -> None:
    tokens = tokens_of(name)
    marks = {**tokens.specials, **tokens.marks}
    if not marks:
        pytest.skip("it has none")
    for mark, token_id in list(marks.items())[:20]:
        apart = Apart(tokenizer_of(name), marks)
        ids = apart.encode(f"a{apart.names[mark]}b{mark}c", add_special_tokens=False).ids
        assert ids.count(token_id) == 1
        assert (
            b"".join(tokens.pieces[i] or b"" for i in ids if i != token_id).replace(b" ", b"")
            == f"ab{mark}c".replace(" ", "").encode()
        )


@pytest.mark.parametrize("name", sorted(REAL))
def test_ids_are_those_of_the_same_tokenizer_as_a_tokenizer_json(name: str) -> None:
    real, tokens = toys.real(REAL[name]), toys.real_tokens(REAL[name])
    pieces = tokens_of(name).pieces[: len(tokens.pieces)]
    # llama.cpp takes </s> for an end wherever it stands; the file is older than the marks of tools.
    taken = {tokens.id_of.get(b"</s>"), *tokens.marks.values()}
    known = [i for i, piece in enumerate(tokens.pieces[: len(pieces)]) if piece is not None and i not in taken]
    assert [pieces[i] for i in known] == [tokens.pieces[i] for i in known]
    with ordinary_text(real):
        wanted = [real.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [tokenizer_of(name).ids(text, is_parsed=False) for text in TEXTS] == wanted
