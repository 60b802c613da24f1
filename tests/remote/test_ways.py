"""Over a way that is late, breaks messages into pieces and is cut in the middle, heads write what they write here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowinfer.backends.hf import HfModel
from flowinfer.remote.client import RemoteModel
from flowinfer.spec import ModelSpec
from tests.engine import plans
from tests.engine.plans import answers, mix, one_step
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
