"""How an endpoint is reached: its address, key and headers, whether it answers, and which models it lists."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from flowinfer.backends.exchange import Broken, Exchange, Unreached
from flowinfer.backends.keys import Key, read_headers, read_key
from flowinfer.errors import LoadError, RunError
from flowinfer.output.secrets import MASK
from flowinfer.spec import ModelSpec

KNOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Listed:
    """What came of asking for the models of an endpoint."""

    status: int
    """0 where nothing came that could be read."""
    ids: tuple[str, ...] = ()


def knock(spec: ModelSpec, seconds: float) -> str:
    """Return whether an endpoint answers: 'yes', or why not. Nothing is asked of its model."""
    try:
        exchange, _ = connect(spec)
    except LoadError as error:
        return error.message.removeprefix(f"model '{spec.name}': ")
    try:
        status = listed(exchange, seconds).status
        return {0: f"answers strangely at {place(exchange)}", 401: "refuses the key", 403: "refuses the key"}.get(
            status, "yes"
        )
    except Unreached as error:
        return f"nothing answers at {place(exchange)}: {error}"
    finally:
        exchange.close()


def connect(spec: ModelSpec, below: str = "") -> tuple[Exchange, Key]:
    """Return what reaches a model's endpoint, and the key that it sends.

    Args:
        below: what to add to the address's path.
    Raises:
        LoadError: there is no address, or what it names of the environment is not there.
    """
    if not spec.address:
        raise LoadError(f"model '{spec.name}': backend openai needs base_url", help='base_url="http://host:8000/v1"')
    if f"//{MASK}@" in spec.address or f"={MASK}" in spec.address:
        raise LoadError(
            f"model '{spec.name}': base_url '{spec.address}' has lost its secrets, as texts in run folders do",
            help="write them in again, or name a variable that holds the key: api_key_env",
        )
    key, headers = read_key(spec, os.environ), read_headers(spec, os.environ)
    try:
        exchange = Exchange(spec.address, key.value, below=below, headers=headers)
    except ValueError as error:
        raise LoadError(
            f"model '{spec.name}': base_url '{spec.base_url}' is no address: {error}",
            help='base_url="http://host:8000/v1"',
        ) from error
    return exchange, key


def answers(exchange: Exchange) -> bool:
    """Return whether something there knows of models."""
    try:
        return listed(exchange, KNOCK_SECONDS).status in (200, 401, 403)
    except Unreached:
        return False


def listed(exchange: Exchange, seconds: float) -> Listed:
    """Ask for an endpoint's models; not every endpoint lists them.

    Raises:
        Unreached: nothing is there.
    """
    try:
        reply = exchange.ask("models", seconds=seconds)
    except (Broken, RunError):
        return Listed(0)  # it is there; whether it answers is seen at the first question
    try:
        data = json.loads(reply.text)["data"]
        return Listed(reply.status, tuple(str(model["id"]) for model in data))
    except (ValueError, RecursionError, KeyError, TypeError):
        return Listed(reply.status)


def place(exchange: Exchange) -> str:
    """Return host and port."""
    url = exchange.url
    return f"{url.host}:{url.port or {'http': 80, 'https': 443}[url.scheme]}"
