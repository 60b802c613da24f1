"""Whole distributions from device to device, beside the connection: a `torch.distributed` group of two for each client.

NCCL between GPUs, gloo between CPUs. What its members must know of each other goes over the connection, by which both
have shown the key; so no store listens for strangers. What is sent is announced over the connection first, and taken
only as what was announced. Where one of the two is gone, the connection ends, and the group with it: while a transfer
lasts, both look whether the connection stands, since neither NCCL nor gloo hears of what happens to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from flowinfer.remote.wire import Wire, WireError

Backend = Literal["nccl", "gloo"]
_HEAD, _CLIENT = 0, 1
"""Ranks."""
_LOGITS, _NOTHING = 0, 1
"""Tags of what is sent, and of what never is."""
_SECONDS = 30.0
"""Longest that a transfer may take: who is announced one takes it at once, and a GPU is held up until then."""
_BEGIN_SECONDS = 20.0
"""Longest that the making of a group may take, where that is asked (gloo)."""
_LOOK_SECONDS = 2e-5
"""How often it is looked whether a GPU has done its part."""
_GONE_SECONDS = 0.05
"""How often it is looked whether the other is still connected while gloo waits for it."""


def backend_of(device: torch.device) -> Backend | None:
    """Return what moves tensors of a device, None where nothing is installed that does."""
    if device.type == "cuda":
        return "nccl" if dist.is_available() and dist.is_nccl_available() else None
    return "gloo" if dist.is_available() and dist.is_gloo_available() else None


def gpu_id(device: torch.device) -> str:
    """Return what a GPU is called in all processes; "" for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def device_for(backend: Backend, theirs: str) -> torch.device | None:
    """Return where a client takes what a head sends: on a GPU that is not the head's own, for NCCL."""
    if backend == "gloo":
        return torch.device("cpu") if backend_of(torch.device("cpu")) else None
    found = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return next((one for one in found if backend_of(one) and gpu_id(one) != theirs), None)


class Direct:
    """A group of a head and one client; making it waits for the other.

    Args:
        wire: between the two; nothing else may use it meanwhile.
        backend: of both.
        device: own, where tensors lie.
        is_head: which of the two this is.
    Raises:
        WireError: the other has gone, or the two do not reach each other.
    """

    def __init__(self, wire: Wire, backend: Backend, device: torch.device, *, is_head: bool) -> None:
        self._wire, self._device, self._is_head = wire, device, is_head
        self._store, self._is_nccl = _Store(wire), backend == "nccl"
        rank = _HEAD if is_head else _CLIENT
        self._group: Any = None  # of kinds that torch's stubs do not name whole
        self._waits = ThreadPoolExecutor(1, "gloo")
        """What waits for gloo, which looks at nothing else meanwhile."""
        try:
            self._group = (_nccl if self._is_nccl else _gloo)(self._store, rank, wire.own_host)
            first = torch.zeros(1, device=device)
            if is_head:
                self.send(first)
            else:
                self._take(first)
        except (RuntimeError, WireError) as error:  # torch's own, or ours
            self.close()
            cure = "where its ports cannot be reached, the head is started without --direct"
            raise WireError(f"no group of {backend} with it ({cure}): {str(error).splitlines()[0][:200]}") from error
        self._store.is_open = False

    def send(self, found: Tensor) -> None:
        """Send a tensor that was announced; return when the other has it.

        Raises:
            WireError: the other has gone.
        """
        assert self._is_head, "only heads send"
        self._settle(lambda: self._group.send([found.contiguous()], _CLIENT, _LOGITS))

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Take a tensor that was announced.

        Raises:
            WireError: the other has gone.
        """
        found = torch.empty(shape, dtype=dtype, device=self._device)
        self._take(found)
        return found

    def close(self) -> None:
        """End it, with whatever is under way."""
        self._store.is_open = False
        group, self._group = self._group, None
        if group is None:
            return
        if self._is_nccl:
            group.abort()
            return
        other = _CLIENT if self._is_head else _HEAD
        with suppress(RuntimeError):  # gloo is ended in no other way: what lasts too long ends all that is under way
            group.recv([torch.empty(1)], other, _NOTHING).wait(timedelta(milliseconds=1))
        self._waits.shutdown()

    def _take(self, into: Tensor) -> None:
        self._settle(lambda: self._group.recv([into], _HEAD, _LOGITS))

    def _settle(self, begin: Callable[[], Any]) -> None:  # of a kind that torch does not name
        """Begin something and wait until it is done, as long as the other is there; else the group has ended."""
        try:
            work = begin()
            waits = None if self._is_nccl else self._waits.submit(work.wait, timedelta(seconds=_SECONDS))
            until = time.monotonic() + _SECONDS
            while not _is_done(work, waits):
                if self._wire.is_gone:
                    raise WireError("the connection was closed")
                if time.monotonic() > until:
                    raise WireError(f"what was announced did not come within {_SECONDS:.0f} s")
            if waits is not None:
                waits.result()
        except BaseException as error:  # an interrupt too
            self.close()
            if isinstance(error, RuntimeError):  # torch's own
                told = str(error).splitlines()[0][:200]
                raise WireError(f"what was announced did not come: {told}") from error
            raise


def _is_done(work: Any, waits: Future[Any] | None) -> bool:  # as above
    """Return whether a transfer is over, after a moment: NCCL is asked, gloo is waited for in a thread of its own."""
    if waits is not None:
        return bool(wait([waits], _GONE_SECONDS).done)
    if work.is_completed():
        return True
    time.sleep(_LOOK_SECONDS)
    return False


_TorchStore: Any = getattr(dist, "Store", object)  # builds without torch.distributed have none


class _Store(_TorchStore):  # type: ignore[misc]  # torch's module names it by an import that may fail
    """What both members set is known to both: each tells it the other over their connection."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire, self._known = wire, dict[str, bytes]()
        self.is_open = True

    def set(self, key: str, value: bytes | str) -> None:
        self._known[key] = value.encode() if isinstance(value, str) else bytes(value)
        if self.is_open:
            self._wire.send({"key": key, "value": self._known[key].hex()})

    def get(self, key: str) -> bytes:
        while key not in self._known:
            if not self.is_open:
                raise WireError(f"nobody sets {key!r} any more")
            told, _ = self._wire.receive()
            try:
                self._known[str(told["key"])] = bytes.fromhex(told["value"])
            except (KeyError, TypeError, ValueError):
                raise WireError("what came is no part of a group") from None
        return self._known[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        return self._known.keys() >= set(keys)

    def set_timeout(self, timeout: timedelta) -> None:
        """Do nothing: the connection has its own."""

    def clone(self) -> _Store:
        return self


def _gloo(store: _Store, rank: int, host: str) -> Any:  # of kinds that torch's stubs do not name whole
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    options._timeout = timedelta(seconds=_BEGIN_SECONDS)
    options._devices = [kind.create_device(hostname=host)]
    return kind(store, rank, 2, options)


def _nccl(store: _Store, rank: int, host: str) -> Any:  # as above
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # a client that is gone must not end its head
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=_SECONDS)
    return dist.ProcessGroupNCCL(store, rank, 2, options)
