"""A machine that sleeps, as laptops do: its processes stand still, and go on when it wakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowinfer.runs.store import ordered_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no signal to stand still by"),
]
RUN = """
import os, signal, sys
import flowinfer
with flowinfer.parse("Yi -> (Qwen | Ds)[max_tokens=8]", zoo="lab") as flow:
    flow.evaluate("gsm8k", limit=3, batch=2, use_cache=False, out=sys.argv[1],
                  on_record=lambda _: os.kill(os.getpid(), signal.SIGSTOP))
"""


def test_a_run_goes_on_when_it_wakes(tmp_path: Path) -> None:
    stops = 0
    with subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)]) as process:
        while os.WIFSTOPPED(status := os.waitpid(process.pid, os.WUNTRACED)[1]):
            stops += 1
            process.send_signal(signal.SIGCONT)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and stops
    (folder,) = tmp_path.iterdir()
    records = ordered_records(folder)
    assert [record.trace.error for record in records] == [None] * 3
