"""What tests of replicas start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import flowinfer
from tests.runs.processes import FLOW, said


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose cache of steps is its own."""
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Return what one process answers."""
    work = tmp_path_factory.mktemp("alone")
    assert flowinfer("exec", *FLOW, "--no-cache", cwd=work).returncode == 0
    return said(work)
