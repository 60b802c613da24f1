"""Whether the packed engine can decode a step, how many rows and pages it gets, and if not, why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch

from flowinfer.backends.base import Session, TokenModel, network_of
from flowinfer.engine.budget import Budget
from flowinfer.engine.caches.pages import PAGE
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.fusing import TorchChoice, fused_choice
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.mixing import runs_on_host
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.loops.ways import detours
from flowinfer.engine.network.runner import HeadRunner, runner_of
from flowinfer.planning.plan import Step, fusers_of
from flowinfer.startup import STARTUP

_SHARE = 0.8
"""Share of the free memory of its budget that keys and values of one step may take."""
_TYPICAL_PROMPT = 512


def runners_of(models: Sequence[TokenModel]) -> list[HeadRunner] | str:
    """Return the models' runners, or the reason why one of them has none."""
    runners = []
    for model in models:
        network = network_of(model)
        with STARTUP.waiting_for("packing", model.name):
            found = runner_of(network) if network is not None else "it is no transformers model"
        if isinstance(found, str):
            return f"'{model.name}' cannot be packed: {found}"
        runners.append(found)
    return runners


def reason_against(heads: Heads) -> str | None:
    """Return why a step cannot be decoded whole on devices, whatever its models are; None if it can."""
    decoding = heads.step.decoding
    fusers = [fuse for fuse in sorted(fusers_of(heads.step.source)) if runs_on_host(fuse)]
    if decoding.by == "likelihood":
        return "texts to choose from are read by the host"
    if decoding.context != "native":
        return "canonical contexts are tokenized on the host"
    if fusers:
        return f"fuse={fusers[0]} looks at keys on the host"
    return "strict decides near ties again on the host" if decoding.strict else None


def packed_decoder(heads: Heads, batch: int, budget: Budget | None = None) -> PackedDecoder | str:
    """Return a packed decoder of a step, or the reason why there is none.

    Args:
        heads: the step's models.
        batch: most rows at once.
        budget: what it may take of its devices' free memory; all if not given.
    """
    reason = reason_against(heads)
    if reason:
        return reason
    runners = runners_of(heads.models)
    if isinstance(runners, str):
        return runners
    widest = reduce(torch.promote_types, (runner.model.dtype for runner in runners))
    choose = fused_choice(heads.mixer, batch, widest)
    if isinstance(choose, TorchChoice) and heads.mixer.is_certified:
        return "topk=certified asks the host whether it has seen enough"
    for way in detours([device for runner in runners for device in runner.page_bytes()]):
        heads.observer.notice(
            f"{way} cannot copy to each other: what their heads exchange goes through the host's memory"
        )
    num_pages = _num_pages(heads.step, heads.models, runners, batch, budget)
    with STARTUP.waiting_for("pages", heads.step.id):
        return PackedDecoder(heads, runners, choose, batch=batch, num_pages=num_pages)


def session_maker(
    step: Step, models: Sequence[TokenModel], runners: Sequence[HeadRunner], batch: int, budget: Budget | None = None
) -> Callable[[], list[Session]]:
    """Return what opens a packed session for each head of a step."""
    num_pages = _num_pages(step, models, runners, batch, budget)

    def make() -> list[Session]:
        return [
            PackedSession(runner, batch, model.max_positions, count)
            for runner, model, count in zip(runners, models, num_pages, strict=True)
        ]

    return make


def _num_pages(
    step: Step, models: Sequence[TokenModel], runners: Sequence[HeadRunner], batch: int, budget: Budget | None
) -> list[int]:
    """Return pages for each head: enough for all rows at a typical length, or what its device's memory allows."""
    wanted = []
    bytes_wanted: dict[torch.device, int] = {}
    for model, runner in zip(models, runners, strict=True):
        length = min(model.max_positions, 2 * _TYPICAL_PROMPT + step.decoding.max_tokens)
        wanted.append(max(batch * (-(-length // PAGE) + 1), -(-model.max_positions // PAGE) if batch == 1 else 0))
        for device, size in runner.page_bytes().items():
            bytes_wanted[device] = bytes_wanted.get(device, 0) + wanted[-1] * size
    shares = {
        device: min(1.0, (budget or Budget()).free_bytes(device) * _SHARE / size) if device.type == "cuda" else 1.0
        for device, size in bytes_wanted.items()
        if size
    }
    return [
        max(2, int(count * min(shares[device] for device, size in runner.page_bytes().items() if size)))
        for count, runner in zip(wanted, runners, strict=True)
    ]
