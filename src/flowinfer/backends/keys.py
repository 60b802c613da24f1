"""Which key an endpoint is sent: read from a variable of the environment, checked, and known as a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from flowinfer.errors import LoadError
from flowinfer.output.secrets import learn
from flowinfer.spec import ModelSpec

_OPENAI_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Key:
    """A key, or that there is none."""

    source: str
    """Where it came from, in words."""
    value: str | None = None
    note: str | None = None
    """What the user should know about it."""

    def __repr__(self) -> str:
        return f"Key(source={self.source!r})"


def read_key(spec: ModelSpec, environment: Mapping[str, str]) -> Key:
    """Return the key for a model's endpoint: that of the variable it names, else OpenAI's for OpenAI's own hosts.

    Raises:
        LoadError: the variable is not set, or holds what cannot be a key; says which variable, never what it holds.
    """
    variable = spec.api_key_env
    if variable is None:
        if not _is_openai(spec.address or ""):
            return Key("no key was sent: api_key_env names the variable that holds one")
        variable = _OPENAI_VARIABLE
    given = environment.get(variable)
    if not given:
        raise LoadError(
            f"model '{spec.name}': the environment variable {variable} is {'empty' if given == '' else 'not set'}",
            help=f"export {variable}=...",
        )
    learn(given)
    value = given.strip()
    if not re.fullmatch(r"[!-~]+", value):
        raise LoadError(
            f"model '{spec.name}': the environment variable {variable} holds {_fault(value)}, so no key",
            help=f"set it again: export {variable}=... (without spaces, line breaks and 'Bearer')",
        )
    note = f"{variable} has spaces or line ends around its key; they are left out" if value != given else None
    return Key(f"the key was read from {variable}", value, note)


def read_headers(spec: ModelSpec, environment: Mapping[str, str]) -> dict[str, str]:
    """Return a model's headers with the values of the variables that they name; what these hold is a secret.

    Raises:
        LoadError: a variable is not set, or holds what no header can.
    """

    def value(match: re.Match[str]) -> str:
        given = environment.get(match[1], "").strip()
        if not re.fullmatch(r"[ -~]+", given):
            fault = "holds what no header can" if given else "is not set, or empty"
            message = f"model '{spec.name}': the environment variable {match[1]} {fault}"
            raise LoadError(message, help=f"its headers name it: export {match[1]}=...")
        learn(given)
        return given

    return {name: re.sub(r"\$([A-Za-z_]\w*)", value, text) for name, text in spec.headers.items()}


def _is_openai(address: str) -> bool:
    """Return whether an address is one of OpenAI's own hosts, encrypted."""
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        return False
    host = url.host.lower().rstrip(".")
    return url.scheme == "https" and not url.userinfo and (host == "openai.com" or host.endswith(".openai.com"))


def _fault(value: str) -> str:
    if not value:
        return "only spaces"
    if not value.isascii():
        return "characters that are not ASCII"
    return "a space" if value.isprintable() else "control characters"
