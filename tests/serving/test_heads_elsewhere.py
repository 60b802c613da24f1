"""A served flow whose head is elsewhere, and what a client sees when that head goes and comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flowinfer.backends.base import TokenModel
from flowinfer.engine.base import Observer
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.remote import client
from flowinfer.remote.server import HeadServer
from tests.serving.conftest import Serve
from tests.serving.test_service import text_of


@contextmanager
def head(model: Any, port: int = 0) -> Iterator[int]:
    """Yield the port of a head; it is gone afterwards, and so are its connections."""
    server = HeadServer(model, "qwen", b"")
    _, port = server.listen("127.0.0.1", port)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield port
    server.close()
    thread.join()


def test_a_head_that_was_lost_answers_again_once_it_is_back(
    serve: Serve, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.0)
    plan = ready(check("Qwen", zoo="lab"), this_machine())
    model = pool.get(plan, "Qwen", Observer())
    assert isinstance(model, TokenModel)
    with head(model) as port:
        own = ModelPool()
        server = serve({"far": f'model Qwen = "qwen" {{ device="127.0.0.1:{port}" }}\nQwen'}, models=own)
        first = text_of(server.chat("far", "3 + 4 = ?"))
    lost = server.chat("far", "3 + 4 = ?")
    assert (lost.status, lost.data["error"]["code"]) == (500, "flow_failed")
    assert f"head 'Qwen' at 127.0.0.1:{port} is lost" in lost.data["error"]["message"]
    with head(model, port):
        assert text_of(server.chat("far", "3 + 4 = ?")) == first
    own.close()
