"""What the server answers, as an OpenAPI document; bodies by the schemas that read them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from flowinfer.serving.bodies import ChatBody, CompletionBody, TraceBody

_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                    },
                },
            ]
        },
    },
}
_PROMPT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def document(names: Sequence[str]) -> dict[str, Any]:
    """Return the document.

    Args:
        names: of the flows that are served.
    """
    chat, completion = (_schema(form) for form in (ChatBody, CompletionBody))
    chat["properties"]["messages"]["items"] = _MESSAGE
    completion["properties"]["prompt"] = _PROMPT
    for schema in (chat, completion):
        schema["properties"]["model"]["enum"] = list(names)
    trace = TraceBody.model_json_schema(ref_template="#/components/schemas/TraceBody/$defs/{model}")
    paths = {
        "/v1/models": _get("The flows that are served"),
        "/v1/models/{id}": _get("One of them", "id"),
        "/v1/chat/completions": _post("The next turn of a chat", "ChatBody"),
        "/v1/completions": _post("Answers to prompts", "CompletionBody"),
        "/health": _get("Whether the engine is alive"),
        "/ready": _get("Whether questions are answered now"),
        "/metrics": _get("What was counted, for Prometheus"),
        "/flowinfer/traces": _post("All that a flow does for an item of a data set", "TraceBody"),
        "/flowinfer/chat": _post("The next turn of a chat, all that happens told as server-sent events", "ChatBody"),
        "/flowinfer/run": _get("The samples of the run that the page shows"),
        "/flowinfer/run/samples": _get("One of them", "id", place="query"),
        "/flowinfer/events": _get("What flows do, as server-sent events"),
        "/flowinfer/flows/{id}.svg": _get("A flow's drawing", "id"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "flowinfer", "version": version("flowinfer")},
        "paths": paths,
        "components": {
            "schemas": {"ChatBody": chat, "CompletionBody": completion, "TraceBody": trace},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _schema(form: type[ChatBody] | type[CompletionBody]) -> dict[str, Any]:
    schema = form.model_json_schema()
    options = schema.pop("$defs")["StreamOptions"]
    schema["properties"]["stream_options"] = {"anyOf": [options, {"type": "null"}]}
    return schema


def _get(summary: str, parameter: str | None = None, place: str = "path") -> dict[str, Any]:
    named = [{"name": parameter, "in": place, "required": True, "schema": {"type": "string"}}] if parameter else []
    return {"get": {"summary": summary, "parameters": named, "responses": {"200": {"description": "it"}}}}


def _post(summary: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    responses = {"200": {"description": "the answer"}, "default": {"description": "an error in OpenAI's form"}}
    return {"post": {"summary": summary, "requestBody": {"required": True, "content": content}, "responses": responses}}
