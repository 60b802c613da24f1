"""Derived data goes to a folder that is thrown away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the tests out of the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
