"""llama.cpp, by the low-level interface of llama-cpp-python: imported where a GGUF head is loaded, and quiet."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from flowinfer.errors import LoadError

_ERROR = 4
"""GGML_LOG_LEVEL_ERROR"""
_told: list[str] = []
"""What llama.cpp has said of errors; lines."""
_kept: list[object] = []
"""What llama.cpp calls back must not be collected."""


@cache
def library() -> Any:  # a module of functions without types
    """Return llama.cpp's functions.

    Raises:
        LoadError: the package is not installed, or its library cannot be loaded.
    """
    try:
        import llama_cpp.llama_cpp as lib
    except ModuleNotFoundError as error:
        raise LoadError(
            f"backend 'gguf' needs the package llama-cpp-python: {error}",
            help="pip install 'flowinfer[gguf]'; it is built from source: that needs a C++ compiler",
        ) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LoadError(
            f"backend 'gguf': llama.cpp's library cannot be loaded: {error}",
            help="pip install --force-reinstall --no-cache-dir 'flowinfer[gguf]' builds it for this machine",
        ) from error
    callback = lib.llama_log_callback(_hear)
    _kept.append(callback)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


def _hear(level: int, text: bytes, _: object) -> None:
    if level == _ERROR:
        _told.append(text.decode(errors="replace").strip())


def last_problem() -> str:
    """Return what llama.cpp has complained about since it was last asked, in one line."""
    lines = list(dict.fromkeys(line.partition(": ")[2] or line for line in _told if line))
    _told.clear()
    return lines[0] if lines else "llama.cpp does not say why"
