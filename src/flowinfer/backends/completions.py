"""What an endpoint answers: a chat completion as one JSON text, or in the pieces of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowinfer.output.secrets import begun_secret, redacted
from flowinfer.results import FinishReason

_MOST_TOKENS = 10**9
_MOST_LINE_BYTES = 1 << 20
_SHOWN = 200
_REASONS: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
"""Other words for why an answer ended mean that its model ended it."""


class Unusable(Exception):
    """What came is no answer; the message is one line.

    Args:
        status: the error's number, where the endpoint told one in an answer that said 200.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BrokenOff(Unusable):
    """A stream ended before its answer had."""


@dataclass(frozen=True)
class Answer:
    """An endpoint's answer to one prompt."""

    text: str
    """With what was thought before it between the marks of a thought."""
    why: FinishReason
    tokens: int
    """Tokens that were written; 0 = not told."""
    input_tokens: int
    """Tokens that were read; 0 = not told."""
    cached_tokens: int
    """Those of them that the endpoint had read before."""


class Answering:
    """An answer as it comes: whole, or in pieces.

    Args:
        wrote: hears every piece of the text, without secrets; None = nobody wants them.
    """

    def __init__(self, wrote: Callable[[str], None] | None = None) -> None:
        self._wrote = wrote
        self._line = bytearray()
        """The bytes of a line that has not ended."""
        self._texts: list[str] = []
        self._held = ""
        """What may go on as a secret or is half a character."""
        self._refusals: list[str] = []
        self._is_thinking = self._has_content = False
        self._reason: str | None = None
        self._usage: Any = None  # JSON
        self.is_over = False
        """Whether a stream has said that nothing more comes."""

    @property
    def num_told(self) -> int:
        """Return how many characters have been told."""
        return sum(map(len, self._texts))

    @property
    def num_come(self) -> int:
        """Return how many characters have come, those that are held back as well."""
        return self.num_told + len(self._held)

    def whole(self, body: str) -> Answer:
        """Read an answer that came in one piece.

        Raises:
            Unusable: it is none.
        """
        data = _json(body)
        try:
            choice = data["choices"][0]
            message = choice["message"]
            self._take(message)
            self._reason, self._usage = choice.get("finish_reason"), data.get("usage")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Unusable(f"the endpoint's answer has no choices: {_short(body)}") from None
        return self._answer()

    def feed(self, data: bytes) -> bool:
        """Take a part of a stream of server-sent events; return whether nothing more comes.

        Raises:
            Unusable: the stream tells of an error, or is none.
        """
        self._line += data
        *lines, self._line = self._line.split(b"\n")
        if len(self._line) > _MOST_LINE_BYTES:
            raise Unusable("the endpoint's stream has an event larger than 1 MiB")
        for line in lines:
            name, _, value = line.decode("utf-8", "replace").strip().partition(":")
            if name == "data" and not self.is_over:
                self._event(value.strip())
        return self.is_over

    def streamed(self) -> Answer:
        """Return what came in a stream that has ended.

        Raises:
            BrokenOff: the rest is missing.
            Unusable: it holds no answer.
        """
        if self._line:
            self.feed(b"\n")
        if not self.is_over and self._reason is None:
            raise BrokenOff(f"the endpoint's stream broke off after {self.num_come} characters")
        return self._answer()

    def _event(self, value: str) -> None:
        if value == "[DONE]":
            self.is_over = True
            return
        data = _json(value)
        try:
            self._usage = data.get("usage") or self._usage
            for choice in data.get("choices", ())[:1]:
                self._take(choice.get("delta") or {})
                self._reason = choice.get("finish_reason") or self._reason
        except (TypeError, AttributeError):
            raise Unusable(
                f"the endpoint's stream has an event that is no part of an answer: {_short(value)}"
            ) from None

    def _take(self, message: Any) -> None:  # JSON
        """Take a message, or what is new of one.

        Raises:
            TypeError: it holds something else.
        """
        thought = _text(message.get("reasoning_content") or message.get("reasoning"))
        content = message.get("content")
        if thought:
            self._write(thought if self._is_thinking else f"<think>\n{thought}")
            self._is_thinking = True
        if text := _text(content):
            self._write(f"\n</think>\n\n{text}" if self._is_thinking else text)
            self._is_thinking = False
        self._has_content = self._has_content or content is not None
        if refusal := _text(message.get("refusal")):
            self._refusals.append(refusal)
            if not text:
                self._write(refusal)

    def _write(self, text: str) -> None:
        text = self._held + text
        cut = len(text) - max(begun_secret(text), "\ud800" <= text[-1] <= "\udbff")
        self._held = text[cut:]
        self._tell(text[:cut])

    def _tell(self, text: str) -> None:
        text = redacted(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        if text:
            self._texts.append(text)
            if self._wrote is not None:
                self._wrote(text)

    def _answer(self) -> Answer:
        why = _REASONS.get(str(self._reason), "content_filter" if self._refusals else "eos")
        if not self._has_content and not self._refusals and why == "eos":
            how = " but a call of a tool" if self._reason in ("tool_calls", "function_call") else ""
            raise Unusable(f"the endpoint's answer has no text{how}: content is null, finish_reason {self._reason!r}")
        if self._is_thinking and why != "length":
            self._write("\n</think>\n\n")
        held, self._held = self._held, ""
        self._tell(held)
        usage = self._usage if isinstance(self._usage, dict) else {}
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("prompt_cache_hit_tokens")
        read = _count(usage.get("prompt_tokens"))
        return Answer(
            "".join(self._texts), why, _count(usage.get("completion_tokens")), read, min(read, _count(cached))
        )


def _json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        Unusable: it is none, or says that something went wrong.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else "not JSON"
        if text.lstrip()[:1] == "<":
            what = "a page of HTML, not JSON"
        raise Unusable(f"the endpoint's answer is {what}: {_short(text)}") from None
    if isinstance(data, dict) and data.get("error") and not data.get("choices"):
        said = data["error"]
        status = said.get("code") if isinstance(said, dict) else 0
        told = said.get("message", said) if isinstance(said, dict) else said
        raise Unusable(f"the endpoint says 200 and an error: {_short(str(told))}", status if type(status) is int else 0)
    return data


def _short(text: str) -> str:
    return " ".join(text[: 4 * _SHOWN].split())[:_SHOWN]


def _text(content: Any) -> str:  # JSON
    """Return a message's text: a string, null, or a list of parts of which those with text count.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if "text" in part)
    if content is not None and not isinstance(content, str):
        raise TypeError("neither a text nor parts")
    return content or ""


def _count(value: Any) -> int:  # JSON
    """Return a number of tokens; 0 where nothing usable is said."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0
