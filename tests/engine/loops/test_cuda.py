"""On a CUDA device the packed engine writes what the reference engine writes there, in float32; `make test-gpu`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Observer, decode
from flowinfer.engine.loops import decoder, ways
from flowinfer.engine.loops.lockstep import LockStep
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.planning.plan import compile, members
from flowinfer.results import Record
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.spec import Decoding
from flowinfer.tasks.base import load_questions
from flowinfer.zoo import load_zoo
from tests.engine.loops.test_decoder import packed_decoder, results
from tests.engine.loops.test_spaces import asked
from tests.engine.test_cuda import CPU, ONE, SEVERAL, TWO, texts, zoo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

S2P = "Yi -> (Qwen | Ds)"


def records(flow: str, zoo: str, engine: str, batch: int | str, **settings: str) -> list[Record]:
    found: list[Record] = []
    checked = check(flow, zoo=zoo, overrides={"max_tokens": "80", **settings})
    request = Request(out=None, use_cache=False, engine=engine, batch=batch)  # type: ignore[arg-type]  # both are right
    evaluate(checked, load_questions("gsm8k", use_items=True, limit=12), request, on_record=found.append)
    return sorted(found, key=lambda record: int(record.question.id.rpartition("-")[2]))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[list[str]]]:
    """Return what tells the reference engine's texts on one device; it writes them once for all tests."""
    here = zoo(tmp_path_factory.mktemp("zoo") / "one", ONE)
    written: dict[tuple[tuple[str, str], ...], list[list[str]]] = {}

    def tell(**settings: str) -> list[list[str]]:
        key = tuple(sorted(item for item in settings.items() if item[0] != "speculate"))  # it takes no drafts
        if key not in written:
            written[key] = texts(records(S2P, here, "reference", "auto", **dict(key)))
        return written[key]

    return tell


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": "0.8"},
        {"temperature": "0.8", "top_p": "0.9"},
        {"fuse": "geometric"},
        {"fuse": "unite"},
        {"fuse": "sharpen"},
        {"context": "canonical"},
        {"speculate": "upstream"},
        {"speculate": "upstream", "context": "canonical"},
        {"speculate": "off"},
    ],
    ids=str,
)
def test_packed_steps_write_the_reference_engines_texts(
    settings: dict[str, str], expected: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    here = zoo(tmp_path / "one", ONE)
    for batch in (1, 5, "auto"):
        assert texts(records(S2P, here, "auto", batch, **settings)) == expected(**settings)


@pytest.mark.parametrize("where", SEVERAL)
@pytest.mark.parametrize(
    "settings",
    [
        {"speculate": "off"},
        {"speculate": "off", "temperature": "0.8", "top_p": "0.9"},
        {"fuse": "geometric"},
        {"fuse": "sharpen"},
        {"context": "canonical"},
        {"strict": "true"},
        {"lstrip_first": "true"},
        {"speculate": "upstream"},
    ],
    ids=str,
)
def test_heads_on_several_devices_write_the_same(
    settings: dict[str, str], where: Mapping[str, str], expected: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    """Whole steps where they can be, else rounds over packed sessions of every device."""
    for batch in (4, "auto"):
        found = records(S2P, zoo(tmp_path / str(batch), where), "auto", batch, **settings)
        assert texts(found) == expected(**settings)


def begun_unlike(device: str, dtype: str = "float32", before: str = "") -> str:
    """Return a flow of a group of which one head begins answers with a space and the others with none."""
    raw = f'model Raw = "{load_zoo("lab").models["Qwen"].ref}" {{ chat=off, dtype={dtype}, device="{device}" }}'
    return f'{raw}\n(Raw[prompt="{before}Question: {{question}}\\nAnswer:"] | Ds | Yi)'


def refused(*_: object) -> None:
    raise AssertionError("the models' own sessions are not asked")


@pytest.mark.parametrize("where", [pytest.param(ONE, id="1 device"), *SEVERAL])
@pytest.mark.parametrize(
    ("settings", "before"),
    [
        ({}, ""),
        ({"temperature": "0.8", "top_p": "0.9"}, ""),
        ({"fuse": "geometric"}, "Add all numbers and say what comes out. " * 12),
    ],
    ids=["greedy", "drawn", "long"],
)
def test_heads_of_which_some_begin_with_a_space_write_the_same(
    settings: dict[str, str], before: str, where: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their first token is put together over the loop's own networks and pages, the others in the device's loop."""
    here = zoo(tmp_path / "one", ONE)
    expected = texts(records(begun_unlike("cuda:0", before=before), here, "reference", "auto", **settings))
    monkeypatch.setattr(HfModel, "open", refused)
    for batch in (5, "auto"):
        there = zoo(tmp_path / str(batch), where)
        found = records(begun_unlike(where["Qwen"], before=before), there, "auto", batch, speculate="off", **settings)
        assert texts(found) == expected
        assert {record.trace.steps[0].lstripped for record in found} == {1}


@pytest.mark.parametrize("where", [pytest.param(ONE, id="1 device"), *SEVERAL])
def test_first_tokens_are_the_cpus(where: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, whose forward is written out, nearly all are."""
    here = zoo(tmp_path / "cpu", CPU)
    expected = texts(records(begun_unlike("cpu"), here, "auto", "auto", max_tokens="1"))
    monkeypatch.setattr(HfModel, "open", refused)
    for dtype, least in (("float32", 12), ("bfloat16", 9)):
        there, flow = zoo(tmp_path / dtype, where, dtype), begun_unlike(where["Qwen"], dtype)
        for batch in (1, "auto"):
            found = texts(records(flow, there, "auto", batch, speculate="off", max_tokens="1"))
            assert sum(one == other for one, other in zip(found, expected, strict=True)) >= least


@pytest.mark.parametrize("where", [pytest.param(ONE, id="1 device"), *SEVERAL])
def test_first_tokens_give_their_memory_back(where: Mapping[str, str], tmp_path: Path) -> None:
    settings = {"max_tokens": "4", "speculate": "off"}
    plan = compile(check(begun_unlike(where["Qwen"]), zoo=zoo(tmp_path / "there", where), overrides=settings))
    pool, left = ModelPool(), list[int]()
    own: Any = {one.model: pool.get(plan, one.model, Observer()) for one in members(plan.steps[0].source)}
    decoder = packed_decoder(plan, own, batch=24, num_pages=200)
    rows = asked(plan, [f"{k} and {k}" * (1 + k % 7) for k in range(40)])
    for _ in range(7):  # prompts are read by graphs from the fifth time on
        assert len(results(decode(decoder, rows))) == len(rows)
        gc.collect()
        left.append(sum(torch.cuda.memory_allocated(k) for k in range(torch.cuda.device_count())))
    assert left[-1] <= left[-3] + (1 << 20)
    assert set(decoder.free_pages.values()) == {200}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_devices_that_cannot_reach_each_other_write_the_same(
    expected: Callable[..., list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What their heads exchange goes through the host's memory."""
    monkeypatch.setattr(ways, "reach_each_other", lambda one, other: one == other)
    assert texts(records(S2P, zoo(tmp_path / "two", TWO), "auto", "auto", speculate="off")) == expected(speculate="off")


def test_rows_that_begin_alike_are_read_once(tmp_path: Path) -> None:
    """A batch larger than the questions, prompts with one template: pages are shared and texts stay."""
    here = zoo(tmp_path / "one", ONE)
    flow = "(Qwen | Ds | Yi)"
    assert texts(records(flow, here, "auto", 64)) == texts(records(flow, here, "reference", 1))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_rows_begin_and_end_while_the_device_is_at_work(tmp_path: Path) -> None:
    """The host waits for nothing: a number that is assigned to a place on the device would be waited for."""
    made: list[LockStep] = []

    class Watched(LockStep):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "LockStep", Watched)
        records(S2P, zoo(tmp_path / "one", ONE), "auto", 4, speculate="off")
    (_, lock) = made
    torch.cuda.set_sync_debug_mode("error")
    try:
        lock.start(1, [5, 6], [1, 2], Decoding(temperature=0.5), key=3)
        lock.exchange(1, 2)
        lock.stop(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not lock.states.live.any()
