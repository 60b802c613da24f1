"""Keys that who connects must know, of a variable or a file."""

from __future__ import annotations

import os

from flowinfer.errors import UsageError


def keys_in(text: str, place: str, *, least: int, help: str | None = None) -> tuple[str, ...]:
    """Return keys, one a line, and know them as secrets.

    Args:
        text: holds them.
        place: where it stands, for messages.
        least: characters that a key must have.
        help: what to do where there is none.
    Raises:
        UsageError: there is none, or one is too short or has characters that no header can hold.
    """
    from flowinfer.output.secrets import learn

    keys = tuple(key for key in map(str.strip, text.split("\n")) if key)
    for key in keys:
        learn(key)
    if not keys:
        raise UsageError(f"{place} holds no key", help=help)
    if any(len(key) < least or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        message = f"{place} holds a key that is none: at least {least} ASCII characters without spaces"
        raise UsageError(message, help=help)
    return keys


def keys_of_variable(variable: str, *, least: int, help: str | None = None) -> tuple[str, ...]:
    """Return the keys that an environment variable holds, separated by commas; see `keys_in`."""
    text = os.environ.get(variable, "").replace(",", "\n")
    return keys_in(text, f"the environment variable {variable}", least=least, help=help)
