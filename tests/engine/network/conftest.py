"""The tiny random models of the loops' tests."""

from tests.engine.loops.conftest import models

__all__ = ["models"]
