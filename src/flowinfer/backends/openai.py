"""Backend `openai`: any endpoint that speaks OpenAI's chat completions.

Text only: it cannot be a head of a `|` group.
"""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

from flowinfer.backends.base import TextCompletion
from flowinfer.errors import LoadError, RunError
from flowinfer.results import FinishReason
from flowinfer.spec import Decoding, ModelSpec

_RETRIES = 4
_TIMEOUT_SECONDS = 300.0
_KNOCK_SECONDS = 10.0
_MOST_TOKENS = 10**9
"""What says that it wrote more says nothing."""
_PASSING = {408, 409, 429, 500, 502, 503, 504}


class OpenAIModel:
    """A model behind an endpoint; a `TextModel`."""

    def __init__(self, spec: ModelSpec, client: httpx.Client, *, pause_seconds: float = 0.5) -> None:
        self.name = spec.name
        self._spec = spec
        self._client = client
        self._pause_seconds = pause_seconds

    def complete(self, prompt: str, decoding: Decoding, *, seed: int) -> TextCompletion:
        """Complete one prompt, trying again where the endpoint says that it may pass.

        Raises:
            RunError: it failed for good.
        """
        start = time.perf_counter()
        answer = self._post(self._body(prompt, decoding, seed))
        try:
            choice = answer["choices"][0]
            text = _text(choice["message"]["content"])
            reason: FinishReason = "length" if choice.get("finish_reason") == "length" else "eos"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RunError(f"'{self.name}': the endpoint's answer has no choices: {str(answer)[:200]}") from error
        return TextCompletion(text, _tokens(answer), reason, time.perf_counter() - start)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _body(self, prompt: str, decoding: Decoding, seed: int) -> dict[str, Any]:  # JSON
        messages = [{"role": "user", "content": prompt}]
        if self._spec.system is not None:
            messages.insert(0, {"role": "system", "content": self._spec.system})
        body: dict[str, Any] = {
            "model": self._spec.ref,
            "messages": messages,
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": seed,
        }
        return body | ({"stop": list(decoding.stop)} if decoding.stop else {})

    def _post(self, body: dict[str, Any]) -> Any:  # JSON
        problem = ""
        for attempt in range(_RETRIES + 1):
            if attempt:
                time.sleep(self._pause_seconds * 2 ** (attempt - 1))
            try:
                response = self._client.post("chat/completions", json=body)
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
                continue
            if response.status_code == 200:
                try:
                    return response.json()
                except ValueError as error:
                    raise RunError(f"'{self.name}': the endpoint's answer is not JSON") from error
            problem = f"HTTP {response.status_code}: {response.text[:200]}"
            if response.status_code not in _PASSING:
                break
        raise RunError(f"'{self.name}' at {self._client.base_url}: {problem}", help="check base_url, model id and key")


def _text(content: Any) -> str:  # JSON
    """Return a message's text: a string, null, or a list of parts of which those with text count."""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if "text" in part)
    return str(content or "")


def _tokens(answer: Any) -> int:  # JSON
    """Return how many tokens an endpoint says it wrote; 0 where it says nothing usable."""
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= _MOST_TOKENS else 0


def _refuse_unreachable(spec: ModelSpec, client: httpx.Client) -> None:
    """Knock once, so that a dead endpoint stops a run and does not fail its questions one after another."""
    try:
        client.get("models", timeout=_KNOCK_SECONDS)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
        client.close()
        raise LoadError(
            f"model '{spec.name}': the endpoint {spec.base_url} cannot be reached: {error}",
            help="is the server running? check base_url",
        ) from error
    except httpx.HTTPError:
        return  # it is there; whether it answers is seen at the first question


def load(spec: ModelSpec, device: str, dtype: str = "auto") -> OpenAIModel:
    """Return a client for a model's endpoint; device and dtype are the endpoint's own affair.

    Raises:
        LoadError: no base_url or nothing there, or the key's environment variable is not set.
    """
    del device, dtype
    if not spec.base_url:
        raise LoadError(f"model '{spec.name}': backend openai needs base_url", help='base_url="http://host:8000/v1"')
    headers = {}
    if spec.api_key_env:
        key = os.environ.get(spec.api_key_env)
        if not key:
            raise LoadError(
                f"model '{spec.name}': the environment variable {spec.api_key_env} is not set",
                help=f"export {spec.api_key_env}=...",
            )
        headers["Authorization"] = f"Bearer {key}"
    try:
        client = httpx.Client(base_url=spec.base_url.rstrip("/") + "/", headers=headers, timeout=_TIMEOUT_SECONDS)
    except (httpx.InvalidURL, ValueError) as error:
        raise LoadError(
            f"model '{spec.name}': base_url '{spec.base_url}' is no address: {error}",
            help='base_url="http://host:8000/v1"',
        ) from error
    _refuse_unreachable(spec, client)
    return OpenAIModel(spec, client)
