"""How a request to an endpoint is worded: as a step's options say, without what the endpoint has refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flowinfer.backends.base import Turn
from flowinfer.spec import Decoding, ModelSpec

_REMOVABLE = ("stream_options", "seed", "top_p", "stop", "max_tokens", "max_completion_tokens", "temperature")
"""What an answer can do without, the least first."""
_REFUSES = re.compile(
    r"(?i)unsupported|not (?:be )?support|n't support|unrecogni[sz]ed|unknown|unexpected"
    r"|not (?:permitted|allowed|known)|forbidden|deprecated|invalid (?:parameter|argument|field)|cannot both|not both"
)
"""How endpoints say that they do not take a parameter, as against one of its values."""


class Wording:
    """What one endpoint is asked with.

    Args:
        spec: its model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._refused: dict[str, None] = {}
        """Names that this endpoint does not take."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the user should know of what is left out."""
        return tuple(map(self._note, self._refused))

    def body(self, turns: Sequence[Turn], decoding: Decoding, seed: int, *, streams: bool) -> dict[str, Any]:  # JSON
        """Return a request."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        if self._spec.system is not None:
            messages.insert(0, {"role": "system", "content": self._spec.system})
        length = "max_completion_tokens" if "max_tokens" in self._refused else "max_tokens"
        body: dict[str, Any] = {
            "model": self._spec.ref,
            "messages": messages,
            length: decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": seed,
        }
        body |= {"stop": list(decoding.stop)} if decoding.stop else {}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
        return {name: value for name, value in body.items() if name not in self._refused} | dict(self._spec.extra_body)

    def learn(self, body: Mapping[str, Any], said: str, named: str | None) -> bool:
        """Leave out from now on what an endpoint has refused; return whether there is anything.

        Args:
            body: what it was asked.
            said: what it answered.
            named: the parameter that its error names in a field of its own.
        """
        if not _REFUSES.search(said):
            return False
        sent = [name for name in _REMOVABLE if name in body]
        found = [name for name in sent if name == named] or [
            name for name in sent if re.search(rf"(?<![\w.]){name}(?!\w)", said)
        ]
        self._refused |= dict.fromkeys(found[:1])
        return bool(found)

    def _note(self, name: str) -> str:
        instead = ", max_completion_tokens is sent in its place" if name == "max_tokens" else ""
        effect = {
            "seed": ": sampled texts may differ from run to run",
            "temperature": ": it samples as it likes",
            "max_completion_tokens": ": nothing bounds its answers",
            "stop": ": its texts are cut here",
        }.get(name, "")
        return f"'{self._spec.name}': the endpoint refuses '{name}', which is left out from now on{instead}{effect}"
