"""Prompts in pieces: any cut gives the keys and values that whole prompts give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowinfer.engine.caches.pages import PAGE, PagedCache, Pages
from flowinfer.engine.loops import prompts
from flowinfer.engine.loops.prompts import PromptReader, Reading, pieces
from flowinfer.engine.network.runner import HeadRunner
from tests.backends import tiny


@given(st.integers(1, 20_000))
def test_pieces_hold_all_ids_and_only_the_last_has_room(count: int) -> None:
    found = list(pieces(count))
    assert sum(found[:-1]) < count <= sum(found)
    assert sum(found) - count < max(256, sum(found) // 8 + 1)


@pytest.mark.parametrize("most", [1, 7, 64, 10_000])
def test_prompts_that_are_cut_leave_what_whole_ones_leave(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST_PROMPT_TOKENS", most)
    runner = HeadRunner(tiny.model("qwen2", "A").transformers_model)
    texts = [(0, list(range(3, 90))), (1, [7]), (2, list(range(40, 60)))]
    pages = Pages(8, 3, 3 * PAGE)
    cache = PagedCache(runner.layers, pages, torch.float32, runner.device)
    for index, ids in texts:
        pages.reserve(index, len(ids))
    PromptReader(runner, cache).read(texts)
    model = tiny.model("qwen2", "A").transformers_model
    for index, ids in texts:
        place = torch.tensor([index]), torch.tensor([len(ids) - 1])
        found = runner.logits(torch.tensor(ids[-1:]), place[1], torch.tensor([0]), cache.at(*place, 1))
        with torch.inference_mode():
            wanted = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1:]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@dataclass
class Piece:
    """What a GPU was given; an event."""

    is_read: bool = False

    def query(self) -> bool:
        return self.is_read

    def synchronize(self) -> None:
        self.is_read = True


class Queue(PromptReader):
    """A head on a GPU that is only said to be there."""

    def __init__(self, name: str, gpu: int, num_pieces: int, given: list[str]) -> None:
        self.gpu, self._name, self._num_pieces, self._given = torch.device("cuda", gpu), name, num_pieces, given

    @property
    def device(self) -> torch.device:
        return self.gpu

    def reading(self, texts: object) -> Iterator[None]:
        for number in range(self._num_pieces):
            if number:
                yield
            self._given.append(f"{self._name}{number}")


def test_heads_of_two_gpus_read_side_by_side_and_neither_is_given_more_than_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queued: dict[int, list[Piece]] = {0: [], 1: []}

    def stream(device: torch.device) -> SimpleNamespace:
        def record() -> Piece:
            queued[device.index].append(Piece())
            return queued[device.index][-1]

        return SimpleNamespace(record_event=record)

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    given: list[str] = []
    reading = Reading([Queue("A", 0, 4, given), Queue("B", 1, 3, given)], "AB", [[], []])
    assert reading.go_on()
    assert given == ["A0", "B0", "A1", "B1"]
    assert not reading.go_on()
    queued[1][0].synchronize()
    assert reading.go_on()
    assert given[4:] == ["B2"]
    reading.wait()
    assert queued[0][0].is_read
    assert reading.go_on()
    assert given[5:] == ["A2"]
    assert not reading.is_queued
    queued[0][1].synchronize()
    assert reading.go_on()
    assert given[6:] == ["A3"]
    assert reading.is_queued, "known with the last piece, not when there is room for another"


def test_heads_of_one_gpu_have_turns_and_it_is_given_no_more_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[Piece] = []

    def record() -> Piece:
        queued.append(Piece())
        return queued[-1]

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(record_event=record))
    given: list[str] = []
    reading = Reading([Queue(name, 0, 2, given) for name in "ABC"], "ABC", [[], [], []])
    reading.go_on()
    assert given == ["A0", "B0"]
    while not reading.is_queued:
        reading.wait()
        reading.go_on()
    assert given == ["A0", "B0", "C0", "A1", "B1", "C1"]


def test_a_heads_seconds_are_those_until_its_gpu_was_ready_for_the_last_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that a GPU was still at when it was given prompts count for other rows."""
    queued: list[Piece] = []

    def record() -> Piece:
        queued.append(Piece())
        return queued[-1]

    now = 0.0
    monkeypatch.setattr(prompts.time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(record_event=record))
    reading = Reading([Queue("A", 0, 4, [])], "A", [[]])
    reading.go_on()
    now = 3.0
    reading.count_from(now)
    for later in (4.0, 6.0):
        now = later
        reading.wait()
        reading.go_on()
    assert reading.is_queued
    assert reading.seconds == [3.0]


@pytest.mark.gpu
def test_prompts_by_graphs_leave_what_eager_ones_leave() -> None:
    runner = HeadRunner(tiny.model("qwen2", "A").transformers_model.cuda())
    texts = [(index, list(range(3, 203 + index))) for index in range(5)]

    def lasts(num_reads: int) -> torch.Tensor:
        pages = Pages(30, 5, 6 * PAGE)
        cache = PagedCache(runner.layers, pages, torch.float32, runner.device)
        for index, ids in texts:
            pages.reserve(index, len(ids))
        reader = PromptReader(runner, cache)
        reader._num_reads = num_reads
        reader.read(texts)
        ids, rows, positions = torch.tensor([(own[-1], row, len(own) - 1) for row, own in texts], device="cuda").T
        return runner.logits(ids, positions, torch.arange(5, device="cuda"), cache.at(rows, positions, 1))

    torch.testing.assert_close(lasts(100), lasts(0), rtol=1e-4, atol=1e-4)
