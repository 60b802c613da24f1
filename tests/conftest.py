"""Where the tests find real data: a folder beside the checkout, or $FLOWINFER_TEST_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FLOWINFER_TEST_DATA", ROOT.parent / "shared"))


def shared_path(*parts: str) -> Path:
    """Return a path in the folder of real data, or skip the test with the reason."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not found: {path} (set FLOWINFER_TEST_DATA)", allow_module_level=True)
    return path
