"""Which kind of session serves a transformers model: found by trying, once."""

from __future__ import annotations

from typing import Any

from flowinfer.backends.caches import NotCached, layer_windows, why_not
from flowinfer.backends.known import KnownNetwork
from flowinfer.backends.remembered import recall, remember
from flowinfer.backends.rotary import is_rescaled
from flowinfer.backends.row_session import RowSession
from flowinfer.backends.session import BatchSession


def session_kind(model: Any) -> type[BatchSession] | type[RowSession]:  # a transformers model
    """Return the kind of session that serves a model, tried once and remembered.

    Networks of Llama's kind attend to every token; theirs is tried when transformers' own is there.

    Raises:
        NotCached: none does, with the reason.
    """
    if isinstance(model, KnownNetwork):
        return BatchSession
    known: type[BatchSession] | type[RowSession] | None = getattr(model, "flow_session", None)
    if known is None:
        before = recall(model).session
        known = {kind.__name__: kind for kind in (BatchSession, RowSession)}.get(before) or _tried(model)
        object.__setattr__(model, "flow_session", known)
        if not before:
            remember(model, session=known.__name__)
    return known


def _tried(model: Any) -> type[BatchSession] | type[RowSession]:  # a transformers model
    if attends_everywhere(model) and why_not(BatchSession, model) is None:
        return BatchSession
    if reason := why_not(RowSession, model, slack=3):
        raise NotCached(reason)
    return RowSession


def attends_everywhere(model: Any) -> bool:  # a transformers model
    """Return whether every layer attends to all earlier tokens, however long a text becomes."""
    return not _positions_depend_on_length(model.config) and set(layer_windows(model.config)) == {0}


def _positions_depend_on_length(config: Any) -> bool:  # a transformers config
    """Return whether a padded row would get other positions: ALiBi, local layers, RoPE that the length rescales."""
    is_local = "local" in (getattr(config, "attention_layers", None) or ())
    return bool(getattr(config, "alibi", False)) or is_local or is_rescaled(config)
