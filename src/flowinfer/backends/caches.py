"""What a transformers model can do with a cache, and how it is asked: found by trying, not by names.

Arguments and fields are renamed between releases of transformers, and checkpoints with code of their own have others
again. So a model is run once and its output looked through for the cache; whether a session is right is decided by
running the session.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.base import Session
from flowinfer.errors import is_memory_short

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest relative difference of logits from a model's own in checks at load: rounding, not another function."""
FOREIGN = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)
"""What a model raises that is asked for something that it cannot do."""


class NotCached(Exception):
    """A model cannot go on from a cache; the message is the reason, in one line."""


@dataclass(frozen=True)
class Words:
    """How a model's forward wants to be asked."""

    cache: str
    """The argument that takes a cache, and the field of the output that gives it back."""
    can_keep: bool
    """Whether it can be asked for the logits of some tokens only."""
    can_place: bool
    """Whether tokens can be given their positions."""


def words_of(model: Any) -> Words:  # a transformers model, whose forwards share no type
    """Return how a model is asked, found once and kept with it.

    Raises:
        NotCached: it gives back no cache.
    """
    known: Words | None = getattr(model, "flow_words", None)
    if known is None:
        known = _ask(model)
        object.__setattr__(model, "flow_words", known)
    return known


def run(
    model: Any, ids: Tensor, past: Any, keep: Sequence[int], positions: Tensor, **others: Tensor
) -> tuple[Tensor, Any]:  # a transformers model, a transformers cache
    """Run a model over new tokens behind a cache.

    Args:
        model: a decoder-only transformers model.
        ids: (B, L).
        past: its cache, which grows.
        keep: columns of `ids` whose logits are wanted.
        positions: (B, L), each token's in its row; left to models that take none.
        others: the forward's further arguments.
    Returns:
        logits (B, len(keep), V_k), and the cache.
    """
    words = words_of(model)
    arguments: dict[str, Any] = {words.cache: past, **others}
    if words.can_place:
        arguments["position_ids"] = positions.to(model.device)
    if words.can_keep:
        arguments["logits_to_keep"] = 1 if keep == [ids.shape[1] - 1] else torch.tensor(keep, device=model.device)
    output = model(input_ids=ids.to(model.device), use_cache=True, **arguments)
    return output.logits if words.can_keep else output.logits[:, list(keep)], output[words.cache]


def layer_windows(config: Any) -> tuple[int | None, ...]:  # a transformers config
    """Return how many last tokens' keys and values each layer keeps: 0 = all; None = it keeps something else."""
    from transformers import DynamicCache

    whole, windowed = _kinds_of_layers()
    layers = DynamicCache(config=config).layers
    windows = [int(getattr(layer, "sliding_window", None) or 0) for layer in layers]
    return tuple(
        window if type(layer) is (windowed if window else whole) else None
        for layer, window in zip(layers, windows, strict=True)
    )


def why_not(open_: Callable[[Any], Session], model: Any, slack: float = 1.0) -> str | None:  # a transformers model
    """Return why a kind of session would not give a model's own logits, or None: it is tried on a few tokens.

    Args:
        open_: opens a session.
        model: the model.
        slack: times the tolerance by which the logits may differ.
    """
    try:
        difference = _difference(open_(model), model)
    except NotCached as error:
        return str(error)
    except FOREIGN as error:
        if is_memory_short(error):
            raise
        return f"cannot go on from its cache: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if not math.isfinite(difference):
        return "gives logits that are no numbers: its weights are damaged"
    allowed = slack * TOLERANCE.get(model.dtype, 0.1)
    return None if difference <= allowed else f"goes on from its cache with other logits, {difference:.1e} off"


@torch.inference_mode()
def _ask(model: Any) -> Words:  # see words_of
    from transformers import Cache

    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    arguments = {"position_ids": torch.arange(2, device=model.device)[None], "logits_to_keep": 1}
    output: Any = None
    while output is None:
        try:
            output = model(input_ids=ids, use_cache=True, **arguments)
        except TypeError as error:
            refused = next((name for name in arguments if name in str(error)), None)
            if refused is None:
                raise
            del arguments[refused]
    names = [name for name, value in output.items() if isinstance(value, Cache)]
    if len(names) != 1:
        raise NotCached("keeps no key-value cache")
    return Words(names[0], output.logits.shape[1] == 1, "position_ids" in arguments)


@cache
def _kinds_of_layers() -> tuple[type, type]:
    """Return what keeps everything, and what keeps a window: the layers that Llama's and Mistral's configs ask for."""
    from transformers import DynamicCache, LlamaConfig, MistralConfig

    whole = DynamicCache(config=LlamaConfig(num_hidden_layers=1))
    windowed = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=4))
    return type(whole.layers[0]), type(windowed.layers[0])


@torch.inference_mode()
def _difference(session: Session, model: Any) -> float:
    """Take a token back and go on with two at once, beside a shorter row; return how far the logits are off."""
    size = model.get_input_embeddings().num_embeddings
    first, wrong, second = ([index % size for index in ids] for ids in ((3, 5), (7,), (11, 13)))
    row, other = session.add([first, first[:1]])
    session.feed({row: wrong, other: wrong})
    session.rollback(row, 1)
    session.feed({row: second, other: second[:1]})
    found = session.logits([row])[0].double()
    whole = torch.tensor([first + second], device=model.device)
    expected = model(input_ids=whole, use_cache=False).logits[0, -1].double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
