"""Flows whose models do not fit together: refused, or served in turn."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest

from flowinfer.engine.models import ModelPool
from flowinfer.errors import MemoryShort
from flowinfer.language.check import check
from flowinfer.machine import Device, Machine
from flowinfer.planning.needs import need_of
from flowinfer.serving.flows import served
from flowinfer.serving.shifts import Shifts
from tests.serving.asgi import ask, call
from tests.serving.conftest import Serve, Served

FLOWS = {"q": "Qwen", "d": "Ds", "q2": "Qwen -> Qwen"}


def machine_for_one_model() -> Machine:
    """Return a machine that has room for any one of the lab's models."""
    flow = check("Qwen -> Ds", zoo="lab")
    largest = max(need_of(spec).weight_bytes or 0 for spec in flow.models.values())
    return Machine((Device("cpu", "a small one", int(largest * 1.2), 10**9),))


@pytest.fixture(scope="module")
def swapping(serve: Serve) -> Served:
    return serve(FLOWS, machine=machine_for_one_model(), swaps=True, models=ModelPool())


def test_models_that_do_not_fit_together_are_refused_with_the_arithmetic_and_the_cure() -> None:
    flows = {name: check(text, zoo="lab") for name, text in FLOWS.items()}
    with pytest.raises(MemoryShort) as refused:
        served(flows, machine_for_one_model())
    assert refused.match(r"the models of these flows do not fit together: Qwen .* GB, Ds .* in all; cpu .* GB free")
    assert refused.value.help
    assert refused.value.help.startswith("--swap serves them in turn; or ")
    with pytest.raises(MemoryShort, match=r"the models of one flow do not fit together: Qwen .*, Ds"):
        served({"both": check("Qwen -> Ds", zoo="lab")}, machine_for_one_model(), swaps=True)


def test_flows_that_share_their_models_are_served_in_one_turn() -> None:
    flows = {name: check(text, zoo="lab") for name, text in FLOWS.items()}
    ready, _ = served(flows, machine_for_one_model(), swaps=True)
    assert [(flow.name, flow.shift) for flow in ready] == [("q", 0), ("d", 1), ("q2", 0)]


def test_swapped_flows_answer_what_they_answer_alone_and_only_one_set_is_in_memory(
    swapping: Served, server: Served
) -> None:
    """Eighteen at once, over both sets; each change is told with its seconds, and none waits for ever."""
    pool, seen = swapping.desk.service._pool, list[int]()
    swapping.desk.service.on_notice = lambda notice: seen.append(len(pool._loaded))
    flows = ("q", "d", "q2")
    bodies = [
        {"model": flows[n % 3], "messages": [{"role": "user", "content": f"{n} + 4 = ?"}], "max_tokens": 6}
        for n in range(18)
    ]

    async def at_once() -> list[str]:
        replies = await asyncio.gather(*(ask(swapping.app, "POST", "/v1/chat/completions", body) for body in bodies))
        return [reply.data["choices"][0]["message"]["content"] for reply in replies]

    texts = swapping.run(at_once())
    for body, text in zip(bodies, texts, strict=True):
        if body["model"] == "q":
            alone = server.ask("POST", "/v1/chat/completions", body | {"model": "one"})
            assert text == alone.data["choices"][0]["message"]["content"]
    assert set(seen) <= {0, 1}
    loading = swapping.desk.service.loading
    assert loading.swap_seconds
    assert any(f"that took {loading.swap_seconds[0]:.1f} s" in notice for notice in loading.notices)
    text = swapping.ask("GET", "/metrics").body.decode()
    assert f"flowinfer_swaps_total {len(loading.swap_seconds)}.0" in text


@pytest.mark.slow
def test_a_client_of_a_flow_that_waits_for_its_turn_can_go_away(swapping: Served) -> None:
    async def leave() -> None:
        body = {"model": "q", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 200}
        first = call(swapping.app, "POST", "/v1/chat/completions", body | {"stream": True, "temperature": 2})
        task = first.start()
        await first.sent.get()
        other = call(swapping.app, "POST", "/v1/chat/completions", body | {"model": "d"})
        waiting = other.start()
        other.gone.set()
        await waiting
        first.gone.set()
        await task
        await swapping.is_idle()

    swapping.run(leave())
    assert swapping.chat("d", "3 + 4 = ?", max_tokens=2).status == 200


def test_a_set_that_cannot_be_loaded_fails_its_questions_and_no_others(swapping: Served) -> None:
    pool = swapping.desk.service._pool
    get = pool.get
    assert swapping.chat("q", "3 + 4 = ?", max_tokens=2).status == 200

    def broken(plan: Any, name: str, observer: Any) -> Any:
        if name == "Ds":
            raise MemoryShort("somebody else has the memory now")
        return get(plan, name, observer)

    pool.get = broken  # type: ignore[method-assign]
    try:
        reply = swapping.chat("d", "3 + 4 = ?", max_tokens=2)
        assert (reply.status, reply.error["message"]) == (500, "somebody else has the memory now")
        assert swapping.chat("q", "3 + 4 = ?", max_tokens=2).status == 200
    finally:
        pool.get = get  # type: ignore[method-assign]
    assert swapping.chat("d", "3 + 4 = ?", max_tokens=2).status == 200


@dataclass
class Waits:
    since: float


def test_turns_are_given_by_who_has_waited_longest_and_cost_a_fifth_of_the_time_at_most() -> None:
    now = [0.0]
    shifts = Shifts({"a": 0, "b": 1, "c": 2}, lambda: now[0])
    waiting = {"a": deque([Waits(0)]), "b": deque([Waits(3)]), "c": deque([Waits(2)])}
    assert not shifts.gives_way(waiting)
    now[0] = 1.0
    assert shifts.gives_way(waiting)
    assert shifts.following(waiting) == 2
    shifts.begin(2)
    shifts.has_begun(5.0)
    now[0] = 20.9
    assert not shifts.gives_way(waiting)
    now[0] = 21.0
    assert shifts.gives_way(waiting)
    waiting["c"].clear()
    now[0] = 1.0
    assert shifts.gives_way(waiting)
    assert shifts.following(waiting) == 0
    assert shifts.following({"c": waiting["b"]}) is None
