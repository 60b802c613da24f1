"""What a request asks for, read strictly: what is not served is refused by name, and nothing is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, Never, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowinfer.backends.base import Turn
from flowinfer.language.nearness import did_you_mean
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import chooser
from flowinfer.results import Question
from flowinfer.runs.remote import DIFFERENT
from flowinfer.serving.flows import Asking, ServedFlow
from flowinfer.serving.problems import Problem, no_choices, unsupported

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logit_bias": ({},),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), (0, 0.0)),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    **dict.fromkeys(("audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"), ()),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
    "top_k": (0, -1),
    "min_p": (0, 0.0),
    "repetition_penalty": (1, 1.0),
}
"""What is not served, and the values, besides null, that ask for nothing."""
_UNHEEDED = (
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
)
"""What says something about a request that changes no answer."""
_LEAST_TOP_P = 1e-9
_TOLD_TOPS = 2
"""A token's lead is that over the runner-up."""
_MOST_LISTED_PROMPTS = 256


class _Options(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = Field(None, max_length=10_000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(_Options):
    """The body of a request to /v1/chat/completions."""

    messages: list[Any] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class TraceBody(BaseModel):
    """The body of a request to /flowinfer/traces: an item of a data set, for a run elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    fingerprint: str
    """Of the plan that is to answer."""
    question: Question
    text: str
    """What fills {question}."""


class CompletionBody(_Options):
    """The body of a request to /v1/completions."""

    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=5)
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    echo: bool | None = None
    """Whether the prompt is a text that is only read, and told with its tokens' probabilities."""


_BESIDE_ECHO: Mapping[str, tuple[Any, ...]] = {  # a seed may stand there, as it may beside every text that is not drawn
    "stream": (None, False),
    "stream_options": (None,),
    "stop": (None, (), [], ""),
    "temperature": (None, 0),
    "top_p": (None, 1),
}
"""What each option of a text that is only read may be."""
Body = TypeVar("Body", bound=_Options)
Find = Callable[[str], ServedFlow]
"""Returns the flow that is served as a model, or raises a `Problem`."""


@dataclass(frozen=True)
class Wish:
    """What a request asks for."""

    askings: tuple[Asking, ...]
    """One, or one for each prompt of a list."""
    form: Literal["chat", "text", "trace", "told"]
    """How it is answered: in OpenAI's forms, as the whole trace, or as all that happens, one event after another."""
    streams: bool
    includes_usage: bool
    top_logprobs: int | None
    """How many alternatives of each token; None = no logprobs at all."""

    @property
    def flow(self) -> ServedFlow:
        """Return the flow that it is put to."""
        return self.askings[0].flow

    @property
    def param(self) -> str:
        """Return the name of what holds its questions."""
        return {"chat": "messages", "text": "prompt", "trace": "question", "told": "messages"}[self.form]


def read_chat(body: bytes, find: Find) -> Wish:
    """Read a request for a chat's next turn.

    Raises:
        Problem: it cannot be served, and why.
    """
    asked = _validated(ChatBody, body)
    flow = _writing(find(asked.model), "messages")
    said = turns_of(asked.messages, as_they_are=flow.takes_messages)
    if asked.top_logprobs and not asked.logprobs:
        raise Problem(400, "'top_logprobs' is given without 'logprobs'", param="top_logprobs")
    tokens = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
    everywhere, finally_ = _decoding(asked, tokens, flow)
    asking = Asking(flow, said[-1].content, tuple(said[:-1]), everywhere, finally_)
    tops = _told((asked.top_logprobs or 0) if asked.logprobs else None, flow)
    return Wish((asking,), "chat", bool(asked.stream), _wants_usage(asked), tops)


def read_told(body: bytes, find: Find) -> Wish:
    """Read a request for a chat's next turn of which everything is to be told.

    Raises:
        Problem: it cannot be served, and why.
    """
    wish = read_chat(body, find)
    return replace(wish, form="told", streams=True, top_logprobs=_TOLD_TOPS)


def read_completion(body: bytes, find: Find) -> Wish:
    """Read a request for completions of prompts.

    Raises:
        Problem: it cannot be served, and why.
    """
    asked = _validated(CompletionBody, body)
    flow = find(asked.model)
    flow = _reading(flow, asked) if asked.echo else _writing(flow, "prompt")
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise Problem(400, "'prompt' must be a text or a list of texts; token ids are not supported", param="prompt")
    if len(prompts) > _MOST_LISTED_PROMPTS:
        raise Problem(400, f"at most {_MOST_LISTED_PROMPTS} prompts in one request", param="prompt")
    if asked.echo:
        askings = [
            Asking(flow, _question(prompt, "prompt"), finally_={"max_tokens": 1}, echoes=asked.max_tokens)
            for prompt in prompts
        ]
    else:
        everywhere, finally_ = _decoding(asked, asked.max_tokens, flow)
        askings = [Asking(flow, _question(prompt, "prompt"), (), everywhere, finally_) for prompt in prompts]
    return Wish(tuple(askings), "text", bool(asked.stream), _wants_usage(asked), _told(asked.logprobs, flow))


def read_trace(body: bytes, find: Find) -> Wish:
    """Read a request for the whole work on an item of a data set.

    Raises:
        Problem: it cannot be served, and why.
    """
    try:
        asked = TraceBody.model_validate(_json(body))
    except ValidationError as error:
        raise _of_pydantic(error, TraceBody.model_fields) from None
    flow = find(asked.model)
    _text(json.dumps(asked.question.model_dump(), ensure_ascii=False), "question")
    if asked.fingerprint != fingerprint(flow.plan):
        message = f"the flow that is served as '{flow.name}' is another: {DIFFERENT}"
        raise Problem(409, message, code="another_flow", param="fingerprint")
    asking = Asking(flow, _question(asked.text, "question"), item=asked.question)
    return Wish((asking,), "trace", streams=False, includes_usage=False, top_logprobs=None)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that no request for a chat's next turn may have.

    Raises:
        Problem: see `read_chat`.
    """
    _validated(ChatBody, json.dumps({"model": "", "messages": [{}], **options}).encode())


def flow_named(name: str, flows: Mapping[str, ServedFlow], left_out: Mapping[str, str]) -> ServedFlow:
    """Return the flow that is served as a model.

    Args:
        left_out: why flows are not served that were to be.
    Raises:
        Problem: there is none of that name.
    """
    if name in flows:
        return flows[name]
    if name in left_out:
        told = f"the model '{name}' is not served: {left_out[name]}"
    else:
        near = did_you_mean(name, flows) or f"models here: {', '.join(list(flows)[:20])}"
        told = f"the model '{name[:200]}' does not exist; {near}"
    raise Problem(404, told, code="model_not_found", param="model")


def _writing(flow: ServedFlow, param: str) -> ServedFlow:
    """Return a flow that can answer words alone.

    Raises:
        Problem: it chooses among choices, which words alone have not.
    """
    if chooser(flow.plan.steps):
        raise no_choices(param)
    return flow


def _reading(flow: ServedFlow, asked: CompletionBody) -> ServedFlow:
    """Return a flow whose heads can read the prompt as it is.

    Raises:
        Problem: they cannot, or more is asked than to read it.
    """
    if flow.unreadable:
        raise Problem(400, f"'echo' is not served by '{flow.name}': {flow.unreadable}", param="echo")
    if asked.max_tokens not in (0, 1):
        message = "'echo' needs 'max_tokens' 0, or 1 for the likeliest token behind the prompt"
        raise Problem(400, message, param="max_tokens")
    for name, usual in _BESIDE_ECHO.items():
        if getattr(asked, name) not in usual:
            raise Problem(400, f"'{name}' does nothing beside 'echo'; leave it out", param=name)
    return flow


def _told(tops: int | None, flow: ServedFlow) -> int | None:
    """Return how many alternatives of each token are told.

    Raises:
        Problem: a flow was asked for them that cannot tell any probabilities.
    """
    if tops is not None and flow.untold:
        raise unsupported("logprobs", f"'logprobs' is not served by '{flow.name}': {flow.untold}")
    return tops


def _validated(form: type[Body], body: bytes) -> Body:
    data = _json(body)
    for name, values in _NEUTRAL.items():
        if name in data and not _is_neutral(data.pop(name), values):
            raise unsupported(name, f"'{name}' is not supported")
    for name in _UNHEEDED:
        data.pop(name, None)
    try:
        return form.model_validate(data)
    except ValidationError as error:
        raise _of_pydantic(error, form.model_fields) from None


def _json(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise Problem(400, "the body is nested too deep") from None
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise Problem(400, "the body must be a JSON object")
    return data


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def _is_neutral(value: Any, values: tuple[Any, ...]) -> bool:  # JSON
    return value is None or any(type(value) is type(one) and value == one for one in values)


def _of_pydantic(error: ValidationError, known: Collection[str]) -> Problem:
    """Return the first problem that pydantic found, in a client's words."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]"))
    top = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        near = did_you_mean(place, known)
        return Problem(
            400,
            f"unknown parameter '{place[:100]}'" + (f"; {near}" if near else ""),
            code="unknown_parameter",
            param=place,
        )
    if first["type"] == "missing":
        return Problem(400, f"'{place}' is missing", param=place)
    return Problem(400, f"'{place}': {first['msg'][:1].lower()}{first['msg'][1:]}", param=top)


def _wants_usage(asked: _Options) -> bool:
    return bool(asked.stream_options and asked.stream_options.include_usage)


def _decoding(asked: _Options, tokens: int | None, flow: ServedFlow) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of all steps and those of the steps that answer.

    Raises:
        Problem: they would make a flow that draws samples draw the same one each time, or write nothing.
    """
    if asked.temperature == 0 and flow.draws_samples:
        message = f"'{flow.name}' draws samples, which at temperature 0 are all the same"
        raise Problem(400, f"{message}; leave 'temperature' out, or give one above 0", param="temperature")
    if tokens == 0:
        raise Problem(400, "'max_tokens' 0 writes nothing; it is for 'echo'", param="max_tokens")
    top_p = None if asked.top_p is None else max(asked.top_p, _LEAST_TOP_P)
    everywhere = {"temperature": asked.temperature, "top_p": top_p, "seed": asked.seed}
    stop = (asked.stop,) if isinstance(asked.stop, str) else asked.stop
    finally_ = {"max_tokens": tokens, "stop": None if stop is None else tuple(stop)}
    return _given(everywhere), _given(finally_)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def turns_of(messages: list[Any], *, as_they_are: bool = False) -> list[Turn]:
    """Return what was said: the system's words first, then turn by turn; the last one asks.

    Args:
        messages: as the client sent them.
        as_they_are: leave their order, and those of one role that follow one another.
    Raises:
        Problem: a message is none, or the last one does not ask.
    """
    said = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    system = [turn.content for turn in said if turn.role == "system"]
    spoken = [turn for turn in said if turn.role != "system"]
    if not spoken or spoken[-1].role != "user":
        raise Problem(400, "the last message must be the user's", param="messages")
    if as_they_are:
        if said[-1].role != "user":
            raise Problem(400, "the last message must be the user's", param="messages")
        _question(said[-1].content, "messages")
        return said
    joined = [
        Turn(role, "\n\n".join(turn.content for turn in turns))
        for role, turns in groupby(spoken, key=lambda turn: turn.role)
    ]
    _question(joined[-1].content, "messages")
    return [*([Turn("system", "\n\n".join(system))] if system else []), *joined]


def _turn(message: Any, place: str) -> Turn:  # JSON
    if not isinstance(message, dict):
        raise Problem(400, f"{place} must be an object with role and content", param=place)
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise Problem(400, f"{place}: tools are not supported", code="unsupported_parameter", param=place)
    if role not in ("system", "developer", "user", "assistant"):
        raise Problem(400, f"{place}.role must be system, developer, user or assistant", param=f"{place}.role")
    content = _content(message.get("content"), f"{place}.content")
    return Turn("system" if role in ("system", "developer") else role, content)


def _content(content: Any, place: str) -> str:  # JSON
    """Return a message's text; parts of a list are joined."""
    if isinstance(content, str):
        return _text(content, place)
    if not isinstance(content, list) or not content:
        raise Problem(400, f"{place} must be a text or a list of text parts", param=place)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            what = f"parts of type '{str(kind)[:50]}'" if kind else "parts without a type"
            raise Problem(400, f"{place}[{index}]: {what} are not supported, only text", param=f"{place}[{index}]")
        texts.append(_text(part.get("text"), f"{place}[{index}].text"))
    return "\n".join(texts)


def _text(text: Any, place: str) -> str:  # JSON
    if not isinstance(text, str):
        raise Problem(400, f"{place} must be a text", param=place)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Problem(400, f"{place} has half of a surrogate pair, which is no character", param=place) from None
    return text


def _question(text: str, param: str) -> str:
    if not _text(text, param).strip():
        raise Problem(400, "the question is empty", param=param)
    return text
