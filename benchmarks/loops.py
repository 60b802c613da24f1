"""Baselines: how the same fused step runs on transformers' own caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from flowinfer.backends.caches import words_of
from measure import require_memory
from shapes import ShapeModel, mixer_of

_SPARE = 64
"""Columns of a static cache beyond the context."""


class Tables:
    """Id and slot maps of a group, on the device.

    `slot_of_id`: (V_k,) per head, ids without text at the end slot. `first_id`: (V,) per head.
    """

    def __init__(self, models: Sequence[ShapeModel]) -> None:
        self.mixer = mixer_of(models)
        shared = self.mixer.vocabulary
        slot_of_key = {key: slot for slot, key in enumerate(shared.keys)}
        self.slot_of_id, self.first_id = [], []
        for k, model in enumerate(models):
            pieces = model.vocabulary().tokens.pieces
            slots = [shared.eos_slot if piece is None else slot_of_key[piece] for piece in pieces]
            first = [shared.ids(k, slot)[0] for slot in range(len(shared.keys))]
            self.slot_of_id.append(torch.tensor(slots, device=model.device))
            self.first_id.append(torch.tensor([*first, 0], device=model.device))


def kv_bytes(models: Sequence[ShapeModel], batch: int, context: int) -> int:
    """Return the bytes of all heads' keys and values."""
    return batch * context * sum(model.kv_bytes for model in models)


def floor_bytes(models: Sequence[ShapeModel], batch: int, context: int) -> int:
    """Return the bytes that one step cannot but read: weights without embeddings, keys and values."""
    return sum(model.bytes_read(batch) for model in models) + kv_bytes(models, batch, context)


def eager_step(
    models: Sequence[ShapeModel], tables: Tables, batch: int, context: int, *, is_published: bool
) -> Callable[[], object]:
    """Return one step of an eager loop over a growing cache; every head reads one id per row and step.

    Args:
        is_published: fuse by a dense scatter and `.tolist()`, as published ensembling code does; else by gathering on
            the device, with one small transfer of the chosen slots.
    """
    require_memory(models[0].device, 1.1 * kv_bytes(models, batch, context + 16))
    caches = [_noise(DynamicCache(), model, batch, context) for model in models]
    ids = [torch.zeros(batch, 1, dtype=torch.int64, device=model.device) for model in models]

    @torch.inference_mode()
    def step() -> None:
        logits = [
            model.transformers_model(input_ids=one, use_cache=True, **_past(model, cache)).logits[:, -1]
            for model, one, cache in zip(models, ids, caches, strict=True)
        ]
        slots = _scattered(logits, tables) if is_published else _gathered(logits, tables)
        chosen = slots.tolist()
        for k, first in enumerate(tables.first_id):
            if is_published:
                own = [tables.mixer.vocabulary.ids(k, slot)[0] for slot in chosen]
                ids[k] = torch.tensor(own, device=models[k].device)[:, None]
            else:
                ids[k] = first[slots][:, None]

    return step


def static_step(models: Sequence[ShapeModel], tables: Tables, batch: int, context: int) -> Callable[[], object]:
    """Return one replay of a CUDA graph over transformers' StaticCache, fusion inside; no graph on a CPU."""
    device = models[0].device
    require_memory(device, kv_bytes(models, batch, context + _SPARE) * 1.2)
    caches = [_static(model, batch, context) for model in models]
    ids = [torch.zeros(batch, 1, dtype=torch.int64, device=device) for _ in models]
    positions = torch.full((batch, 1), context, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def step() -> None:
        logits = []
        for model, one, cache in zip(models, ids, caches, strict=True):
            output = model.transformers_model(input_ids=one, position_ids=positions, **_past(model, cache))
            logits.append(output.logits[:, -1])
        slots = _gathered(logits, tables)
        for one, first in zip(ids, tables.first_id, strict=True):
            one.copy_(first[slots][:, None])

    if device.type != "cuda":
        return step
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for cache in caches:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)

    def replay() -> None:
        assert caches and ids and positions is not None, "the graph's memory must live as long as it"
        graph.replay()

    return replay


def _scattered(logits: Sequence[Tensor], tables: Tables) -> Tensor:
    """Add every head's probabilities into a dense vector over the union; return its argmax, (B,)."""
    shared = tables.mixer.vocabulary
    fused = torch.zeros(logits[0].shape[0], shared.size, device=logits[0].device)
    for one, slots in zip(logits, tables.slot_of_id, strict=True):
        fused.index_add_(1, slots, one.float().softmax(-1), alpha=1 / len(logits))
    return fused[:, : shared.eos_slot].argmax(-1)


def _gathered(logits: Sequence[Tensor], tables: Tables) -> Tensor:
    """Return the argmax of the mean over the union, gathered by slot, (B,)."""
    lifted = [tables.mixer.vocabulary.lift(k, one) for k, one in enumerate(logits)]
    return tables.mixer.fuse(lifted).probs.argmax(-1)


def _past(model: ShapeModel, cache: Cache) -> dict[str, Cache]:
    """Return the argument that gives a model its cache."""
    return {words_of(model.transformers_model).cache: cache}


def _noise(cache: DynamicCache, model: ShapeModel, batch: int, context: int) -> DynamicCache:
    shape = (batch, model.shape.kv_heads, context, model.shape.head_dim)
    for layer in range(model.shape.layers):
        keys = torch.randn(shape, device=model.device, dtype=model.transformers_model.dtype)
        cache.update(keys, torch.randn_like(keys), layer)
    return cache


def _static(model: ShapeModel, batch: int, context: int) -> StaticCache:
    cache = StaticCache(config=model.transformers_model.config, max_cache_len=context + _SPARE)
    cache.early_initialization(
        batch, model.shape.kv_heads, model.shape.head_dim, model.transformers_model.dtype, model.device
    )
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
        layer.cumulative_length.fill_(context)
    return cache
