"""A zoo of names for tests of the language: nothing in it is ever loaded."""

from __future__ import annotations

from flowinfer.spec import ModelSpec
from flowinfer.zoo import Zoo

NAMES = Zoo(
    "names",
    {
        name: ModelSpec(name=name, ref=f"org/{name.lower()}", dtype="bfloat16")
        for name in ("Qwen", "Ds", "Yi", "千问", "Small")
    },
    "a test",
)
PAPER_NAMES = Zoo("names", {name: NAMES.models[name] for name in ("Qwen", "Ds", "Yi")}, "a test")
