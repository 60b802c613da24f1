"""One sweep for all tests of reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowinfer.report.build import build
from flowinfer.report.gather import gather
from flowinfer.report.write import FORMS, write
from tests.report.sweeps import write_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep folder of 27 paths, three tasks, six questions each."""
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "whole")


@pytest.fixture(scope="session")
def written(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of its report in all forms, the paper's numbers beside."""
    folder = tmp_path_factory.mktemp("report")
    write(build(gather([str(sweep)]), "paper"), folder, FORMS)
    return folder
