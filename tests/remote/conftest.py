"""Heads behind real sockets, served by threads of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowinfer.backends.hf import HfModel
from flowinfer.remote.client import RemoteModel
from flowinfer.remote.head import Head
from flowinfer.remote.server import HeadServer
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.fusion import toys

Serve = Callable[..., RemoteModel]


def holding(
    model: HfModel, key: bytes = b"", *, ref: str = "", say: Any = lambda _: None, **options: Any
) -> HeadServer:
    """Return a server that holds a model."""
    server = HeadServer(key, say=say)
    server.hold(Head(model, ref or model.name, **options))
    return server


def begun(head: HeadServer) -> int:
    """Let a head serve in a thread; return its port."""
    _, port = head.listen("127.0.0.1", 0)
    threading.Thread(target=head.serve, daemon=True).start()
    return port


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "C": tiny.model("gpt2", "C", seed=2, tokenizer=toys.byte_level(330)),
    }


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Yield what serves a model and connects to it; all of it ends with the test."""
    made: list[HeadServer | RemoteModel] = []

    def make(model: HfModel, key: bytes = b"", **options: Any) -> RemoteModel:
        server = holding(model, key, **options)
        made.append(server)
        where = f"127.0.0.1:{begun(server)}"
        spec = ModelSpec(name=model.name, ref=model.name, backend="remote", base_url=where)
        client = RemoteModel(spec)
        made.append(client)
        return client

    yield make
    for one in reversed(made):
        one.close()
