"""A conversation with flows: what was said, what the system says, and the options of its next answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SETTINGS = ("system", "max_tokens", "temperature", "top_p", "seed", "stop")
"""What one may set: the system's words, and options of a request."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str
    flow: str
    """That answered."""


@dataclass
class Conversation:
    """What has been said, and how it goes on."""

    settings: dict[str, Any] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)

    def body(self, question: str) -> dict[str, Any]:
        """Return the request for the next answer, without the name of a model."""
        return {"messages": [*self._messages(), {"role": "user", "content": question}], **options_of(self.settings)}

    def _messages(self) -> list[dict[str, str]]:
        said = [{"role": "system", "content": self.settings["system"]}] if "system" in self.settings else []
        for one in self.exchanges:
            said += [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
        return said

    def to_jsonl(self) -> str:
        """Return one message a line; answers name their flow."""
        flows = iter([one.flow for one in self.exchanges])
        named = [one | ({"flow": next(flows)} if one["role"] == "assistant" else {}) for one in self._messages()]
        return "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in named)

    def to_markdown(self) -> str:
        """Return it as a document to read."""
        parts = [f"## system\n\n{self.settings['system']}\n"] if "system" in self.settings else []
        parts += [f"## you\n\n{one.question}\n\n## {one.flow}\n\n{one.answer}\n" for one in self.exchanges]
        return "\n".join(parts)


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are options of a request."""
    return {name: value for name, value in settings.items() if name != "system"}
