"""What the benchmarks ask of the packed engine, in one place.

Each function raises `ImportError` where that engine is not there; the benchmark then prints '-' with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from flowinfer.engine.base import Decoder
from flowinfer.plan import Step
from shapes import ShapeModel


def packed_step(models: Sequence[ShapeModel], batch: int, context: int) -> Callable[[], object]:
    """Return a call that decodes one token in every row.

    Args:
        models: heads of one group with equal weights, or one model alone.
        batch: rows.
        context: ids in each row and head; keys and values may be noise.
    Returns:
        a call that queues one step on the current stream; it may be called at least 64 times.
    """
    from flowinfer.engine.packed.bench import packed_step as make  # type: ignore[import-not-found]

    call: Callable[[], object] = make(models, batch, context)
    return call


def packed_fuse(models: Sequence[ShapeModel], logits: Sequence[Tensor]) -> Callable[[], object]:
    """Return a call that queues the packed engine's fusion of fixed logits, (B, V_k) per head, to a slot per row."""
    from flowinfer.engine.packed.bench import packed_fuse as make  # type: ignore[import-not-found]

    call: Callable[[], object] = make(models, logits)
    return call


def packed_decoder(step: Step, models: Sequence[ShapeModel], *, batch: int, limits: dict[str, int]) -> Decoder:
    """Return a decoder of rows.

    Args:
        step: the group.
        models: its heads.
        batch: most rows at once.
        limits: question id -> most tokens of its row.
    """
    from flowinfer.engine.packed.bench import packed_decoder as make  # type: ignore[import-not-found]

    decoder: Decoder = make(step, models, batch=batch, limits=limits)
    return decoder


def packed_logits(model: ShapeModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the last logits of prompts of one length, read by the packed engine: shape (B, V_k)."""
    from flowinfer.engine.packed.bench import packed_logits as make  # type: ignore[import-not-found]

    logits: Tensor = make(model, prompts)
    return logits
