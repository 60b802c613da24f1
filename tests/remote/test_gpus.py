"""A head of another process on another GPU writes what it writes here, over its connection and by NCCL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flowinfer.engine.base import Observer
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.remote.client import RemoteModel
from flowinfer.results import Question

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs"),
]
QUESTIONS = [Question(id=f"q{k}", question=f"{k} + 14 = ?", reference="") for k in range(12)]


@contextmanager
def head(folder: Path, *options: str) -> Iterator[str]:
    """Yield the address of a head on the second GPU."""
    import flowinfer

    lab = Path(flowinfer.__file__).parent / "zoos" / "lab"
    zoo = folder / "zoo.toml"
    blocks = [
        f'[models.{name}]\nref = "{lab / name.lower()}"\ndtype = "float32"\ndevice = "cuda:{place}"\n'
        for name, place in (("Qwen", 1), ("Ds", 0))
    ]
    zoo.write_text("\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-m", "flowinfer", "head", "Qwen", "--zoo", str(zoo), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        told: list[str] = []
        for line in process.stderr:
            told.append(line)
            if found := re.match(r"ready: (\S+)", line):
                break
        else:
            raise AssertionError("".join(told))
        reading = threading.Thread(target=process.stderr.read)
        reading.start()
        try:
            yield found[1]
        finally:
            process.kill()
            reading.join()


def texts(folder: Path, block: str, pool: ModelPool, **options: Any) -> dict[str, str]:
    """Return what a group writes; its first head lies where the block says."""
    model = f'model Qwen = "qwen" {block}\n' if block else ""
    settings = {"max_tokens": "24", "speculate": "off"} | options
    flow = check(f"{model}(Qwen | Ds)", zoo=str(folder / "zoo.toml"), overrides=settings)
    plan = ready(flow, this_machine())
    return {trace.question_id: trace.answer for trace in execute(plan, QUESTIONS, batch=8, models=pool)}


@pytest.mark.parametrize("options", [(), ("--direct",)], ids=["tcp", "nccl"])
def test_a_head_of_another_process_on_another_gpu_writes_what_it_writes_here(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    cases = ({}, {"temperature": "0.8"}, {"topk": "dense"}, {"fuse": "geometric"})
    with head(tmp_path, *options) as address:
        far, near = ModelPool(), ModelPool()
        block = f'{{ device="{address}" }}'
        for case in cases:
            assert texts(tmp_path, block, far, **case) == texts(tmp_path, "", near, **case), case
        flow = check(f'model Qwen = "qwen" {block}\n(Qwen | Ds)', zoo=str(tmp_path / "zoo.toml"))
        model = far.get(ready(flow, this_machine()), "Qwen", Observer())
        assert isinstance(model, RemoteModel) and model.is_direct == bool(options)
        far.close()
        near.close()
