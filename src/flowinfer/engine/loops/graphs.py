"""Work of a device that is done again and again: as CUDA graphs on a GPU, as plain calls elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class Graphs:
    """One device's work, in every form that is met.

    Args:
        device: where it is done.
        changed: all that the work changes; recording puts it back.
        rest: makes the work do nothing while it is rehearsed.
    """

    def __init__(self, device: torch.device, changed: Sequence[Tensor], rest: Callable[[], object]) -> None:
        self._device, self._changed, self._rest = device, tuple(changed), rest
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        """Each form's graph, and what its work returned: tensors that every replay writes anew."""
        self._stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def run(self, form: Hashable, work: Callable[[], _T]) -> _T:
        """Do some work on the device's current stream; on a GPU, record it when its form is met first.

        Args:
            form: decides what the work does.
            work: queues it; returns tensors of fixed places, or nothing.
        """
        if self._device.type != "cuda":
            return work()
        if form not in self._recorded:
            self._recorded[form] = self._record(work)
        graph, made = self._recorded[form]
        graph.replay()
        return made  # type: ignore[no-any-return]  # what this form's work returned

    def _record(self, work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        stream, graph = self._stream, torch.cuda.CUDAGraph()
        assert stream is not None, "graphs are for GPUs"
        with torch.cuda.device(self._device):
            saved = [states.clone() for states in self._changed]
            self._rest()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # compiles, and makes what is made once
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            # threads that load models allocate meanwhile, which only concerns a recording of their own
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                made = work()
            for states, before in zip(self._changed, saved, strict=True):
                states.copy_(before)
        return graph, made


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return what graphs are recorded on: the current stream, or one beside it if that is the default one.

    One for all graphs: the work space of cuBLAS goes by streams, and graphs of two loops that run at once must not
    share any.
    """
    if device.type != "cuda":
        return None
    current = torch.cuda.current_stream(device)
    if current != torch.cuda.default_stream(device):
        return current
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
