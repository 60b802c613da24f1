"""Compiling kernels in processes beside this one, from a command's begin on, while this one imports what runs them.

Python imports and compiles in one thread at a time, so in one process each would wait for the other. What the others
compile they leave in Triton's cache, where this one finds it; a note there says for which models that was done, and
then nothing is begun. No GPU is needed for it: which kernels a model needs follows from its config and shapes
(llama_ahead.py), their instructions from what the GPUs here are. Imports nothing heavy; the process beside does.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowinfer.backends.versions import code, installed
from flowinfer.errors import LoadError
from flowinfer.fusion.selfcheck import cache_folder
from flowinfer.machine import cards, model_folder
from flowinfer.spec import ModelSpec
from flowinfer.startup import STARTUP

KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""Models of Llama's kind, as configs name them."""
_MOST_SECONDS = 120
"""What comes later than this is compiled here."""
_MOST_JOBS = 256
_VERSIONS = ("torch", "triton")
_begun: list[subprocess.Popen[str]] = []
_waiting = threading.Lock()

Job = Callable[[], object]


def keep_compiled() -> None:
    """Let Inductor and Triton keep what they compile in flowinfer's cache, unless somebody has said where.

    Inductor compiles in this process: its workers would each import torch first, and be waited for at the end.
    Importing torch's compiler, as transformers does, settles all this.
    """
    compiled = cache_folder() / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(compiled / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def begin(models: Iterable[ModelSpec]) -> None:
    """Begin to compile for models of Llama's kind, for the GPUs that are here, where that was not done before."""
    specs = [spec for spec in models if spec.device != "cpu" and _config_of(spec)]
    if specs and hasattr(os, "fork") and find_spec("triton") is not None:
        keep_compiled()
        kinds = sorted({card.capability for card in cards()})
        missing = [spec for spec in specs if not all(_note(spec, kind).exists() for kind in kinds)]
        if missing:
            start(__name__, json.dumps([[spec.model_dump_json() for spec in missing], kinds]))


def start(program: str, *arguments: str) -> None:
    """Begin a process that is waited for by `wait`, and ends with this one; where none can begin, nothing is."""
    with suppress(OSError):
        process = subprocess.Popen(
            (sys.executable, "-P", "-m", program, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            process_group=0,  # an interrupt at a terminal is for who asks
        )
        _begun.append(process)
        atexit.register(_end, process)


def wait() -> str:
    """Wait, in any thread, until what was begun is done; return what went wrong, which is then compiled here."""
    wrong = ""
    with _waiting:
        while _begun:
            process = _begun.pop()
            with STARTUP.waiting_for("compile", "kernels beside"):
                try:
                    _, errors = process.communicate(timeout=_MOST_SECONDS)
                except subprocess.TimeoutExpired:
                    _end(process)
                    errors = f"it took more than {_MOST_SECONDS} s"
            if process.returncode:
                wrong = errors.strip().rpartition("\n")[2] or f"exit code {process.returncode}"
    return wrong


def share(jobs: Sequence[Job], processes: int) -> bool:
    """Do jobs in so many processes that are copies of this one; return whether all were done.

    What they do is kept in files alone. A process that ends early leaves its job undone, and others none.
    """
    reading, writing = os.pipe()
    os.write(writing, bytes(range(len(jobs))))  # each takes the next number when it is free
    os.close(writing)
    copies = [_copy(partial(_take, reading, jobs)) for _ in range(min(len(jobs), processes))]
    os.close(reading)
    return all([os.waitpid(one, 0)[1] == 0 for one in copies])


def main() -> None:
    """Compile what the first argument names: models, and what the GPUs can do."""
    told, kinds = json.loads(sys.argv[1])
    specs = [ModelSpec.model_validate_json(one) for one in told]
    for major, minor in kinds:
        compile_all(specs, (major, minor))


def compile_all(specs: Sequence[ModelSpec], capability: tuple[int, int]) -> None:
    """Compile the kernels of models, and their launchers, into Triton's cache, and note there that this is done."""
    if not share(_jobs(specs, capability)[:_MOST_JOBS], len(os.sched_getaffinity(0))):
        raise SystemExit("not all kernels compile")
    for note in (_note(spec, capability) for spec in specs):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def _jobs(specs: Iterable[ModelSpec], capability: tuple[int, int]) -> list[Job]:
    """Return what compiles each kernel; what is found out or imported once is so now, before there are copies."""
    from triton.runtime import cache

    hashing = threading.Thread(target=getattr(cache, "triton_key", int))  # 400 MB, while torch is imported
    hashing.start()
    import torch
    from triton.backends.nvidia import driver as nvidia

    from flowinfer.engine.caches.launching import Ahead, compile_for_absent
    from flowinfer.engine.network.llama_ahead import compile_for

    def compile_one(kernel: Any, arguments: tuple[object, ...], options: dict[str, object]) -> None:
        compiled = kernel.warmup(*arguments, grid=(1,), **options)
        nvidia.CudaLauncher(compiled.src, compiled.metadata)

    class Noted(Ahead):
        """Notes what is to be compiled."""

        @property
        def capability(self) -> tuple[int, int]:
            return capability

        def _begin(self, kernel: Any, arguments: tuple[object, ...], options: dict[str, object]) -> Future[None]:
            jobs.append(partial(compile_one, kernel, arguments, options))
            return Future()

    jobs: list[Job] = [nvidia.CudaUtils]
    nvidia.library_dirs()
    compile_for_absent(capability)
    compile_for(Noted(torch.device("cpu")), specs)
    hashing.join()
    return jobs


def _config_of(spec: ModelSpec) -> str:
    """Return the config of a model of Llama's kind as its file has it; nothing for any other."""
    if spec.backend != "hf" or spec.quantization:
        return ""
    with suppress(OSError, ValueError, AttributeError, LoadError):  # the loader says what is wrong
        folder = model_folder(spec.ref, spec.revision)
        text = (folder / "config.json").read_text("utf-8") if folder else "{}"
        return text if json.loads(text).get("model_type") in KINDS else ""
    return ""


def _note(spec: ModelSpec, capability: tuple[int, int]) -> Path:
    """Return the file that says that a model's kernels are there, as this code and these versions need them."""
    parts = [_config_of(spec), capability, code(), *map(installed, _VERSIONS)]
    return Path(os.environ["TRITON_CACHE_DIR"], "flowinfer", hashlib.sha256(json.dumps(parts).encode()).hexdigest())


def _copy(work: Job) -> int:
    """Do something in a copy of this process, and nothing else there; return its number here."""
    if number := os.fork():
        return number
    failed = 1
    try:
        work()
        failed = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(failed)


def _take(reading: int, jobs: Sequence[Job]) -> None:
    while number := os.read(reading, 1):
        jobs[number[0]]()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and its copies."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
    os._exit(0)  # taking torch down takes up to a second
