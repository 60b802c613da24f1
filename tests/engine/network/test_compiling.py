"""Every form of a kernel that only GPUs run compiles, for GPUs that are not here; needs Triton.

What its interpreter cannot read is among them: PTX inline, launches that begin early, products of bfloat16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("capability", ["8 0", "9 0"], ids=["without early launches", "with early launches"])
def test_every_form_of_a_kernel_compiles_for_gpus_that_are_not_here(capability: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.engine.network.compiling", *capability.split()],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "FLOWINFER_CACHE": str(tmp_path)},
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    assert not ran.returncode, ran.stderr
    is_early = capability == "9 0"
    told = [line.split() for line in ran.stdout.splitlines()]
    assert {name for name, *_ in told} >= {
        *("_embed_kernel", "_linear_kernel", "_step_kernel", "_finish_kernel", "_norm_kernel", "_turn_kernel"),
        *("_attend_kernel", "_join_kernel", "_prompt_kernel", "_gate_kernel", "_unpack_kernel", "_write_kernel"),
        *("_route_kernel", "_expert_kernel", "_feed_kernel", "_advance_kernel", "_commit_kernel"),
        *("sum_parts", "fuse_block", "join_blocks", "tell_heads"),
    }
    early = {name for name, waits, *_ in told if waits == "waits"}
    assert early == ({"_linear_kernel", "_step_kernel", "_route_kernel", "_expert_kernel"} if is_early else set())
