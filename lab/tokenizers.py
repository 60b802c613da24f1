"""The lab's three tokenizers: truly different segmentations of the same texts, each with a chat template of its own.

`Qwen`: byte-level BPE, every digit a token. `Ds`: byte-level BPE, up to three digits together, control marks of
DeepSeek's form, and a template that opens `<think>`. `Yi`: SentencePiece-like BPE, spaces as `▁`, byte fallback.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TURNS = (
    "<｜begin▁of▁sentence｜>{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}"
    "{% else %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


@dataclass(frozen=True)
class TokenizerRecipe:
    """How one model's tokenizer is made."""

    size: int
    """Entries of the trained vocabulary, without control tokens."""
    digits: int
    """Most digits that one token holds."""
    is_byte_level: bool
    """Byte-level BPE, else BPE over characters with byte fallback."""
    controls: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    template: str
    tags: tuple[str, ...] = ()
    """Tokens of text that are always whole, such as <think>."""


TOKENIZERS = {
    "Qwen": TokenizerRecipe(
        size=1400,
        digits=1,
        is_byte_level=True,
        controls=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=_CHATML,
    ),
    "Ds": TokenizerRecipe(
        size=1500,
        digits=3,
        is_byte_level=True,
        controls=(
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜▁pad▁｜>",
        ),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        pad="<｜▁pad▁｜>",
        template=_TURNS,
        tags=("<think>", "</think>"),
    ),
    "Yi": TokenizerRecipe(
        size=1500,
        digits=1,
        is_byte_level=False,
        controls=("<unk>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos="<|startoftext|>",
        eos="<|im_end|>",
        pad="<unk>",
        template=_CHATML,
    ),
}


def train(recipe: TokenizerRecipe, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on texts and give it its chat template."""
    tokenizer = _byte_level(recipe, texts) if recipe.is_byte_level else _with_byte_fallback(recipe, texts)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=recipe.bos,
        eos_token=recipe.eos,
        pad_token=recipe.pad,
        unk_token=None if recipe.is_byte_level else "<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    wrapped.chat_template = recipe.template
    return wrapped


def _split(recipe: TokenizerRecipe) -> pre_tokenizers.PreTokenizer:
    digits = r"\p{N}|" if recipe.digits == 1 else rf"\p{{N}}{{1,{recipe.digits}}}|"
    return pre_tokenizers.Split(Regex(digits + _WORDS), "isolated")


def _byte_level(recipe: TokenizerRecipe, texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [_split(recipe), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(recipe.controls))
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in recipe.tags])
    return tokenizer


def _with_byte_fallback(recipe: TokenizerRecipe, texts: Iterable[str]) -> Tokenizer:
    """Train with words kept apart, as SentencePiece does, then take the splitting away: the merges remember it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    marked = _WORDS.replace(" ?", "▁?")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\p{N}|" + marked), "isolated")
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.size, special_tokens=[*recipe.controls, *fallback], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in fallback]
    document["pre_tokenizer"] = None
    plain = Tokenizer.from_str(json.dumps(document))
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return plain
