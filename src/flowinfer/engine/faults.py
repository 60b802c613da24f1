"""Faults: a question can fail, a run cannot.

Whatever is done for one question stands inside a boundary that asks `reason` about what was raised: the question then
fails with that reason, and the others go on. What is the run's own goes on upwards: interrupts, exits, short memory, a
device that is lost.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowinfer.errors import (
    DeviceLost,
    FlowInferError,
    HeadCut,
    HeadLost,
    MemoryShort,
    OutputLost,
    is_device_lost,
    is_memory_short,
)

_PACKAGE = Path(__file__).parents[1]
_OF_THE_RUN = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryShort, DeviceLost, HeadCut, OutputLost)


def reason(error: BaseException) -> str:
    """Return why a question failed, in one line.

    Every class of errors counts, also those that are no `Exception` (panics of tokenizers).

    Raises:
        BaseException: the error itself where it is the run's.
        DeviceLost: the error says so.
    """
    if isinstance(error, _OF_THE_RUN) or is_memory_short(error):
        raise error
    if is_device_lost(error):
        raise device_lost("the device", error) from error
    if isinstance(error, FlowInferError):
        return f"{error.message}; {error.help}" if error.help else error.message
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"the text has half of a surrogate pair, {error.object[error.start]!a}, which is no character"
    told = " ".join(str(error).split())[:300]
    return type(error).__name__ + (f": {told}" if told else "") + _place(error)


def too_long(model: str, tokens: int, most: int, *, at_least: str = "") -> str:
    """Return the reason why a prompt cannot be read; "at least " where only a part of it was counted."""
    return f"the prompt has {at_least}{tokens} tokens for '{model}', which reads at most {most} with its answer"


NO_CHOICES = "the question has no choices, so by=likelihood has nothing to choose from"
"""Why a question fails that is put to a step which cannot answer it."""


def is_too_long(reason: str) -> bool:
    """Return whether a question failed for that reason."""
    return (
        re.match(r"the prompt has (at least )?\d+ tokens for '.*', which reads at most", reason, re.DOTALL) is not None
    )


def device_lost(where: str, error: BaseException, *, when: str = "") -> DeviceLost:
    """Return the error that ends a run; tensors then stay as long as the process.

    Args:
        where: the device.
        error: what the device or its libraries said.
        when: what it did, in words that follow on "has failed".
    """
    if isinstance(error, HeadLost):
        return error
    if isinstance(error, DeviceLost) and error.__cause__ is not None:
        error = error.__cause__
    DeviceLost.keep_tensors()
    line = next(iter(str(error).splitlines()), type(error).__name__)
    cure = "what was answered is kept: --resume goes on; CUDA_VISIBLE_DEVICES can leave the device out"
    return DeviceLost(f"{where} has failed{when and ' '}{when}: {line}", help=cure)


@contextmanager
def unless_lost() -> Iterator[None]:
    """Give something back to a device; one that is lost or full takes nothing, and what it says then is no news."""
    try:
        yield
    except RuntimeError as error:
        if not (is_device_lost(error) or is_memory_short(error)):
            raise


@contextmanager
def question_fails(tell: Callable[[str], None]) -> Iterator[None]:
    """Turn what is raised inside into a reason that is told; what is the run's is raised."""
    try:
        yield
    except BaseException as error:  # see `reason`, which raises what is not the question's
        tell(reason(error))


def _place(error: BaseException) -> str:
    """Return where in this package an error was met, for whoever mends it."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE) and path != Path(__file__):
            return f" (at {path.relative_to(_PACKAGE)}:{line})"
    return ""
