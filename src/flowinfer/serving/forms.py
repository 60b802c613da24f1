"""Answers in OpenAI's forms: whole ones, chunks of streams, tokens with their probabilities, usage."""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flowinfer.engine.base import Alternative, TokenEvent
from flowinfer.planning.plain import PLACED, system_fingerprint, to_json
from flowinfer.planning.plan import Member, Source, Step, members
from flowinfer.results import FinishReason, Trace
from flowinfer.serving.flows import ServedFlow
from flowinfer.serving.telling import Piece

_REASONS: Mapping[FinishReason, str] = {
    **dict.fromkeys(("eos", "stop", "vote", "likelihood"), "stop"),
    "content_filter": "content_filter",
}
_LEAST = -9999.0
"""Logarithm of a probability of 0, as OpenAI writes it."""


class Form:
    """How one request's answers are written.

    Args:
        kind: chat completions or plain completions.
        request_id: of the request, without its prefix.
        flow: that answers.
        created: seconds since 1970.
        tops: alternatives of each token; None = no logprobs.
    """

    def __init__(
        self, kind: Literal["chat", "text"], request_id: str, flow: ServedFlow, created: int, tops: int | None
    ) -> None:
        self._is_chat, self._tops = kind == "chat", tops
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": created,
            "model": flow.name,
            "system_fingerprint": system_fingerprint(flow.plan),
        }
        self._chunk_head = self._head | ({"object": "chat.completion.chunk"} if self._is_chat else {})
        self._offsets: dict[int, int] = {}
        """Characters that were written of each answer."""
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}
        """What has begun a character of each."""

    def whole(self, pieces: Sequence[Piece], traces: Sequence[Trace], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return whole answers."""
        both = enumerate(zip(pieces, traces, strict=True))
        choices = [self._whole_choice(index, piece, trace) for index, (piece, trace) in both]
        return {**self._head, "choices": choices, "usage": usage}

    def first(self, index: int) -> dict[str, Any] | None:
        """Return what a stream begins with, if with anything."""
        if not self._is_chat:
            return None
        return self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """Return a piece of a streamed answer; None where the form has no place for it."""
        logprobs = self._logprobs(index, piece.tokens)
        if self._is_chat:
            delta = {"content": piece.text} if piece.text or piece.tokens else {}
            delta |= {"reasoning_content": piece.thought} if piece.thought else {}
            return self._choice(index, {"delta": delta}, logprobs, None)
        if not piece.text and not piece.tokens:
            return None
        return self._choice(index, {"text": piece.text}, logprobs, None)

    def last(self, index: int, trace: Trace) -> dict[str, Any]:
        """Return what ends a streamed answer."""
        content: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        return self._choice(index, content, None, finish_reason(trace.finish_reason))

    def usage(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chunk that says what a stream has cost."""
        return {**self._chunk_head, "choices": [], "usage": usage}

    def _choice(
        self, index: int, content: Mapping[str, Any], logprobs: Mapping[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._chunk_head, "choices": [choice]}

    def _whole_choice(self, index: int, piece: Piece, trace: Trace) -> dict[str, Any]:
        content: dict[str, Any] = {"text": piece.text}
        if self._is_chat:
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            content = {"message": message | ({"reasoning_content": piece.thought} if piece.thought else {})}
        logprobs = self._logprobs(index, piece.tokens)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason(trace.finish_reason)}

    def _logprobs(self, index: int, tokens: Sequence[TokenEvent]) -> dict[str, Any] | None:
        if self._tops is None:
            return None
        if self._is_chat:
            return {"content": [self._token(token) for token in tokens], "refusal": None}
        texts, offsets = [_shown(token.piece) for token in tokens], []
        decoder = self._decoders.setdefault(index, codecs.getincrementaldecoder("utf-8")(errors="replace"))
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(decoder.decode(token.piece or b""))
        return {
            "tokens": texts,
            "token_logprobs": [None if token.probability < 0 else _log(token.probability) for token in tokens],
            "top_logprobs": [self._named_tops(token) for token in tokens] if self._tops else None,
            "text_offset": offsets,
        }

    def _token(self, token: TokenEvent) -> dict[str, Any]:
        tops = [_entry(top.piece, top.probability) for top in self._tops_of(token)]
        return {**_entry(token.piece, token.probability), "top_logprobs": tops}

    def _named_tops(self, token: TokenEvent) -> dict[str, float] | None:
        """Return alternatives by what they show as: of those that show alike (parts of characters) the likeliest."""
        if token.probability < 0:
            return None
        return {_shown(top.piece): _log(top.probability) for top in reversed(self._tops_of(token))}

    def _tops_of(self, token: TokenEvent) -> Sequence[Alternative]:
        return token.tops[: self._tops]


def finish_reason(own: FinishReason) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return _REASONS.get(own, "length")


def usage(flow: ServedFlow, traces: Sequence[Trace]) -> dict[str, Any]:
    """Return what answers have cost: sums over all calls of models, and their parts.

    Every head of a group has read a prompt of its own and is counted with all tokens that the group wrote; of what an
    endpoint has read and written stands here what it tells.
    """
    steps: list[dict[str, Any]] = []
    for trace in traces:
        for result in trace.steps:
            read = sum(head.prompt_tokens for head in result.heads)
            cost = result.usage.cost if result.usage else None
            read += result.usage.input_tokens if result.usage else 0
            steps.append(
                {
                    "step": result.step,
                    "title": flow.plan.step(result.step).title,
                    "calls": max(1, len(result.heads)),
                    "prompt_tokens": read,
                    "completion_tokens": result.tokens * max(1, len(result.heads)),
                    "seconds": result.seconds,
                    **({} if cost is None else {"cost": cost}),
                }
            )
    prompt = sum(step["prompt_tokens"] for step in steps)
    completion = sum(step["completion_tokens"] for step in steps)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "flowinfer": {"steps": steps},
    }


def model(flow: ServedFlow, created: int, context_length: int | None) -> dict[str, Any]:
    """Return a flow as a model of the list.

    Args:
        flow: that is served.
        created: seconds since 1970.
        context_length: most tokens of a prompt with its answer; None while that is not known.
    """
    assert flow.flow is not None, "a server knows its flows as they were checked"
    heads = [member.model for step in flow.plan.steps for member in members(step.source)]
    answer = flow.plan.answer
    return {
        "id": flow.name,
        "object": "model",
        "created": created,
        "owned_by": "flowinfer",
        "flowinfer": {
            "flow": flow.flow.source.strip(),
            "plan": {name: part for name, part in to_json(flow.plan).items() if name in PLACED},
            "heads": list(dict.fromkeys(heads)),
            "context_length": context_length,
            "supported_parameters": _supported(flow),
            "steps": [_step(step) for step in flow.plan.steps],
            "answer": {"kind": answer.kind, "steps": list(answer.steps), "finals": list(flow.plan.finals)},
        },
    }


def _step(step: Step) -> dict[str, Any]:
    """Return a step with the parts of the flow's drawing that it stands for."""
    heads = [{"node": member.node, "model": member.model} for member in members(step.source)]
    return {"id": step.id, "title": step.title, "label": step.label, "heads": heads, "groups": _groups(step.source)}


def _groups(source: Source) -> list[str]:
    if isinstance(source, Member):
        return []
    return [source.group, *(group for inner in source.sources for group in _groups(inner))]


def _supported(flow: ServedFlow) -> list[str]:
    """Return the parameters of a request that count for a flow."""
    always = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options")
    told = () if flow.untold else ("logprobs", "top_logprobs")
    return [*always, *told, *(() if flow.unreadable else ("echo",))]


def _entry(piece: bytes | None, probability: float) -> dict[str, Any]:
    return {"token": _shown(piece), "logprob": _log(probability), "bytes": list(piece or b"")}


def _shown(piece: bytes | None) -> str:
    return (piece or b"").decode("utf-8", errors="replace")


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else _LEAST
