"""Small tokenizers with the structure of families whose files are not at hand, made from what is known of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.fusion import toys


def _in_vocabulary(names: Sequence[str]) -> Tokenizer:
    """Return a byte-level tokenizer whose first pieces are these names, none of them in the byte alphabet."""
    document = json.loads(toys.byte_level().to_str())
    shift, vocabulary = len(names), document["model"]["vocab"]
    own = {piece: i for piece, i in vocabulary.items() if piece not in toys.SPECIALS}
    document["model"]["vocab"] = dict(zip(names, range(shift), strict=True)) | {
        piece: shift + i for i, piece in enumerate(own)
    }
    document["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(document))


@cache
def deepseek_v3() -> Tokenizer:
    """Return DeepSeek-V3's kind: control tokens and turn marks in the vocabulary, and single characters added."""
    control = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
    marks = ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>")
    tokenizer = _in_vocabulary((*control, *marks))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in control])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in (*marks, "ø", "ö", "<think>", "</think>")])
    return tokenizer


@cache
def gpt_oss() -> Tokenizer:
    """Return gpt-oss's kind: channels of an answer between control tokens, `<|end|>` behind each but the last."""
    tokenizer = Tokenizer.from_str(toys.byte_level().to_str())
    names = ("<|startoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>")
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (*names, "<|call|>")])
    return tokenizer


HARMONY = (
    "<|start|>system<|message|>You are ChatGPT.<|end|>"
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% elif m.role == 'assistant' %}"
    "{% if 'thinking' in m %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""The turns of gpt-oss's chat template, in short."""


@cache
def gemma() -> Tokenizer:
    """Return Gemma's kind: runs of spaces and of newlines, and HTML, are added tokens of the vocabulary."""
    document = json.loads(toys.sentencepiece(has_dummy_prefix=False).to_str())
    vocabulary: dict[str, int] = document["model"]["vocab"]
    runs = ["▁▁", "▁▁▁", "▁▁▁▁", "\n\n", "<table>", "<start_of_turn>", "<end_of_turn>"]
    document["model"]["vocab"] |= {piece: len(vocabulary) + i for i, piece in enumerate(runs)}
    document["model"]["merges"] += [["▁", "▁"], ["▁▁", "▁"], ["▁▁", "▁▁"]]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs[:5]])
    tokenizer.add_special_tokens([AddedToken(run, normalized=False) for run in runs[5:]])
    return tokenizer


@cache
def unigram() -> Tokenizer:
    """Return the kind of T5's and XGLM's decoders: no byte fallback, and control tokens that typed text can reach."""
    pieces: list[tuple[str, float]] = [("<unk>", 0.0), ("</s>", 0.0)]
    pieces += [(character, -5.0) for character in "▁abcdefghijklmnopqrstuvwxyz</>.,'0123456789"]
    made: Any = models.Unigram([*pieces, ("▁the", -3.0), ("ing", -3.0)], unk_id=0, byte_fallback=False)
    tokenizer = Tokenizer(made)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


@cache
def nfkc() -> Tokenizer:
    """Return a byte-level tokenizer that replaces compatibility forms, with a mark that is matched after that."""
    tokenizer = Tokenizer.from_str(toys.byte_level().to_str())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=True)])
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    "DeepSeek-V3": deepseek_v3,
    "gpt-oss": gpt_oss,
    "Gemma": gemma,
    "Unigram": unigram,
    "NFKC": nfkc,
}
