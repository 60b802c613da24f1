"""Small tokenizers of the kinds that real checkpoints have, and vocabularies written out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from flowinfer.fusion.vocab import HeadVocabulary, TokenBytes, from_json
from tests.conftest import shared_path

CORPUS = (
    "Once upon a time there was a little girl. She said hello to the cat and the dog.",
    "小明有3个苹果，又买了15个。答案是：B。",
    "    return x + 1\n\tif a:\n\t\tb()\n\n",
    "the answer is 42. naïve café, don't, 12345 3.14",
    "hello hello hello world world the the there then answer answer answers",
)

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@cache
def byte_level(size: int = 400) -> Tokenizer:
    """Return a byte-level BPE tokenizer (Qwen2.5, GPT-2, Llama-3)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIALS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def sentencepiece(size: int = 420, *, has_dummy_prefix: bool = True) -> Tokenizer:
    """Return a SentencePiece-like BPE tokenizer with byte fallback (Llama-2, Mistral, Yi, Baichuan)."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    trained.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in model["vocab"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if has_dummy_prefix else steps)
    inner = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*inner, decoders.Strip(" ", 1, 0)] if has_dummy_prefix else inner)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@cache
def characters(alphabet: str = "abcdefghijklmnopqrstuvwxyz .,'") -> Tokenizer:
    """Return a tokenizer of single characters without byte fallback (babyllama105)."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        character.replace(" ", "▁"): 3 + index for index, character in enumerate(alphabet)
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@cache
def real(name: str) -> Tokenizer:
    """Return a tokenizer of the folder of real data."""
    return Tokenizer.from_file(str(shared_path("data", "tokenizers", name, "tokenizer.json")))


@cache
def real_tokens(name: str) -> TokenBytes:
    """Return the token bytes of a tokenizer of the folder of real data."""
    return from_json(shared_path("data", "tokenizers", name, "tokenizer.json").read_text(encoding="utf-8"))


@cache
def story_tokens(name: str) -> TokenBytes:
    """Return the token bytes of a story model's tokenizer."""
    return from_json(shared_path("data", "models", name, "tokenizer.json").read_text(encoding="utf-8"))


def hand_made(pieces: Sequence[bytes | None], *, fallback: Iterable[int] = ()) -> TokenBytes:
    """Return token bytes as written down."""
    return TokenBytes(tuple(pieces), byte_pieces=frozenset(fallback))


def head(
    tokens: TokenBytes | Sequence[bytes | None], eos: Iterable[int] = (), num_columns: int | None = None
) -> HeadVocabulary:
    """Return what fusion knows of a head with these tokens, as many columns as tokens if not given."""
    known = tokens if isinstance(tokens, TokenBytes) else hand_made(tokens)
    return HeadVocabulary(known, frozenset(eos), num_columns or len(known.pieces))


REAL = ("qwen2.5-instruct", "deepseek-r1-distill-qwen", "gpt2", "mistral-7b-v0.1", "baichuan-7b")
EOS = {
    "qwen2.5-instruct": (151643, 151645),
    "deepseek-r1-distill-qwen": (151643,),
    "gpt2": (50256,),
    "mistral-7b-v0.1": (2,),
    "baichuan-7b": (2,),
}
