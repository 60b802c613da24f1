"""The packed decoder writes what the reference engine writes: any batch, slack, memory, order of ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Observer, Row, decode
from flowinfer.engine.caches.pages import PagesShort
from flowinfer.engine.loops import stream as packed
from flowinfer.engine.loops.batch import Batch
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.fusing import fused_choice
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.lockstep import LockStep, StepForm
from flowinfer.engine.loops.packing import reason_against
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.network.runner import HeadRunner, runner_of
from flowinfer.planning.plan import Plan, members
from flowinfer.results import StepResult
from tests.engine import plans
from tests.engine.oracle import decode_plainly
from tests.engine.plans import group, member, mix, one_step

Models = dict[str, HfModel]
_LONG = 2 * "Once upon a time there was a little girl who lived in a village near the forest, "
TEXTS = (*plans.QUESTIONS, _LONG + "and", _LONG + "but")


def rows_of(plan: Plan, texts: Sequence[str]) -> list[Row]:
    """Return one row per text."""
    step = plan.steps[0]
    return [Row(f"q{i}", step.id, {one.node: text for one in members(step.source)}) for i, text in enumerate(texts)]


def packed_decoder(
    plan: Plan,
    models: Models,
    *,
    batch: int,
    num_pages: int = 40,
    observer: Observer | None = None,
    placement: Sequence[int] | None = None,
    runners: Sequence[HeadRunner] = (),
) -> PackedDecoder:
    """Return the packed decoder of a plan's step; a CPU stands in for several devices where heads are placed apart."""
    step = plan.steps[0]
    own = [models[one.model] for one in members(step.source)]
    heads = Heads(step, own, observer=observer or Observer())
    runners = runners or [runner_of(model.transformers_model) for model in own]  # type: ignore[misc]
    assert all(isinstance(runner, HeadRunner) for runner in runners)
    choose = fused_choice(heads.mixer, batch, torch.float32)
    return PackedDecoder(heads, runners, choose, batch=batch, num_pages=[num_pages] * len(own), placement=placement)  # type: ignore[arg-type]


def reference(plan: Plan, models: Models, texts: Sequence[str] = TEXTS) -> dict[str, StepResult]:
    """Return the oracle's results by question."""
    own = [models[one.model] for one in members(plan.steps[0].source)]
    found = decode_plainly(plan.steps[0], own, rows_of(plan, texts))
    return {f"q{k}": result for k, result in enumerate(found)}


def results(completions: Any) -> dict[str, StepResult]:
    """Return results by question."""
    return {done.row.question_id: done.result for done in completions if done.result}


def told(result: StepResult) -> tuple[object, ...]:
    """Return what both engines must agree on."""
    heads = [(head.fed_tokens, head.prompt_tokens, head.agreement) for head in result.heads]
    return result.text, result.tokens, result.finish_reason, result.near_ties, heads


def assert_equal(plan: Plan, models: Models, texts: Sequence[str] = TEXTS, **options: Any) -> PackedDecoder:
    """Decode twice with one packed decoder; compare both times with the reference."""
    expected = {key: told(result) for key, result in reference(plan, models, texts).items()}
    decoder = packed_decoder(plan, models, **options)
    for _ in range(2):
        found = results(decode(decoder, rows_of(plan, texts)))
        assert {key: told(result) for key, result in found.items()} == expected
    return decoder


@pytest.mark.parametrize("source", [mix("A", "B"), mix("A", "B", "C", "W"), mix("A", "A2"), member("C")], ids=str)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_texts_ends_and_figures_are_the_reference_engines(models: Models, source: Any, batch: int) -> None:
    assert_equal(one_step(source, max_tokens=12), models, batch=batch)


@pytest.mark.parametrize("fuse", ["geometric", "power", "unite", "gated", "drop", "entropy", "vote"])
def test_every_fuser_that_never_asks_the_host(models: Models, fuse: str) -> None:
    assert_equal(one_step(mix("A", "B", fuse=fuse), max_tokens=8), models, plans.QUESTIONS, batch=4)


def test_nested_groups_and_weights(models: Models) -> None:
    nested = group(member("A", weight=0.7), group(member("B"), member("C"), weight=0.3))
    assert_equal(one_step(nested, max_tokens=8), models, plans.QUESTIONS, batch=4)


def test_stop_texts_end_rows_that_the_device_went_on_with(models: Models) -> None:
    plan = one_step(mix("A", "B"), max_tokens=24)
    common = [result.text[2:4] for result in reference(plan, models).values()]
    assert_equal(one_step(mix("A", "B"), max_tokens=24, stop=tuple(common[:3])), models, batch=4)


@pytest.mark.slow
def test_rows_end_where_a_heads_positions_end(models: Models) -> None:
    plan = one_step(mix("A", "B"), max_tokens=400)
    texts = ["字" * 60, "hello"]
    found = assert_equal(plan, models, texts, batch=2)
    assert {result.finish_reason for result in results(decode(found, rows_of(plan, texts))).values()} == {"context"}


def test_short_memory_takes_pages_from_the_last_row_and_gives_them_back(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted: list[LiveRow] = []
    take = Batch._preempt

    def note(rows: Batch) -> LiveRow:
        preempted.append(take(rows))
        return preempted[-1]

    monkeypatch.setattr(Batch, "_preempt", note)
    assert_equal(one_step(mix("A", "B", "C"), max_tokens=90), models, plans.QUESTIONS[:4], batch=4, num_pages=6)
    assert preempted


def test_a_row_that_never_fits_is_told(models: Models) -> None:
    plan = one_step(mix("A", "B"), max_tokens=120)
    with pytest.raises(PagesShort):
        list(decode(packed_decoder(plan, models, batch=2, num_pages=1), rows_of(plan, [_LONG])))


def test_broken_off_decoding_leaves_nothing_behind(models: Models) -> None:
    plan = one_step(mix("A", "B"), max_tokens=12)
    decoder = packed_decoder(plan, models, batch=3)
    stream = decoder.stream()
    for row in rows_of(plan, TEXTS):
        stream.add(row)
    while not stream.turn():
        pass
    stream.close()
    expected = {key: told(result) for key, result in reference(plan, models).items()}
    assert {k: told(v) for k, v in results(decode(decoder, rows_of(plan, TEXTS))).items()} == expected


def test_the_last_rows_move_together_so_that_steps_grow_small(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = LockStep.run

    def note(lock: LockStep, form: StepForm) -> None:
        sizes.append(form.rows)
        run(lock, form)

    monkeypatch.setattr(LockStep, "run", note)
    plan = one_step(member("A"), max_tokens=60, stop=("a", "e", " "))
    texts = [f"{text} {k}" for k in range(3) for text in plans.QUESTIONS]
    assert_equal(plan, models, texts, batch=16)
    assert sizes[0] == 16
    assert sizes[-1] == 1


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    batch=st.integers(1, 5),
    num_pages=st.integers(8, 30),
    tile=st.sampled_from([1, 2, 5, 16]),
    limit=st.integers(1, 10),
)
def test_any_load_any_batch_any_slack(
    models: Models, lengths: list[int], batch: int, num_pages: int, tile: int, limit: int
) -> None:
    texts = [f"{i} " + "abc 字"[: 1 + i % 5] * length for i, length in enumerate(lengths)]
    plan = one_step(mix("A", "B", "C"), max_tokens=limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "tile_for", lambda rows: max(rows, tile))
        assert_equal(plan, models, texts, batch=batch, num_pages=num_pages)


@pytest.mark.parametrize(
    ("options", "fuse", "reason"),
    [
        ({"context": "canonical"}, "mean", "canonical"),
        ({"strict": True}, "mean", "strict"),
        ({}, "sharpen", "fuse=sharpen"),
    ],
)
def test_what_the_host_must_decide_is_named(models: Models, options: dict[str, Any], fuse: str, reason: str) -> None:
    step = one_step(mix("A", "B", fuse=fuse), **options).steps[0]
    found = reason_against(Heads(step, [models["A"], models["B"]], observer=Observer()))
    assert found is not None
    assert reason in found
