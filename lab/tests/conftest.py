"""The lab's tests run under what the suite runs under: one thread a process, caches that are thrown away."""

from __future__ import annotations

from tests.conftest import own_cache

__all__ = ["own_cache"]
