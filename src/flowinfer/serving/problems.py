"""What a client is told where it gets no answer: a status that is true, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowinfer.backends.chat import TEMPLATE_FAILED
from flowinfer.engine.faults import NO_CHOICES, is_too_long
from flowinfer.output.secrets import shown
from flowinfer.serving.happenings import STOPPED


class Problem(Exception):
    """Why a request is not answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, shown(message), code, param
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """Return it in OpenAI's form."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unsupported(name: str, message: str) -> Problem:
    """Return the problem of a request for what is not served."""
    return Problem(400, message, code="unsupported_parameter", param=name)


def of_reason(reason: str, param: str) -> Problem:
    """Return the problem of a question that failed.

    Args:
        reason: why it failed, as the engine says.
        param: what of the request holds the question.
    """
    if is_too_long(reason):
        return Problem(400, reason, code="context_length_exceeded", param=param)
    if reason == NO_CHOICES:
        return no_choices(param)
    if reason == STOPPED:
        return not_ready(reason)
    if reason.startswith(TEMPLATE_FAILED):  # it takes no system's words, or no two turns of one role
        return Problem(400, reason, param=param)
    return Problem(500, reason, code="flow_failed")


def no_choices(param: str) -> Problem:
    """Return the problem of a question in words alone that is put to a flow by likelihood."""
    cure = "ask a flow that writes, or the items of a data set: flowinfer exec --dataset NAME --url"
    return Problem(400, f"{NO_CHOICES}; {cure}", code="no_choices", param=param)


def busy(seconds: int) -> Problem:
    """Return the problem of a request that comes to a full queue."""
    return Problem(
        429,
        f"too many requests are waiting; try again in {seconds} s",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def lost(reason: str) -> Problem:
    """Return the problem of a question whose replica has ended in the middle of its answer, or again and again."""
    return Problem(503, reason, code="replica_lost")


def not_ready(reason: str) -> Problem:
    """Return the problem of a request that comes while nothing can be answered."""
    return Problem(503, reason, code="not_ready", headers={"Retry-After": "5"})
