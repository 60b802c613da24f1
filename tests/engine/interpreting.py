"""Triton for tests of kernels: compiled on CUDA devices, else interpreted; where it can be neither, they are skipped.

To be imported before anything that imports Triton.
"""

from __future__ import annotations

import os
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
tl = pytest.importorskip("triton.language", reason="Triton is not installed")
if not CUDA and type(tl.max).__name__ != "InterpretedFunction":
    pytest.skip("no CUDA device, and Triton was imported before without its interpreter", allow_module_level=True)
if not CUDA and Version(version("numpy")) >= Version("2.4"):
    pytest.skip("no CUDA device, and Triton's interpreter needs numpy < 2.4", allow_module_level=True)
