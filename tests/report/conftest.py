"""One sweep for all tests of reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.sweeps import write_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep folder of 27 paths, three tasks, six questions each."""
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "whole")
