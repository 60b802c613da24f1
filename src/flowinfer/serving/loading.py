"""How far a server's models are: which are loaded, what is read of the others, and what is waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flowinfer.engine.models import ModelPool
from flowinfer.errors import FlowInferError
from flowinfer.serving.flows import ServedFlow
from flowinfer.startup import STARTUP

State = Literal["loading", "ready", "failed", "closed"]


@dataclass
class Loading:
    """How far the models are; the engine's thread writes it."""

    state: State = "loading"
    now: str = ""
    """What is being loaded."""
    loaded: dict[str, float] = field(default_factory=dict)
    """Seconds that each model in memory took."""
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    """The last ones."""
    problem: FlowInferError | None = None
    """Why it can do nothing any more."""
    swap_seconds: list[float] = field(default_factory=list)
    """What each change of the models in memory took."""
    on_change: Callable[[], None] = lambda: None
    """Hears that something of it is new."""

    def to_json(self, flows: Sequence[ServedFlow], pool: ModelPool) -> dict[str, Any]:
        """Return it as plain data, with the bytes of every model of the flows and how many of them are read."""
        models: dict[str, dict[str, Any]] = {}
        for flow in flows:
            for name in flow.plan.models:
                needed, read = flow.plan.needs[name].weight_bytes, pool.bytes_read(flow.plan, name)
                is_here = pool.peek(flow.plan, name) is not None
                state = "loaded" if is_here else "loading" if name == self.now or read else "waiting"
                seconds = self.loaded.get(name) if is_here else None
                models[name] = {"state": state, "bytes": needed, "bytes_read": read, "seconds": seconds}
        return {
            "status": self.state,
            "loading": self.now or None,
            "loaded": {name: self.loaded[name] for name, one in models.items() if name in self.loaded},
            "models": models,
            "waiting_for": self._waiting_for(),
        }

    def _waiting_for(self) -> list[str]:
        """Return what the engine waits for before it can answer."""
        parts = STARTUP.parts if self.state == "loading" else ()
        now = [f"{part.part} {part.of}".strip() for part in parts if part.seconds is None]
        return list(dict.fromkeys([*([f"model {self.now}"] if self.now else []), *now]))
