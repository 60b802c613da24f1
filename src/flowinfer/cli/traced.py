"""An answer stage by stage: prompts, texts, and which head wanted which token, where they disagreed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowinfer.engine.base import TokenEvent
from flowinfer.runs.tokentrace import token_line
from flowinfer.serving.events import Event, token_of


def traced(events: Sequence[Event]) -> Iterator[str]:
    """Yield the lines that tell of an answer.

    Args:
        events: what happened to its question, of `serving.events`.
    """
    tokens: dict[str, list[TokenEvent]] = {}
    for event in events:
        match event["event"]:
            case "step_began":  # one that begins again starts from nothing
                tokens[event["step"]] = []
            case "token":
                tokens.setdefault(event["step"], []).append(token_of(event))
            case "step_ended":
                yield from _stage(event, tokens.get(event["step"], []))
            case "answered":
                yield from (f"== {taken}" for taken in event.get("selections", ()))
                if event.get("ballot"):
                    yield f"== vote: {event['ballot']}"


def _stage(event: Event, tokens: Sequence[TokenEvent]) -> Iterator[str]:
    heads = event["heads"]
    lost = [head.get("lost_at") for head in heads]
    names = " | ".join(
        head["model"] + ("" if at is None else f" (lost after {at} tokens)")
        for head, at in zip(heads, lost, strict=True)
    )
    yield f"== {event['step']}  {names}: {event['tokens']} tokens, {event['seconds']:.2f} s, {event['finish_reason']}"
    models = {head.node: head.model for token in tokens for head in token.heads}
    for node, prompt in event["prompts"].items():
        yield f"-- prompt of {models.get(node, names)}"
        yield prompt
    yield "-- text"
    yield event["text"]
    if len(heads) > 1 and tokens:
        yield from _votes(tokens)


def _votes(tokens: Sequence[TokenEvent]) -> Iterator[str]:
    """Yield a line for each token that some head would not have written, with what it wanted."""
    disputed = [token for token in tokens if any(head.piece != token.piece for head in token.heads)]
    yield f"-- {len(tokens) - len(disputed)} of {len(tokens)} tokens are every head's favourite; the others:"
    yield from (token_line("", token).lstrip() for token in disputed)
