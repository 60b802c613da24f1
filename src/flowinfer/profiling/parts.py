"""One step taken apart: the host's decoding loop with a clock that waits for each of its phases."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

from flowinfer.backends.base import TokenModel, Traffic, traffic_of
from flowinfer.engine.base import Observer, Row
from flowinfer.engine.loops.likelihood import host_decoder
from flowinfer.engine.loops.rounds import RoundStream
from flowinfer.errors import RunError, UsageError
from flowinfer.planning.plan import Step, members
from flowinfer.profiling.figures import NetworkFigures
from flowinfer.profiling.spans import Recorder

WARM_UPS = 3
"""Tokens emitted before those that count."""


@dataclass(frozen=True)
class Parts:
    """The phases of a step's loop."""

    recorder: Recorder
    prompt_tokens: tuple[float, ...]
    """Mean length of each head's prompts."""
    context: float
    """Mean ids of a row and head while measured."""
    networks: tuple[NetworkFigures | None, ...]
    """Of each head that is elsewhere."""


def take_apart(step: Step, models: Sequence[TokenModel], rows: Sequence[Row], steps: int) -> Parts:
    """Decode rows together over the models' own sessions, one phase after another.

    Args:
        step: what to decode.
        models: its heads, without end tokens.
        rows: decoded together.
        steps: tokens to measure in every row.
    Raises:
        UsageError: a row would exceed a model's positions.
        RunError: a row cannot run.
    """
    lanes = _lane_names([member.model for member in members(step.source)])
    recorder = Recorder(step.id, lanes, [model.device for model in models])
    endless = step.decoding.model_copy(update={"max_tokens": WARM_UPS + steps + 1})
    decoder = host_decoder(step)(
        replace(step, decoding=endless), models, batch=len(rows), observer=Observer(), clock=recorder
    )
    stream, lengths = decoder.stream(), []
    for row in rows:
        stream.add(row)
    for number in range(WARM_UPS + steps):
        recorder.index = number - WARM_UPS
        if number == WARM_UPS:
            before = _traffic(models)
        for failed in stream.turn():
            raise RunError(f"step {step.id} {step.title}: {failed.error}")
        if number == 0:
            prompt_tokens = _prompt_tokens(stream, models, steps)
        if number >= WARM_UPS:
            lengths.append(_mean_length(stream))
    stream.close()  # keys and values must not stand in the way of what comes next
    pairs = zip(before, _traffic(models), strict=True)
    networks = tuple(NetworkFigures.between(*pair, steps=steps) for pair in pairs)
    return Parts(recorder, prompt_tokens, sum(lengths) / len(lengths), networks)


def _traffic(models: Sequence[TokenModel]) -> list[Traffic | None]:
    """Return what has gone to each head elsewhere and come back so far."""
    return [copy(traffic_of(model)) for model in models]


def _prompt_tokens(stream: RoundStream, models: Sequence[TokenModel], steps: int) -> tuple[float, ...]:
    """Return the mean length of each head's prompts.

    Raises:
        UsageError: one is so long that an answer would exceed the model's positions.
    """
    means = []
    for k, model in enumerate(models):
        counts = [len(own.live.prompts[k].ids) for own in stream.batch]
        room = model.max_positions - max(counts) - WARM_UPS
        if steps > room:
            raise UsageError(
                f"--steps {steps}: a prompt has {max(counts)} tokens for '{model.name}', which reads at most"
                f" {model.max_positions} with its answer",
                help=f"at most --steps {max(room, 0)}, or shorter questions",
            )
        means.append(sum(counts) / len(counts))
    return tuple(means)


def _mean_length(stream: RoundStream) -> float:
    counts = [
        session.length(handle)
        for own in stream.batch
        for session, handle in zip(stream.sessions, own.handles, strict=True)
    ]
    return sum(counts) / len(counts)


def _lane_names(models: Sequence[str]) -> list[str]:
    """Name the heads by their models; a model's second head is numbered. Example: A B A -> A, B, A 2."""
    return [
        name if (count := models[: index + 1].count(name)) == 1 else f"{name} {count}"
        for index, name in enumerate(models)
    ]
