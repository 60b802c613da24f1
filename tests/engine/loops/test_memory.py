"""Memory does not grow with the number of answers, whatever lengths their prompts have."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="the peak of a process's memory is asked of POSIX")

_ANSWERS = """
import random
from resource import RUSAGE_SELF, getrusage
import flowinfer

rng = random.Random(0)
words = "the cat sat on a mat and counted seven apples at noon 小明 有 苹果".split()
pipeline = flowinfer.parse("(Qwen | Ds)", zoo="lab", params={"max_tokens": 4})

def peak(answers):
    for _ in range(answers):
        pipeline.run(" ".join(rng.choices(words, k=rng.randrange(3, 60))))
    return getrusage(RUSAGE_SELF).ru_maxrss

print(peak(40), peak(120))
"""


@pytest.mark.slow
def test_memory_stays_when_prompts_of_many_lengths_are_answered() -> None:
    """It grew by a third in so many answers: oneDNN kept code for every number of tokens."""
    ran = subprocess.run([sys.executable, "-c", _ANSWERS], capture_output=True, text=True, check=True)
    warm, later = map(int, ran.stdout.split())
    assert later < 1.1 * warm, f"memory grew from {warm} to {later}"
