"""Which decoding loop serves a step, over which sessions: the device's where it can, else the host's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from flowinfer.backends.base import TokenModel, is_elsewhere
from flowinfer.engine.base import Decoder, Observer
from flowinfer.engine.budget import Budget
from flowinfer.engine.loops.acceptance import Payoff
from flowinfer.engine.loops.drafting import make_drafter
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.likelihood import host_decoder
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.planning.plan import Step

Engine = Literal["auto", "packed", "reference"]
"""auto = packed where it can run, on CPUs in float32 or wider; packed asks for it in any precision; reference is plain:
rounds over the models' own sessions, without drafts."""

_MOST_DRAFTING = 8
"""Rows up to which drafts are tried on a GPU by themselves: with more, a step has columns enough."""


@dataclass(frozen=True)
class Loop:
    """What a decoding loop is made from."""

    step: Step
    models: Sequence[TokenModel]
    writer: TokenModel | None
    """A model that drafts and is no head."""
    batch: int
    observer: Observer
    keeps_thinking: bool
    budget: Budget = field(default_factory=Budget)
    """What it may take of its devices' memory."""


def is_on_gpu(models: Sequence[TokenModel], engine: Engine) -> bool:
    """Return whether those of a step's models that are here run packed on GPUs, if they can."""
    here = [model for model in models if not is_elsewhere(model)]
    return engine != "reference" and bool(here) and all(model.device.type == "cuda" for model in here)


def make_decoder(loop: Loop, engine: Engine) -> Decoder:
    """Return the decoding loop of some heads; say why where the packed engine is asked for and cannot serve."""
    step = loop.step
    on_host = partial(
        host_decoder(step),
        step,
        loop.models,
        batch=loop.batch,
        observer=loop.observer,
        keeps_thinking=loop.keeps_thinking,
        payoff=Payoff(is_on=step.decoding.speculate == "auto"),
    )
    if engine == "reference":
        return on_host()
    drafter = make_drafter(step, loop.writer) if host_decoder(step) is RoundDecoder else None
    on_gpu = is_on_gpu(loop.models, engine)
    here = [model for model in loop.models if not is_elsewhere(model)]
    on_cpu = all(model.device.type == "cpu" and model.is_exact for model in here)
    if not here or (engine == "auto" and not on_gpu and not on_cpu):
        return on_host(drafter=drafter)
    from flowinfer.engine.loops.packing import packed_decoder, runners_of, session_maker
    from flowinfer.engine.loops.threads import choose_threads

    waits_for_none = loop.batch > _MOST_DRAFTING and step.decoding.speculate == "auto"
    if on_gpu and len(here) == len(loop.models) and (waits_for_none or drafter is None):
        heads = Heads(step, loop.models, observer=loop.observer, keeps_thinking=loop.keeps_thinking)
        made = packed_decoder(heads, loop.batch, loop.budget)
        if not isinstance(made, str):
            return made
    runners = runners_of(here)
    if isinstance(runners, str):
        if on_gpu or engine == "packed":
            loop.observer.notice(f"step {step.id} {step.title} runs on its models' own sessions: {runners}")
        return on_host(drafter=drafter)
    sessions = session_maker(step, here, runners, loop.batch, loop.budget)
    return on_host(drafter=drafter, open_sessions=sessions, threads=choose_threads(runners))
