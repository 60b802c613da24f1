"""Whether the packed engine can decode a step, how many rows and pages it gets, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flowinfer.backends.base import TokenModel
from flowinfer.engine.heads import Heads
from flowinfer.engine.packed.decoder import PackedDecoder
from flowinfer.engine.packed.fusing import fused_choice
from flowinfer.engine.packed.pages import PAGE, page_bytes
from flowinfer.engine.packed.runner import HeadRunner, runner_of
from flowinfer.plan import Mixture, Source

_ON_THE_HOST = ("sharpen",)
"""Fusers that look into the keys' bytes, one row after the other."""
_SHARE = 0.8
"""Share of a GPU's free memory that keys and values of one step may take."""
_TYPICAL_PROMPT = 512


def runners_of(models: Sequence[TokenModel]) -> list[HeadRunner] | str:
    """Return the models' runners, or the reason why one of them has none."""
    runners = []
    for model in models:
        network = getattr(model, "transformers_model", None)
        found = runner_of(network) if network is not None else "it is no transformers model"
        if isinstance(found, str):
            return f"'{model.name}' cannot be packed: {found}"
        runners.append(found)
    return runners


def reason_against(heads: Heads) -> str | None:
    """Return why a step cannot be decoded whole on the device, whatever its models are; None if it can."""
    decoding = heads.step.decoding
    fusers = sorted(_fusers(heads.step.source) & set(_ON_THE_HOST))
    if len({model.device for model in heads.models}) > 1:
        return "its heads are on several devices"
    if decoding.context != "native":
        return "canonical contexts are tokenized on the host"
    if heads.mixer.joins_first:
        return "lstrip_first changes what the first token means"
    if fusers:
        return f"fuse={fusers[0]} looks at keys on the host"
    if decoding.strict:
        return "strict decides near ties again on the host"
    return "every token is told with its heads' wishes" if heads.observer.wants_tokens else None


def packed_decoder(heads: Heads, batch: int) -> PackedDecoder | str:
    """Return a packed decoder of a step, or the reason why there is none.

    Args:
        heads: the step's models.
        batch: most rows at once.
    """
    reason = reason_against(heads)
    if reason:
        return reason
    runners = runners_of(heads.models)
    if isinstance(runners, str):
        return runners
    choose = fused_choice(heads.mixer, heads.step.decoding, batch, runners[0].model.dtype)
    return PackedDecoder(heads, runners, choose, batch=batch, num_pages=_num_pages(heads, runners, batch))


def _num_pages(heads: Heads, runners: Sequence[HeadRunner], batch: int) -> list[int]:
    """Return pages for each head: enough for all rows at a typical length, or what memory allows."""
    wanted = []
    for model in heads.models:
        length = min(model.max_positions, 2 * _TYPICAL_PROMPT + heads.step.decoding.max_tokens)
        wanted.append(max(batch * (-(-length // PAGE) + 1), -(-model.max_positions // PAGE) if batch == 1 else 0))
    if runners[0].device.type != "cuda":
        return wanted
    bytes_wanted = sum(
        count * page_bytes(runner.layers, runner.model.dtype) for count, runner in zip(wanted, runners, strict=True)
    )
    free = torch.cuda.mem_get_info(runners[0].device)[0] * _SHARE
    share = min(1.0, free / bytes_wanted)
    return [max(2, int(count * share)) for count in wanted]


def _fusers(source: Source) -> set[str]:
    if not isinstance(source, Mixture):
        return set()
    return {source.fuse}.union(*(_fusers(inner) for inner in source.sources))


def is_on_gpu(models: Sequence[Any]) -> bool:
    """Return whether all models are on CUDA devices."""
    return all(model.device.type == "cuda" for model in models)
