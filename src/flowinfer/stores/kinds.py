"""GGUF files that are no language model: what lies beside models in the stores, told before llama.cpp stumbles."""

from __future__ import annotations

from collections.abc import Mapping

_VECTORS = ("bert", "t5encoder", "gemma-embedding")
"""Parts of the names of architectures that turn a text into a vector."""
_WRITES = (None, 0, -1)
"""`pooling_type` of models that write text; others make one vector of what they have read."""


def misfit(metadata: Mapping[str, object]) -> tuple[str, str] | None:
    """Return what a file is instead of a language model, in words that follow its name, and the cure; None = it is one.

    Args:
        metadata: of its header, by ggml's keys.
    """
    architecture, kind = (str(metadata.get(f"general.{key}", "")) for key in ("architecture", "type"))
    if kind == "adapter" or "adapter.type" in metadata:
        return (
            "is an adapter (LoRA), which changes a model and is none",
            "take the model with the adapter merged into it",
        )
    if architecture == "clip" or kind == "mmproj":
        return "reads pictures or sound for a model and writes nothing", "take the model that lies beside it"
    if kind == "imatrix" or architecture == "controlvector":
        return "helps to make or to steer a model and is none", "take the model itself"
    if any(part in architecture for part in _VECTORS) or metadata.get(f"{architecture}.pooling_type") not in _WRITES:
        return "turns texts into vectors (embeddings, ranks) and writes none", "take a model that chats"
    return None
