"""The toy zoo: three tiny models with random weights and tokenizers trained on the spot. Their answers are noise.

They exist so that every part of flowinfer can be seen at work without a download: real architectures, really different
tokenizers (byte-level with single digits, byte-level with grouped digits, SentencePiece-like with byte fallback).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flowinfer.spec import ModelSpec
from flowinfer.zoo import Zoo

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NOTE = "toy zoo: random weights, the answers are noise"
_VERSION = 1
_KINDS: dict[str, tuple[str, dict[str, int]]] = {
    "Qwen": ("qwen2", {}),
    "Ds": ("qwen3", {"head_dim": 16}),
    "Yi": ("llama", {}),
}
"""Name -> architecture, and what only that has."""


def zoo() -> Zoo:
    """Return the toy zoo; its models are built in the user's cache by `provide`, before the first run."""
    folder = _folder()
    models = {name: ModelSpec(name=name, ref=str(folder / name.lower()), dtype="float32") for name in _KINDS}
    return Zoo("toy", models, note=NOTE)


def provide(models: Iterable[ModelSpec]) -> None:
    """Build the toy models (seconds) where some of the models are of the toy zoo and not there yet."""
    folder = _folder()
    if any(Path(spec.ref).parent == folder for spec in models):
        build(folder)


def _folder() -> Path:
    import os

    from platformdirs import user_cache_dir

    root = Path(os.environ.get("FLOWINFER_CACHE") or user_cache_dir("flowinfer"))
    return (root / "zoos" / f"toy-v{_VERSION}").absolute()


def build(folder: Path) -> Path:
    """Build the three models into a folder, unless they are there; return the path of its zoo.toml.

    Deterministic: the same weights and tokenizers on every machine with the same library versions.
    """
    file = folder / "zoo.toml"
    if file.is_file():
        return file
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".toy-", dir=folder.parent))
    try:
        for index, name in enumerate(_KINDS):
            _build_model(name, partial / name.lower(), seed=index)
        lines = [f'[models.{name}]\nref = "{name.lower()}"\ndtype = "float32"\n' for name in _KINDS]
        (partial / "zoo.toml").write_text("\n".join(lines), encoding="utf-8")
        try:
            partial.replace(folder)
        except OSError:
            if not file.is_file():  # another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return file


def _build_model(name: str, folder: Path, *, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer, marks, template = _tokenizer(name)
    end = tokenizer.token_to_id(marks[-1])
    kind, more = _KINDS[name]
    config = AutoConfig.for_model(
        kind,
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=None,
        **more,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=end)
    model.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=marks[-1])
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TURNS = (
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)


def _tokenizer(name: str) -> tuple[Tokenizer, list[str], str]:
    """Train a tokenizer of a kind of its own for each model; its marks, the end last, and its template go with it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words = r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    if name == "Yi":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        specials = ["<unk>", "<|im_start|>", "<|im_end|>"]
        fallback = [f"<0x{value:02X}>" for value in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials + fallback, show_progress=False)
        tokenizer.train_from_iterator(_CORPUS, trainer)
        return _demoted(tokenizer, fallback), specials, _CHATML
    digits = r"\p{N}|" if name == "Qwen" else r"\p{N}{1,3}|"
    marks = ["<|im_start|>", "<|im_end|>"] if name == "Qwen" else ["<|user|>", "<|answer|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(digits + words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800 if name == "Qwen" else 700,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer, marks, _CHATML if name == "Qwen" else _TURNS


def _demoted(tokenizer: Tokenizer, pieces: list[str]) -> Tokenizer:
    """Turn added special tokens into ordinary pieces of the vocabulary, as byte fallback needs them."""
    from tokenizers import Tokenizer

    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in set(pieces)]
    return Tokenizer.from_str(json.dumps(document))


_CORPUS = (
    "你是一个专业的智能助手,请审慎思考并逐步推理,最后给出最准确的答案.",
    "下列城市中,哪一个是中国的首都? 答案:北京。上海、广州、深圳都是大城市。",
    "小明有3个苹果,又买了15个,现在一共有18个苹果。答案是18。",
    "水的化学式是 H2O,氧的原子序数是8,铁的元素符号是 Fe。",
    "请判断下面的说法是否正确,并说明理由。正确答案是 B。",
    "一年有十二个月,一天有二十四小时,一小时有六十分钟。",
    "Tom has 12 apples and buys 30 more. How many apples does he have? The answer is 42.",
    "The train leaves at 3:45 and arrives 90 minutes later.",
    "What is the derivative of 3*x**2 + 5*x? It is 6*x + 5.",
    "Solve 2*x + 7 = 19 for x. x = 6. #### 6",
    "Once upon a time there was a small robot who liked to count to one hundred.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "Answer: C. The capital of France is Paris.",
    "1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024",
)
"""A few lines of our own in the kinds of text that prompts and answers hold."""
