"""Over a way that is late, breaks messages into pieces and is cut in the middle, heads write what they write here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowinfer.backends.hf import HfModel
from flowinfer.remote.client import RemoteModel
from flowinfer.remote.reach import reach
from flowinfer.spec import ModelSpec
from tests.engine import plans
from tests.engine.plans import answers, member, mix, one_step
from tests.remote.conftest import Serve
from tests.remote.ways import Way

TEXTS = plans.QUESTIONS[:3]
Far = Callable[..., RemoteModel]


@pytest.fixture
def far(serve: Serve, models: dict[str, HfModel]) -> Iterator[Far]:
    """Yield what connects to head A over a way."""
    made: list[RemoteModel | Way] = []

    def make(**options: Any) -> RemoteModel:
        way = Way(serve(models["A"])._port, **options)
        address = f"127.0.0.1:{way.port}"
        model = RemoteModel(ModelSpec(name="A", ref="A", backend="remote", base_url=address))
        made.extend((model, way))
        ways.append(way)
        return model

    ways: list[Way] = []
    make.ways = ways  # type: ignore[attr-defined]  # for what they have cut
    yield make
    for one in made:
        one.close()


def test_messages_in_pieces_of_a_few_bytes_are_whole_again(models: dict[str, HfModel], far: Far) -> None:
    plan = one_step(mix("A", "C"), max_tokens=4)
    assert answers(plan, models | {"A": far(most=700)}, TEXTS[:2]) == answers(plan, models, TEXTS[:2])


def test_the_network_is_what_a_long_way_costs(models: dict[str, HfModel], far: Far) -> None:
    """20 ms each way: what a message is waited for, and the head did not work, is that at least."""
    model = far(seconds=0.02)
    answers(one_step(mix("A", "C"), max_tokens=3), models | {"A": model}, TEXTS[:2])
    counted = model.traffic
    assert counted.messages >= 6 and counted.waited - counted.worked >= 0.04 * counted.messages
    (way,) = far.ways  # type: ignore[attr-defined]
    reached = reach("127.0.0.1", way.port, b"")
    assert reached.round_trip >= 0.04 and reached.seconds(1 << 20) > reached.round_trip


def test_users_of_one_head_whose_ways_are_cut_change_nothing_for_one_another(
    models: dict[str, HfModel], serve: Serve
) -> None:
    port, plan = serve(models["A"])._port, one_step(member("A"), max_tokens=6)  # a process has heads of its own
    ways = [Way(port, cuts=cuts) for cuts in ((6_000, 6_000), (), (7_000,))]
    users = [
        RemoteModel(ModelSpec(name="A", ref="A", backend="remote", base_url=f"127.0.0.1:{way.port}")) for way in ways
    ]
    try:
        with ThreadPoolExecutor(len(users)) as pool:
            found = list(pool.map(lambda user: answers(plan, {"A": user}, TEXTS), users))
        assert found == [answers(plan, models, TEXTS)] * len(users)
        assert [bool(way.num_cut) for way in ways] == [True, False, True]  # bytes differ by the seconds that are told
    finally:
        for one in (*users, *ways):
            one.close()


@pytest.mark.slow
def test_a_way_that_is_cut_inside_of_messages_changes_no_text(models: dict[str, HfModel], far: Far) -> None:
    plan = one_step(mix("A", "C"), max_tokens=8)
    model = far(cuts=(9_000, 8_200, 8_400))
    assert answers(plan, models | {"A": model}, TEXTS) == answers(plan, models, TEXTS)
    (way,) = far.ways  # type: ignore[attr-defined]
    assert way.num_cut >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"speculate": "auto"}, {"context": "canonical"}, {"temperature": 0.8}], ids=str
)
def test_a_long_way_that_is_cut_changes_no_text(models: dict[str, HfModel], far: Far, options: dict[str, Any]) -> None:
    plan = one_step(mix("A", "C"), max_tokens=16, **options)
    model = far(seconds=0.01, most=1500, cuts=(20_000, 12_000))
    assert answers(plan, models | {"A": model}) == answers(plan, models)
