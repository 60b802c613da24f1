"""What the benchmarks ask of the packed engine, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowinfer.engine.base import Observer
from flowinfer.engine.caches.pages import PAGE, Pages
from flowinfer.engine.caches.tiles import tile_for
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.fusing import fused_choice
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.lockstep import LockStep, StepForm
from flowinfer.engine.loops.packing import packed_decoder as make_decoder
from flowinfer.engine.loops.packing import runners_of
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.planning.plan import Step
from shapes import ShapeModel, step_of

_GROWTH = 4 * PAGE
"""Ids per row that a timed run may add."""


def packed_step(
    models: Sequence[ShapeModel], batch: int, context: int, *, is_told: bool = False
) -> Callable[[], object]:
    """Return a call that decodes one token in every row.

    Args:
        models: heads of one group with equal weights, or one model alone.
        batch: rows.
        context: ids in each row and head; keys and values are noise.
        is_told: keep what each head gave, as for somebody who listens to every token.
    Returns:
        a call that queues one step on the current stream; it may be called at least 64 times.
    """
    return _running(packed_lock(models, batch, context), StepForm(batch, tile_for(batch), is_told=is_told))


def packed_columns(models: Sequence[ShapeModel], context: int, num_tokens: int) -> Callable[[], object]:
    """Return a call that decodes one row with so many flat tokens in the step."""
    return _running(packed_lock(models, 1, context), StepForm(1, num_tokens))


def _running(lock: LockStep, form: StepForm) -> Callable[[], object]:
    lock.run(form)
    return lambda: lock.run(form)


def packed_lock(models: Sequence[ShapeModel], batch: int, context: int) -> LockStep:
    """Return the device's side of a loop with all rows live at a context of noise."""
    runners = ready_runners(models)
    heads = Heads(step_of(models, max_tokens=1 << 20), models, observer=Observer())
    caches = []
    for runner in runners:
        pages = Pages(batch * -(-(context + _GROWTH) // PAGE), batch, context + _GROWTH)
        cache = runner.new_cache(pages)
        for row in range(batch):
            pages.reserve(row, context + _GROWTH)
        cache.sync()
        cache.fill_with_noise()
        caches.append(cache)
    choose = fused_choice(heads.mixer, batch, runners[0].model.dtype)
    limits = [model.max_positions for model in models]
    lock = LockStep(runners, caches, heads.vocabulary, limits, choose, batch)
    for row in range(batch):
        lock.start(row, [context] * len(models), [row + 300] * len(models), heads.step.decoding, key=1)
    return lock


def ready_runners(models: Sequence[ShapeModel]) -> list[HeadRunner]:
    """Return the models' runners.

    Raises:
        RuntimeError: one cannot be packed, with the reason.
    """
    runners = runners_of(models)
    if isinstance(runners, str):
        raise RuntimeError(runners)
    return runners


def packed_decoder(step: Step, models: Sequence[ShapeModel], *, batch: int) -> PackedDecoder:
    """Return a decoder of rows.

    Args:
        step: the group, or one model alone.
        models: its heads.
        batch: most rows at once.
    Raises:
        RuntimeError: the packed engine cannot serve them, with the reason.
    """
    made = make_decoder(Heads(step, models, observer=Observer()), batch)
    if isinstance(made, str):
        raise RuntimeError(made)
    return made


@torch.inference_mode()
def packed_logits(model: ShapeModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the last logits of prompts of one length, read by the packed engine: shape (B, V_k)."""
    session = PackedSession(ready_runners([model])[0], len(prompts), len(prompts[0]) + 1)
    return session.logits(session.add(prompts))
