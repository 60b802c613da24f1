"""Weights on their way from files to GPUs while Python does something else; and a network around them.

Several threads read pieces of the files into pinned memory and send them on: nothing passes through other memory of
the host, and nothing waits for Python but the few calls between pieces. Imports torch, not transformers, so that
reading goes on while that is being imported. transformers itself builds the network: it is given tensors without
memory in place of the weights, and these are put where it has put those.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowinfer.checkpoint import Entry, entries_of, read_config, weight_files
from flowinfer.errors import DeviceLost, LoadError, is_device_lost
from flowinfer.machine import model_folder
from flowinfer.spec import ModelSpec
from flowinfer.startup import STARTUP

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_PIECE_BYTES = 32 << 20
_MOST_THREADS = 8
_SWITCH_SECONDS = 5e-4
"""How long a thread may keep others from Python while files are read: an import would make every piece wait 5 ms."""


@dataclass(frozen=True)
class _Piece:
    """Bytes of a file and where they go."""

    file: int
    offset: int
    target: Tensor
    """(n,) uint8."""
    of: Reading


class Reading:
    """The weights of one model, being read."""

    def __init__(self, name: str, files: Sequence[Path], device: torch.device) -> None:
        self.name, self.files, self.device = name, tuple(files), device
        self.num_read = 0
        """Bytes that are at their device."""
        self._done: Future[dict[str, Tensor]] = Future()
        self.given_up = threading.Event()

    def tensors(self) -> dict[str, Tensor]:
        """Wait for the weights, by their names in the files; they are then the caller's.

        Raises:
            Exception: what came in between; the ordinary way of loading will say it better.
        """
        return self._done.result()

    def settle(self) -> None:
        """Wait until it has its memory and is done with it, or has failed."""
        self._done.exception()

    def give_up(self) -> None:
        """Stop reading, and wait until it has stopped."""
        self.given_up.set()
        self.settle()

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Read, in this thread and those of a pool."""
        try:
            with STARTUP.waiting_for("weights", self.name):
                self._done.set_result(_read(self.files, self.device, pool, self))
        except BaseException as error:
            if is_device_lost(error):
                DeviceLost.keep_tensors()  # the threads' own, before these end
            self._done.set_exception(error)


_begun: dict[tuple[str, str | None, str], Reading] = {}
"""By ref, revision and device; until the loader takes them."""
_known: WeakValueDictionary[tuple[str, str | None, str], Reading] = WeakValueDictionary()
"""The same, as long as anybody has them."""


def begin(models: Mapping[str, tuple[ModelSpec, str]], *, kind: str = "cuda") -> None:
    """Begin to read the weights of models in the order given, where there is anything to gain.

    Args:
        models: by name, with the device that each goes to.
        kind: of device for which weights are read ahead; a CPU's are mapped from their files later.
    """
    readings = []
    for name, (spec, device) in models.items():
        key = (spec.ref, spec.revision, device)
        is_one = device == kind or device.removeprefix(f"{kind}:").isdigit()
        files = _plain_files(spec) if is_one and key not in _begun else ()
        if files:
            _begun[key] = Reading(name, files, torch.device(device))
            _known[key] = _begun[key]
            readings.append(_begun[key])
    if readings:
        threading.Thread(target=_run, args=(readings,), daemon=True, name="weights").start()


def take(spec: ModelSpec, device: str) -> Reading | None:
    """Return what is being read of a model; None where nothing is."""
    return _begun.pop((spec.ref, spec.revision, device), None)


def num_read(spec: ModelSpec, device: str) -> int:
    """Return how many bytes of a model are read so far; 0 where nothing is, or the loader reads them itself."""
    reading = _known.get((spec.ref, spec.revision, device))
    return 0 if reading is None else reading.num_read


def is_begun(spec: ModelSpec, device: str) -> bool:
    """Return whether weights are being read, or read and not yet taken."""
    return (spec.ref, spec.revision, device) in _begun


def settle() -> None:
    """Wait until nothing is being read any more: what memory is free then stays so, and graphs can be recorded."""
    for reading in tuple(_begun.values()):
        reading.settle()


def drop() -> None:
    """Let go of what nobody has taken."""
    for reading in tuple(_begun.values()):
        reading.give_up()
    _begun.clear()


def network_around(kind: Any, config: Any, tensors: Mapping[str, Tensor], dtype: str) -> Any | None:
    """Build a transformers model around weights that are there already.

    Args:
        kind: the model's class.
        config: its config.
        tensors: all weights by their names in the files, on the model's device.
        dtype: as `from_pretrained` takes it.
    Returns:
        the model and what `from_pretrained` says of it, on the weights' device; None where it would not take the
        weights as they are.
    """
    stand_ins = {name: torch.empty((), dtype=one.dtype).expand(one.shape) for name, one in tensors.items()}
    name_at = {one.untyped_storage().data_ptr(): name for name, one in stand_ins.items()}
    model, told = kind.from_pretrained(
        None, config=config, state_dict=stand_ins, dtype=dtype, output_loading_info=True, use_safetensors=True
    )
    made: dict[str, nn.Parameter] = {}
    for module in model.modules():
        for own, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            name = name_at.get(parameter.untyped_storage().data_ptr())
            if name is None or parameter.shape != tensors[name].shape:
                return None
            made.setdefault(name, nn.Parameter(tensors[name], requires_grad=False))
            setattr(module, own, made[name])
        for own, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if (name := name_at.get(buffer.untyped_storage().data_ptr())) is not None:
                setattr(module, own, tensors[name])
    return model, told


def mapped(files: Sequence[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all tensors of some files on the CPU, cast; those that need no cast lie in the files."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name).to(dtype) for name in opened.keys()}  # noqa: SIM118  # no mapping
    return tensors


def _plain_files(spec: ModelSpec) -> tuple[Path, ...]:
    """Return a model's weight files where they are here and hold plain numbers of one kind, all of which are wanted."""
    if spec.backend != "hf" or spec.quantization or spec.trust_remote_code:
        return ()
    folder = model_folder(spec.ref, spec.revision)
    try:
        files = weight_files(folder) if folder else ()
        config = (read_config(folder) if folder else None) or {}
        kinds = {entry.dtype for file in files for entry in entries_of(file)}
    except LoadError:
        return ()  # the loader says so
    return files if "quantization_config" not in config and len(kinds) == 1 and kinds <= _DTYPES.keys() else ()


def _run(readings: Sequence[Reading]) -> None:
    with _switching_often(), ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "weights") as pool:
        for reading in readings:
            reading.run(pool)


@contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _read(files: Sequence[Path], device: torch.device, pool: ThreadPoolExecutor, reading: Reading) -> dict[str, Tensor]:
    """Read all tensors of some files."""
    tensors: dict[str, Tensor] = {}
    opened: list[int] = []
    try:
        pieces: list[_Piece] = []
        for file in files:
            opened.append(os.open(file, os.O_RDONLY))
            for entry in entries_of(file):
                made = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype], device=device)
                tensors[entry.name] = made
                pieces += _cut(opened[-1], entry, made, reading)
        if device.type == "cuda":
            torch.cuda.default_stream(device).synchronize()  # the memory may have been something else's
        list(pool.map(_copy, pieces))
    finally:
        for one in opened:
            os.close(one)
    return tensors


def _cut(file: int, entry: Entry, tensor: Tensor, reading: Reading) -> Iterator[_Piece]:
    flat = tensor.reshape(-1).view(torch.uint8)
    for start in range(0, len(flat), _PIECE_BYTES):
        yield _Piece(file, entry.begin + start, flat[start : start + _PIECE_BYTES], reading)


class _Own(threading.local):
    """What each thread keeps: pinned memory, and a stream for every device."""

    def __init__(self) -> None:
        self.buffer = torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self.streams: dict[torch.device, Any] = {}


_own = _Own()
_counting = threading.Lock()


def _copy(piece: _Piece) -> None:
    """Bring one piece to its device; it is there when this returns."""
    if piece.of.given_up.is_set():
        raise CancelledError
    size, device = len(piece.target), piece.target.device
    view = _own.buffer.numpy().data[:size]
    done = 0
    while done < size:
        count = os.preadv(piece.file, [view[done:]], piece.offset + done)
        if count == 0:
            raise OSError("a weight file ends too early")
        done += count
    with _counting:
        piece.of.num_read += size
    if device.type != "cuda":
        piece.target.copy_(_own.buffer[:size])
        return
    stream = _own.streams.get(device)
    if stream is None:
        stream = _own.streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
    with torch.cuda.stream(stream):
        piece.target.copy_(_own.buffer[:size], non_blocking=True)
    stream.synchronize()
