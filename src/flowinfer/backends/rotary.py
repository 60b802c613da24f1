"""Rotary embeddings that the length of a row rescales, and with which lengths a cache of keys goes stale.

A model with such an embedding (longrope: Phi-3, Phi-4-mini; dynamic NTK) turns **all** keys of a row by factors that
depend on how long the row is now. Keys that were cached under other factors are wrong, so the row is read again:
longrope has two sets of factors and one switch, dynamic NTK new ones with every token beyond its first limit. The
meaning is always that of one forward over the whole row without a cache. transformers' own `generate` does the same at
the switch of longrope, in newer releases; with dynamic NTK it goes on with stale keys, unless told use_cache=False.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Factors = tuple[int, ...]
"""Names the set of factors that turns the keys of a row; equal for lengths that share it."""


def rope_parts(config: Any) -> list[Mapping[str, Any]]:  # a transformers config
    """Return what a config says of its rotary embeddings: one part, or one for each type of layer."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope = getattr(inner, "rope_parameters", None) or getattr(inner, "rope_scaling", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, Mapping)]


def is_rescaled(config: Any) -> bool:  # a transformers config
    """Return whether the length of a row decides how its keys are turned."""
    return any(_is_longrope(part) or _is_dynamic(part) for part in rope_parts(config))


def factors_at(config: Any, length: int) -> Factors:  # a transformers config
    """Name the factors of a row of that many ids.

    Example: longrope that switches at 4096: (0,) up to 4096 ids, (1,) beyond.
    """
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = []
    for part in rope_parts(config):
        limit = int(getattr(inner, "max_position_embeddings", 0))
        if _is_longrope(part):
            limit = int(
                part.get("original_max_position_embeddings")
                or getattr(inner, "original_max_position_embeddings", None)
                or limit
            )
            found.append(int(length > limit))
        elif _is_dynamic(part):
            found.append(max(length, limit))
    return tuple(found)


def most_positions(config: Any, stated: int) -> int:  # a transformers config
    """Return how many positions a model reads: more than are stated with dynamic NTK, and often with yarn.

    Example: Qwen2.5 with yarn as its page says, 32,768 stated and original, factor 4: 131,072.
    """
    return max([stated, *(int(_stretched(part, stated)) for part in rope_parts(config))])


def _stretched(part: Mapping[str, Any], stated: int) -> float:
    factor = float(part.get("factor") or 1.0)
    if _is_dynamic(part):
        return stated * factor
    return float(part.get("original_max_position_embeddings") or 0) * factor if _kind(part) == "yarn" else 0.0


def forget_lengths(model: Any) -> None:  # a transformers model
    """Make dynamic embeddings forget the longest row that they have seen: theirs are the factors of the next one."""
    if not any(map(_is_dynamic, rope_parts(model.config))):
        return
    for module in model.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)


def _kind(part: Mapping[str, Any]) -> str:
    return str(part.get("rope_type", part.get("type", "default")))


def _is_longrope(part: Mapping[str, Any]) -> bool:
    return _kind(part) == "longrope"


def _is_dynamic(part: Mapping[str, Any]) -> bool:
    return "dynamic" in _kind(part)
