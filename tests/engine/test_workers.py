"""Workers: heads on several devices run at the same time, and nothing else changes."""

from __future__ import annotations

import threading

import pytest
import torch

from flowinfer.engine.base import Observer, Row, decode
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.workers import DeviceWorkers, is_quicker_in_turn
from tests.backends import tiny
from tests.engine.plans import QUESTIONS, mix, one_step

HERE, THERE = torch.device("cpu"), torch.device("cpu", 0)  # one device, but two for a worker


def test_heads_on_different_devices_run_at_the_same_time() -> None:
    """Each waits for the other: in turn, they would wait for ever."""
    together = threading.Barrier(2)
    DeviceWorkers([HERE, THERE]).run("forward", lambda k: together.wait(30) and None)
    assert not together.broken


def test_heads_on_one_device_run_in_turn_in_the_callers_thread() -> None:
    seen: list[tuple[int, int]] = []
    DeviceWorkers([HERE, HERE, HERE]).run("forward", lambda k: seen.append((k, threading.get_ident())))
    assert seen == [(k, threading.get_ident()) for k in range(3)]


def test_heads_that_share_one_of_several_devices_run_in_turn_there() -> None:
    order: list[int] = []
    DeviceWorkers([HERE, THERE, HERE]).run("forward", order.append)
    assert sorted(order) == [0, 1, 2] and order.index(0) < order.index(2)


def test_heads_of_a_cpu_that_leave_python_to_others_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other two; the third is an ordinary head, which has a thread of its own beside them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    together = threading.Barrier(3)
    DeviceWorkers([HERE] * 3, beside=[1, 1, 0]).run("forward", lambda k: together.wait(30) and None)
    assert given == [2, 2, 2]


def test_one_core_is_shared_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    seen: list[int] = []
    DeviceWorkers([HERE, HERE], beside=[1, 1]).run("forward", lambda k: seen.append(threading.get_ident()))
    assert seen == [threading.get_ident()] * 2


@pytest.mark.parametrize(
    ("sizes", "cores", "is_in_turn"),
    [
        ((100, 250), 2, True),  # the larger one alone would take 250 on its core, both 175 on two
        ((240, 250), 2, False),
        ((250, 250), 3, True),  # a third core would idle
        ((250, 250, 250), 2, False),
        ((10, 25), 2, True),  # too small for a thread each
        ((25, 25), 2, True),
        ((0, 250), 2, False),  # one cannot leave its device to others
    ],
)
def test_heads_run_in_turn_where_a_core_would_wait_for_the_larger_or_all_are_small(
    sizes: tuple[int, ...], cores: int, is_in_turn: bool
) -> None:
    assert is_quicker_in_turn([size << 20 for size in sizes], cores) is is_in_turn


def test_heads_that_are_quicker_in_turn_have_all_cores_in_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen: list[int] = []
    sizes = [100 << 20, 250 << 20]
    DeviceWorkers([HERE, HERE], beside=sizes).run("forward", lambda k: seen.append(threading.get_ident()))
    assert seen == [threading.get_ident()] * 2


def test_what_a_head_raises_is_raised_after_all_have_come_to_rest() -> None:
    done: list[int] = []

    def work(k: int) -> None:
        if k == 0:
            raise torch.OutOfMemoryError("out of memory")
        done.append(k)

    with pytest.raises(torch.OutOfMemoryError):
        DeviceWorkers([HERE, THERE]).run("forward", work)
    assert done == [1]


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_text_does_not_depend_on_the_number_of_devices(context: str) -> None:
    models = [tiny.model("qwen2", "A"), tiny.model("llama", "B", seed=1), tiny.model("mistral", "W", seed=3)]
    step, asked = one_step(mix("A", "B", "W"), context=context, max_tokens=8).steps[0], QUESTIONS[:4]
    texts = []
    for devices in ([HERE, HERE, HERE], [HERE, THERE, HERE]):
        decoder = RoundDecoder(step, models, batch=3, observer=Observer())
        decoder.workers = DeviceWorkers(devices)
        rows = [Row(f"q{k}", "s1", {f"n{n}": text for n in range(3)}) for k, text in enumerate(asked)]
        texts.append({done.row.question_id: done.result and done.result.text for done in decode(decoder, rows)})
    assert texts[0] == texts[1] and len(texts[0]) == len(asked)


def test_what_lies_here_is_done_in_the_callers_thread_while_heads_elsewhere_are_waited_for() -> None:
    """The head elsewhere answers when the last one here is done, and those here begin when it has been asked."""
    asked, done, seen = threading.Event(), threading.Event(), dict[int, int]()

    def work(k: int) -> None:
        seen[k] = threading.get_ident()
        if k == 1:
            asked.set()
            assert done.wait(30)
        else:
            assert asked.wait(30)
        if k == 2:
            done.set()

    DeviceWorkers([HERE] * 3, elsewhere=[False, True, False]).run("forward", work)
    assert seen[0] == seen[2] == threading.get_ident() != seen[1]
