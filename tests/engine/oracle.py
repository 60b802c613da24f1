"""The oracle: fused decoding as plainly as it can be said, over the models' own sessions.

All rows begin together and none is admitted later; nothing is drafted, streamed, timed or told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.base import Prompt
from flowinfer.engine.base import Row
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.loops.sampling import draws_of, row_key, sample
from flowinfer.engine.loops.spaces import joined_heads
from flowinfer.fusion.advance import Context, new_context
from flowinfer.fusion.utf8 import BOUNDARY, trim
from flowinfer.planning.plan import Step
from flowinfer.results import FinishReason, HeadTimes, StepResult
from flowinfer.spec import Decoding


@dataclass
class Text:
    """What a row has written."""

    row: Row
    decoding: Decoding
    prompts: list[Prompt]
    joined: tuple[bool, ...]
    contexts: list[Context]
    fed: list[int]
    agreed: list[int]
    written: bytes = b""
    tokens: int = 0
    near_ties: int = 0
    state: int = BOUNDARY
    finish_reason: FinishReason | None = None
    handles: list[int] = field(default_factory=list)


def decode_plainly(step: Step, models: Sequence[Any], rows: Sequence[Row]) -> list[StepResult]:
    """Return what each row's step comes to."""
    mixer = Mixer(step, models)
    texts = [_begin(mixer, step, models, row) for row in rows]
    sessions = [model.open() for model in models]
    for k, session in enumerate(sessions):
        for text, handle in zip(texts, session.add([text.prompts[k].ids for text in texts]), strict=True):
            text.handles.append(handle)
    while live := [text for text in texts if text.finish_reason is None]:
        slots = _choose(
            mixer, step, models, live, [s.logits([t.handles[k] for t in live]) for k, s in enumerate(sessions)]
        )
        chunks: list[dict[int, Sequence[int]]] = [{} for _ in sessions]
        for text, slot in zip(live, slots, strict=True):
            _emit(mixer, text, slot)
            for k, session in enumerate(sessions):
                if text.finish_reason is None:
                    vocabulary = mixer.vocabulary
                    change = text.contexts[k].append(vocabulary.keys[slot], vocabulary.ids(k, slot))
                    if len(text.prompts[k].ids) + len(text.contexts[k].ids) > models[k].max_positions:
                        text.finish_reason = "context"
                    else:
                        session.rollback(text.handles[k], change.rollback)
                        chunks[k][text.handles[k]] = change.ids
                        text.fed[k] += len(change.ids)
        for session, own in zip(sessions, chunks, strict=True):
            session.feed(own)
    return [_result(mixer, step, text) for text in texts]


def _begin(mixer: Mixer, step: Step, models: Sequence[Any], row: Row) -> Text:
    decoding = row.decoding or step.decoding
    prompts = [
        model.prompt(row.prompts[one.node], decoding.prefill) for model, one in zip(models, mixer.members, strict=True)
    ]
    tokens = [model.vocabulary().tokens for model in models]
    joined = joined_heads(step.decoding, prompts, tokens)
    return Text(
        row,
        decoding,
        prompts,
        joined,
        [
            new_context(decoding.context, model.tokenizer, own, lstrip_first=is_joined)
            for model, own, is_joined in zip(models, tokens, joined, strict=True)
        ],
        *([0] * len(models), [0] * len(models)),
    )


def _choose(
    mixer: Mixer, step: Step, models: Sequence[Any], texts: Sequence[Text], logits: Sequence[Tensor]
) -> list[int]:
    """Return each text's next slot; where a near tie is to be decided alone, from a forward over its whole context."""
    probs = mixer.lift(logits, [text.joined if not text.tokens else (False,) * len(models) for text in texts])
    fused = mixer.fuse(probs)
    allowed = mixer.vocabulary.guard.mask(torch.tensor([text.state for text in texts]))
    best = fused.masked_fill(~allowed, -1.0).sort(descending=True, stable=True)
    leads = (best.values[:, 0].clamp_min(0.0) - best.values[:, 1].clamp_min(0.0)).tolist()
    keys = [row_key(text.decoding, text.row.question_id, text.row.step) for text in texts]
    draws = draws_of([text.decoding for text in texts], keys, [text.tokens for text in texts], mixer.device)
    drawn = sample(fused, allowed, draws) if draws else best.indices[:, 0]
    margin = step.decoding.near_tie_eps or 1e-6
    slots = []
    for index, text in enumerate(texts):
        slot, is_tie = int(best.indices[index, 0]), leads[index] < margin
        if text.decoding.temperature > 0:
            slot, is_tie = int(drawn[index]), False
        text.near_ties += is_tie
        if is_tie and step.decoding.strict and len(texts) > 1:
            before, counted = list(text.agreed), text.near_ties
            slot = _choose(mixer, step, models, [text], _alone(models, text))[0]
            text.agreed, text.near_ties = before, counted
        text.agreed = [n + (int(own[index].argmax()) == slot) for n, own in zip(text.agreed, probs, strict=True)]
        slots.append(slot)
    return slots


def _alone(models: Sequence[Any], text: Text) -> list[Tensor]:
    sessions = [model.open() for model in models]
    contexts = zip(text.prompts, text.contexts, strict=True)
    ids = [[*prompt.ids, *context.ids] for prompt, context in contexts]
    return [session.logits(session.add([own])) for session, own in zip(sessions, ids, strict=True)]


def _emit(mixer: Mixer, text: Text, slot: int) -> None:
    vocabulary = mixer.vocabulary
    if slot == vocabulary.eos_slot:
        text.finish_reason = "eos"
        return
    text.written += vocabulary.keys[slot]
    text.state = vocabulary.guard.advance(text.state, slot)
    text.tokens += 1
    stops = [at for stop in text.decoding.stop if (at := text.written.find(stop.encode())) >= 0]
    if stops:
        text.written, text.finish_reason = text.written[: min(stops)], "stop"
    elif text.tokens == text.decoding.max_tokens:
        text.finish_reason = "length"


def _result(mixer: Mixer, step: Step, text: Text) -> StepResult:
    assert text.finish_reason
    whole = text.decoding.prefill + trim(text.written).decode(errors="replace")
    steps = max(1, text.tokens + (text.finish_reason == "eos"))
    heads = tuple(
        HeadTimes(
            node=member.node,
            model=member.model,
            prompt_tokens=len(prompt.ids),
            fed_tokens=fed,
            forward_seconds=0.0,
            transfer_seconds=0.0,
            agreement=agreed / steps,
        )
        for member, prompt, fed, agreed in zip(mixer.members, text.prompts, text.fed, text.agreed, strict=True)
    )
    return StepResult(
        step=step.id,
        text=whole,
        passed_on=whole,
        prompts={head.node: prompt.text for head, prompt in zip(heads, text.prompts, strict=True)},
        tokens=text.tokens,
        finish_reason=text.finish_reason,
        seconds=0.0,
        heads=heads,
        near_ties=text.near_ties,
    )
