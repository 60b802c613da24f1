"""flowinfer: wire language models in series and in parallel, and measure what it gains and what it costs.

    import flowinfer
    flow = flowinfer.load("s2p.flow", zoo="lab")        # or flowinfer.parse("Qwen -> (Yi | Ds)")
    print(flow.run("Solve 3*x + 5 = 20 for x."))        # an Answer; str() is its text
    results = flow.evaluate("ceval", sample=100, seed=42)
    swept = flowinfer.sweep(["Qwen", "Yi", "Ds"], datasets=["gsm8k", "ceval"], sample=100, zoo="lab")

Everything else is importable from the stage modules. Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "Flow",
    "FlowError",
    "FlowInferError",
    "LoadError",
    "Pipeline",
    "RunError",
    "UsageError",
    "__version__",
    "load",
    "parse",
    "sweep",
]
_ERRORS = ("DataError", "FlowError", "FlowInferError", "LoadError", "RunError", "UsageError")

if TYPE_CHECKING:
    from flowinfer.api import Flow, Pipeline, load, parse
    from flowinfer.errors import DataError, FlowError, FlowInferError, LoadError, RunError, UsageError
    from flowinfer.sweeps.api import sweep


def __getattr__(name: str) -> object:
    if name in ("Flow", "Pipeline", "load", "parse"):
        from flowinfer import api

        return getattr(api, name)
    if name in _ERRORS:
        from flowinfer import errors

        return getattr(errors, name)
    if name == "sweep":
        from flowinfer.sweeps import api as sweeps

        return sweeps.sweep
    raise AttributeError(f"module 'flowinfer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
