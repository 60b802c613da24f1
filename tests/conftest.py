"""Where the tests find real data and keep derived data; what every process of the suite runs under."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from flowinfer.startup import GARBAGE_OBJECTS

# Read when torch, tokenizers and huggingface_hub are imported, so set before any test module is. One thread a process:
# two workers whose threads all spin for two cores take three times as long.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
}

settings.register_profile("flowinfer", deadline=None, max_examples=30)
settings.load_profile("flowinfer")

gc.set_threshold(GARBAGE_OBJECTS)  # as the command line does

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FLOWINFER_TEST_DATA", ROOT.parent / "shared"))


def pytest_collection_finish() -> None:
    """Take what was imported and collected, and stays, out of every search for garbage; the engine asks for some."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # there is no xdist where tests run in one process
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, and one of them all of reports: what those share takes long to make."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Rooms(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "report" if "tests/report/" in nodeid else super()._split_scope(nodeid)

    return Rooms(config, log)


def shared_path(*parts: str) -> Path:
    """Return a path in the folder of real data, or skip the test with the reason."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not found: {path} (set FLOWINFER_TEST_DATA)", allow_module_level=True)
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep caches of the suite out of the user's, and offline whatever the machine has."""
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("cache")
    os.environ["FLOWINFER_CACHE"] = str(folder)
    os.environ.pop("FLOWINFER_ZOO", None)
    yield folder
    os.environ.clear()
    os.environ |= before


@pytest.fixture(scope="session")
def toy_zoo(own_cache: Path) -> Path:
    """Return the zoo file of three tiny random-weight models with really different tokenizers."""
    from flowinfer.zoos.toy import build

    return build(own_cache / "zoos" / "toy-v1")
