"""Whose error it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowinfer.errors import LoadError
from flowinfer.spec import ModelSpec


@contextmanager
def naming(spec: ModelSpec) -> Iterator[None]:
    """Say which model an error of its tokenizer, vocabulary or chat template is about."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"model '{spec.name}' ({spec.ref}): {error.message}", help=error.help) from error
