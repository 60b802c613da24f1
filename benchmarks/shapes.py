"""The paper's three models as shapes: real configs, random weights, synthetic vocabularies with known bytes.

Nothing is downloaded and no tokenizer is needed. The three vocabularies overlap so that their union has 177,664 slots,
as that of the real ones about has. A prompt is written "SEED LENGTH" and reads as that many random ids; what follows,
an earlier step's text, changes them and adds an id for every four bytes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from flowinfer.backends.base import Prompt
from flowinfer.backends.hf import HfModel
from flowinfer.backends.int4 import packed
from flowinfer.engine.base import Observer
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.models import ModelPool
from flowinfer.fusion.vocab import HeadVocabulary, TokenBytes
from flowinfer.planning.plan import Member, Mixture, Plan, Step
from flowinfer.spec import Decoding

STD = 0.02
"""Standard deviation of all random weights."""
SHARED_GAIN = 1.1
"""Output rows of ids that all heads have are scaled by this: one emitted token in twenty then needs several ids."""
NAMES = ("Qwen", "Ds", "Yi")


@dataclass(frozen=True)
class Shape:
    """What decides a model's cost."""

    name: str
    kind: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 128
    positions: int = 32768
    experts: int = 0
    """Feed-forward networks of a layer of which each token passes some; 0 = one, which all pass."""
    chosen: int = 0
    """How many of them a token passes."""

    @property
    def kv_values(self) -> int:
        """Numbers kept per token of context."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def weight_values(self) -> int:
        """Numbers read for every step of a model without experts: all weights but the input embedding."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys) + (queries + 2 * keys if self.kind == "qwen2" else 0)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocab * self.hidden


_QWEN = Shape("Qwen", "qwen2", 28, 3584, 18944, 28, 4, 152064)
_YI = Shape("Yi", "llama", 48, 4096, 11008, 32, 4, 64000)
_QWEN_MOE = Shape("Qwen-MoE", "qwen3_moe", 12, 2048, 768, 32, 4, 152064, experts=128, chosen=8)
"""Qwen3-30B-A3B, a quarter of its layers."""
_MIXTRAL = Shape("Mixtral", "mixtral", 6, 4096, 14336, 32, 8, 32000, experts=8, chosen=2)
"""Mixtral 8x7B, six of its layers."""
_FULL = {"Qwen": _QWEN, "Ds": replace(_QWEN, name="Ds"), "Yi": _YI, "Qwen-MoE": _QWEN_MOE, "Mixtral": _MIXTRAL}
_SMALL = {"layers": 2, "hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 2, "head_dim": 32, "positions": 1024}
_TINY = {
    name: replace(shape, **_SMALL, vocab=1024 if shape.vocab < 152064 else 2048, experts=min(8, shape.experts))  # type: ignore[arg-type]  # all are integers
    for name, shape in _FULL.items()
}
_SHARED_WORDS = {152064: 38143, 2048: 359}
"""Vocabulary of Qwen and Ds -> how many of its words, beside the 256 bytes, Yi has too."""


def shapes(size: str, names: Sequence[str] = NAMES, *, layers: int | None = None) -> list[Shape]:
    """Return the shapes of a size ("full" or "tiny"), with fewer layers if wanted."""
    table = _FULL if size == "full" else _TINY
    chosen = [table[name] for name in names]
    return [replace(shape, layers=layers) if layers else shape for shape in chosen]


class ShapeModel(HfModel):
    """A random model of a shape; a `TokenModel` without a tokenizer, whose answers never end by themselves."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype, *, seed: int, group: int = 0) -> None:
        """Make a model; its layers have weights of four bits in groups of so many inputs, 0 = not."""
        self.shape = shape
        self.name = shape.name
        self._model = _random_model(shape, torch.device(device), dtype, seed)
        if group:
            _quantize(self._model.model.layers, group)
        self.device = self._model.device
        self._tokens = _tokens(shape.vocab)
        self.num_columns = shape.vocab
        self.is_exact = dtype in (torch.float32, torch.float64)
        self.max_positions, self.notes = shape.positions, ()

    @property
    def tokenizer(self) -> Any:  # there is none; native contexts do not ask for it
        """Return None."""
        return None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights but the input embedding: what is read for every step of one that has no experts."""
        embedding = self._model.get_input_embeddings().weight
        return sum(weight.nbytes for weight in self._model.parameters()) - int(embedding.nbytes)

    def bytes_read(self, tokens: int) -> int:
        """Return the bytes of weights that a step of so many tokens reads, where all experts are as likely."""
        shape = self.shape
        if not shape.experts:
            return self.weight_bytes
        every = shape.layers * shape.experts * 3 * shape.hidden * shape.intermediate * self._model.dtype.itemsize
        missed = (1 - shape.chosen / shape.experts) ** tokens
        return int(self.weight_bytes - missed * every)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values per token of context."""
        return self.shape.kv_values * self._model.dtype.itemsize

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return the synthetic token bytes; nothing ends an answer."""
        return HeadVocabulary(self._tokens, frozenset(), self.num_columns)

    def prompt(self, text: str, prefill: str = "") -> Prompt:
        """Return the random ids that "SEED LENGTH" stands for, and what was read with it."""
        seed, length, *read = text.split(" ", 2)
        rng = random.Random(" ".join([self.name, seed, *read]))
        num_ids = int(length) + sum(len(part.encode()) // 4 for part in read)
        return Prompt(text, tuple(rng.randrange(self.num_columns - 1) for _ in range(num_ids)))


def build(
    size: str,
    device: str,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    names: Sequence[str] = NAMES,
    layers: int | None = None,
    group: int = 0,
) -> list[ShapeModel]:
    """Build random models of some names, with weights of four bits if there is a group."""
    return [
        ShapeModel(shape, device, dtype, seed=seed + index, group=group)
        for index, shape in enumerate(shapes(size, names, layers=layers))
    ]


class ShapePool(ModelPool):
    """Random models of the shapes of a size, loaded."""

    def __init__(self, size: str, device: str, dtype: str, names: Sequence[str] = NAMES) -> None:
        super().__init__()
        self._models = {model.name: model for model in build(size, device, getattr(torch, dtype), names=names)}

    def get(self, plan: Plan, name: str, observer: Observer) -> Any:  # a model without a tokenizer
        """Return the model of that name."""
        return self._models[name]

    def is_loaded(self, plan: Plan, name: str) -> bool:
        """Return True."""
        return True


def step_of(models: Sequence[HfModel], *, max_tokens: int = 64) -> Step:
    """Return the step in which models decode together with equal weights, or one alone."""
    members = tuple(Member(f"n{k}", m.name, "draft", "{question}", {}, 1 / len(models)) for k, m in enumerate(models))
    source = Mixture("g1", "mean", {}, members) if len(members) > 1 else members[0]
    return Step("s1", " | ".join(model.name for model in models), source, Decoding(max_tokens=max_tokens))


def mixer_of(models: Sequence[HfModel]) -> Mixer:
    """Return the mixer of `step_of`."""
    return Mixer(step_of(models), models)


def config_of(shape: Shape) -> Any:  # untyped in transformers
    """Return a shape as transformers' config."""
    experts: dict[str, Any] = {}
    if shape.experts:
        count = "num_local_experts" if shape.kind == "mixtral" else "num_experts"
        experts = {count: shape.experts, "num_experts_per_tok": shape.chosen}
        experts |= {} if shape.kind == "mixtral" else {"moe_intermediate_size": shape.intermediate}
    return AutoConfig.for_model(
        shape.kind,
        **experts,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _random_model(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Any:  # untyped
    config = config_of(shape)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, STD, generator=generator)
        model.lm_head.weight[_shared_ids(shape.vocab, device)] *= SHARED_GAIN
    return model.requires_grad_(False)


@torch.no_grad()
def _quantize(layers: nn.Module, group: int) -> None:
    """Put layers of four bits in place of plain ones, each group's numbers between its least and its greatest."""
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                groups = child.weight.float().unflatten(1, (-1, group))  # (N, G, group)
                least, most = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
                scales = (most - least) / 15
                zeros = (-least / scales).round()
                numbers = (groups / scales[:, :, None] + zeros[:, :, None]).round().clamp(0, 15)
                setattr(parent, name, packed(numbers.flatten(1).char(), zeros, scales.half(), child.bias, group))


@cache
def _tokens(vocab: int) -> TokenBytes:
    """Return 256 single bytes, words, and a last id that writes nothing."""
    pieces: list[bytes | None] = [*(bytes([value]) for value in range(256)), *map(_word, _word_numbers(vocab)), None]
    return TokenBytes(tuple(pieces), {"<end>": vocab - 1})


def _word_numbers(vocab: int) -> list[int]:
    """Return which words a vocabulary has, in the order of its ids: Yi's begin where the others' shared ones do."""
    num_words = vocab - 257
    if vocab in _SHARED_WORDS:
        return list(range(num_words))
    large = next(size for size in _SHARED_WORDS if (size == 2048) == (vocab == 1024))
    first = (large - 257) - _SHARED_WORDS[large]
    numbers = list(range(first, first + num_words))
    random.Random(0).shuffle(numbers)
    return numbers


def _shared_ids(vocab: int, device: torch.device) -> Tensor:
    """Return the ids whose bytes are in all three vocabularies."""
    large = vocab if vocab in _SHARED_WORDS else next(s for s in _SHARED_WORDS if (s == 2048) == (vocab == 1024))
    first, last = (large - 257) - _SHARED_WORDS[large], large - 257
    words = [256 + index for index, number in enumerate(_word_numbers(vocab)) if first <= number < last]
    return torch.tensor([*range(256), *words], device=device)


def _word(number: int) -> bytes:
    """Return the word of a number: two to four letters, every second one after a space."""
    rest, letters = number // 2, 2
    while rest >= 26**letters:
        rest -= 26**letters
        letters += 1
    text = "".join(chr(97 + rest // 26**place % 26) for place in range(letters))
    return (" " * (number % 2) + text).encode()
