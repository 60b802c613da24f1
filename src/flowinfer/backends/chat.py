"""Prompts as a model reads them: chat template, tokenization, and a guard against control tokens in content."""

from __future__ import annotations

from typing import Any, Literal

from flowinfer.backends.base import Prompt
from flowinfer.errors import LoadError
from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.vocab import TokenBytes

_SENTINEL = "\ue000flow\ue001"
"""Private-use text that stands for the content while the template is cut around it."""


class ChatPrompts:
    """Build prompts for one tokenizer.

    Content that contains the text of a control token (`<|im_end|>` typed by a user or an earlier model) is tokenized as
    the ordinary text it is, apart from the template around it.
    """

    def __init__(
        self,
        tokenizer: Any,  # untyped in transformers
        tokens: TokenBytes,
        *,
        chat: Literal["auto", "off"] = "auto",
        system: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._specials = tuple(tokens.specials)
        self._has_template = chat == "auto" and bool(getattr(tokenizer, "chat_template", None))
        self._system = system

    def build(self, content: str, prefill: str = "") -> Prompt:
        """Return the prompt of one user turn, ending where the answer begins, and its ids."""
        if not self._has_template:
            return self._plain(content + prefill)
        text = self._apply(content) + prefill
        if not any(special in content or special in prefill for special in self._specials):
            return Prompt(text, tuple(self._encode(text)))
        before, _, after = self._apply(_SENTINEL).partition(_SENTINEL)
        inner = text.removeprefix(before).removesuffix(after + prefill)
        ids = [*self._encode(before), *self._ordinary(inner), *self._encode(after), *self._ordinary(prefill)]
        return Prompt(text, tuple(ids))

    def _plain(self, text: str) -> Prompt:
        """Return a plain prompt with the tokenizer's own special tokens (no chat template)."""
        with ordinary_text(self._tokenizer.backend_tokenizer):
            ids = self._tokenizer(text, add_special_tokens=True, split_special_tokens=True)["input_ids"]
        return Prompt(text, tuple(ids))

    def _apply(self, content: str) -> str:
        messages = [{"role": "user", "content": content}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the checkpoint's and may fail in any way
            raise LoadError(
                f"the chat template failed: {error}", help='set chat="off" on the model to send plain prompts'
            ) from error
        return str(text)

    def _encode(self, text: str, *, is_ordinary: bool = False) -> list[int]:
        # transformers sets the flag of ordinary_text itself at every call, so it must be told
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=is_ordinary) if text else {}
        return list(encoded.get("input_ids", ()))

    def _ordinary(self, text: str) -> list[int]:
        with ordinary_text(self._tokenizer.backend_tokenizer):
            return self._encode(text, is_ordinary=True)
