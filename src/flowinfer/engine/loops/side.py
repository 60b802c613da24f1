"""The CUDA streams on which a loop queues its work beside other loops: one for each of its devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch


class Side:
    """Streams of a loop's own.

    Args:
        devices: of the loop; a CPU has no streams.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        gpus = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
        self._streams = [torch.cuda.Stream(device) for device in gpus]  # type: ignore[no-untyped-call]  # untyped in torch

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let what is done inside be queued there."""
        with ExitStack() as stack:
            for stream in self._streams:
                stack.enter_context(torch.cuda.stream(stream))
            yield

    def follow(self) -> None:
        """Begin where the current streams stand."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(stream.device))

    def lead(self) -> None:
        """Let the current streams go on from where these stand."""
        for stream in self._streams:
            torch.cuda.current_stream(stream.device).wait_stream(stream)

    def synchronize(self) -> None:
        """Wait until all is done."""
        for stream in self._streams:
            stream.synchronize()
