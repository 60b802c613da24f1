"""Who may ask, how many at once, and what is counted: the server's state beside its engine."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowinfer.serving import problems
from flowinfer.serving.bodies import Wish, flow_named
from flowinfer.serving.events import Events
from flowinfer.serving.flows import Asking, ServedFlow
from flowinfer.serving.metrics import Metrics
from flowinfer.serving.problems import Problem
from flowinfer.serving.responder import Responder

_MOST_RETRY_SECONDS = 60


@dataclass(frozen=True)
class Limits:
    """What the server takes."""

    questions: int = 512
    """Most that wait or are being answered; one more gets 429."""
    tokens: int | None = None
    """Most tokens that these may read and write, estimated; None = any number."""
    seconds: float = 600.0
    """Longest that a request may take."""
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    """Longest that a body may take to come."""


class Desk:
    """Take requests in.

    Args:
        service: answers them.
        limits: see there.
        keys: those of which every request must show one; none = nobody is asked.
        log: hears every request and its answer, with what they say; None = nobody does.
        left_out: why flows are not served that were to be, by name.
    """

    def __init__(
        self,
        service: Responder,
        limits: Limits,
        keys: Sequence[str] = (),
        log: Callable[[str], None] | None = None,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.service, self.limits, self._left_out = service, limits, left_out or {}
        self._keys = [key.encode() for key in keys]
        self.events = Events()
        self.metrics = Metrics(service)
        service.loading.on_change = self.tell_loading
        self.log = log
        self.created = int(time.time())
        self.is_draining = False
        self._questions = self._tokens = 0
        """Taken in and not ended."""
        self._seconds = 1.0
        """That a request takes, lately."""
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def flow_named(self, name: str) -> ServedFlow:
        """Return the flow that is served as a model.

        Raises:
            Problem: none is.
        """
        return flow_named(name, self.service.flows, self._left_out)

    def state(self) -> dict[str, Any]:
        """Return how far the models are, and whether questions are answered."""
        said = self.service.told()
        return said | ({"status": "draining"} if self.is_draining else {})

    def tell_loading(self) -> None:
        """Tell all who listen how far the models are."""
        self.events.tell_all({"event": "models", **self.state()})

    def write_down(self, request_id: str, **said: Any) -> None:
        """Log something that a request or its answer says, if prompts are to be logged."""
        if self.log is not None:
            self.log(json.dumps({"request": request_id, **said}, ensure_ascii=False))

    def check_key(self, authorization: str) -> None:
        """Refuse who shows no key.

        Raises:
            Problem: the header holds none of the keys.
        """
        if not self._keys:
            return
        scheme, _, given = authorization.partition(" ")
        known = [hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            message = "no valid key was sent: Authorization: Bearer ..."
            raise Problem(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def check_ready(self) -> None:
        """Refuse what cannot be answered now.

        Raises:
            Problem: the server is stopping, or its engine can do nothing any more.
        """
        loading = self.service.loading
        if self.is_draining:
            raise problems.not_ready("the server is stopping")
        if loading.problem is not None:
            raise problems.not_ready(loading.problem.message)

    def admit(self, wish: Wish) -> None:
        """Take a request in.

        Raises:
            Problem: there are too many.
        """
        tokens = sum(map(_tokens, wish.askings))
        most = self.limits.tokens
        is_over = most is not None and self._questions > 0 and self._tokens + tokens > most
        if self._questions + len(wish.askings) > self.limits.questions or is_over:
            self.metrics.requests.labels(wish.flow.name, "429").inc()
            raise problems.busy(min(max(1, math.ceil(self._seconds)), _MOST_RETRY_SECONDS))
        self._questions += len(wish.askings)
        self._tokens += tokens
        self._is_empty.clear()

    def leave(self, wish: Wish, status: str, seconds: float) -> None:
        """Let a request go that was taken in."""
        self._questions -= len(wish.askings)
        self._tokens -= sum(map(_tokens, wish.askings))
        self._seconds += (seconds - self._seconds) / 8
        self.metrics.requests.labels(wish.flow.name, status).inc()
        self.metrics.whole.labels(wish.flow.name).observe(seconds)
        if not self._questions:
            self._is_empty.set()

    async def emptied(self) -> None:
        """Wait until no request is being answered."""
        await self._is_empty.wait()


def _tokens(asking: Asking) -> int:
    """Estimate what a question may make models read and write: a token in three bytes, and all that steps may write."""
    said = len(asking.question.encode()) + sum(len(turn.content.encode()) for turn in asking.turns)
    finals = asking.flow.plan.answer.steps
    most = (asking.finally_ or {}).get("max_tokens")
    written = sum(
        most if most is not None and step.id in finals else step.decoding.max_tokens for step in asking.flow.plan.steps
    )
    return said // 3 * len(asking.flow.plan.steps) + written
