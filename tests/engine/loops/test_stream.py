"""A device's loop from outside: options by row, tokens that are told, rows that come late and rows that are ended."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.engine.base import Completion, Observer, Row, TokenEvent, decode
from flowinfer.engine.caches.pages import PAGE
from flowinfer.engine.loops import prompts
from flowinfer.engine.loops.batch import Batch
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.outcome import MOST_TOPS
from flowinfer.engine.loops.prompts import PromptReader, Reading
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.stream import PackedStream
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.planning.plan import Plan, compile
from flowinfer.results import StepResult
from flowinfer.startup import STARTUP
from tests.engine import plans
from tests.engine.loops.test_decoder import Models, packed_decoder, results, rows_of
from tests.engine.plans import Listener, mix, one_step
from tests.engine.test_cuda import ONE, zoo

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PLAN = one_step(mix("A", "B", "C"), max_tokens=10)
OPTIONS: Sequence[dict[str, Any]] = (
    {},
    {"max_tokens": 3},
    {"max_tokens": 21},
    {"temperature": 0.9},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 2.0, "top_p": 0.4, "max_tokens": 15},
    {"top_p": 0.5},
    {"stop": ("a", "e")},
    {"temperature": 1.1, "stop": (" ",), "max_tokens": 14},
)


def mixed_rows(plan: Plan = PLAN) -> list[Row]:
    """Return a row for each of the options."""
    texts = [f"{plans.QUESTIONS[k % 4]} {k}" for k in range(len(OPTIONS))]
    own = [plan.steps[0].decoding.model_copy(update=options) for options in OPTIONS]
    return [replace(row, decoding=one) for row, one in zip(rows_of(plan, texts), own, strict=True)]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=GPU)])
def models(request: pytest.FixtureRequest, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return three models: tiny ones on the CPU, the lab's on a GPU."""
    if request.param == "cpu":
        return models
    plan = compile(check("(Qwen | Ds | Yi)", zoo=zoo(tmp_path_factory.mktemp("zoo") / "one", ONE)))
    pool = ModelPool()
    return {own: pool.get(plan, name, Observer()) for own, name in zip("ABC", ONE, strict=True)}  # type: ignore[misc]


@pytest.fixture(scope="module")
def alone(models: Models) -> dict[str, tuple[object, ...]]:
    """What each of the rows writes in the host's loop, where it is the only one."""
    decoder = RoundDecoder(PLAN.steps[0], [models[name] for name in "ABC"], batch=1, observer=Observer())
    return written(results(decode(decoder, mixed_rows())))


def written(found: dict[str, StepResult]) -> dict[str, tuple[object, ...]]:
    return {key: (result.text, result.tokens, result.finish_reason) for key, result in found.items()}


def extra(models: Models) -> int:
    """Return how many pages more the lab's models need: a key of one head may be 13 ids of another."""
    return 4 if models["A"].device.type == "cuda" else 0


def run_dry(stream: PackedStream) -> dict[str, StepResult]:
    """Bring a stream on until all its rows have ended."""
    ended: list[Completion] = []
    while stream.num_rows:
        ended += stream.turn()
    return results(ended)


def pages_held(decoder: PackedDecoder) -> list[int]:
    """Return how many pages of each head are in use."""
    return [cache.pages.num_pages - cache.pages.num_free for cache in decoder._caches]


def test_the_options_of_rows_make_a_difference(alone: dict[str, tuple[object, ...]]) -> None:
    assert len({text for text, _, _ in alone.values()}) == len(OPTIONS)
    assert len({reason for _, _, reason in alone.values()}) > 1


@settings(max_examples=4, deadline=None)
@given(order=st.permutations(range(len(OPTIONS))), batch=st.integers(1, 6), num_pages=st.sampled_from([6, 40]))
def test_a_row_on_the_device_writes_what_it_writes_alone(
    models: Models, alone: dict[str, tuple[object, ...]], order: list[int], batch: int, num_pages: int
) -> None:
    rows = mixed_rows()
    decoder = packed_decoder(PLAN, models, batch=batch, num_pages=num_pages + extra(models))
    assert written(results(decode(decoder, [rows[k] for k in order]))) == alone


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9}], ids=str)
def test_told_tokens_are_those_of_the_hosts_loop(models: Models, options: dict[str, Any]) -> None:
    plan = one_step(mix("A", "B", "C"), max_tokens=10, **options)
    on_host, on_device = Listener(), Listener()
    on_host.num_tops = on_device.num_tops = MOST_TOPS
    own = [models[name] for name in "ABC"]
    host = RoundDecoder(plan.steps[0], own, batch=3, observer=on_host)
    device = packed_decoder(plan, models, batch=3, observer=on_device)
    for decoder in (host, device):
        list(decode(decoder, rows_of(plan, plans.QUESTIONS)))
    assert on_device.events.keys() == on_host.events.keys()
    for key, events in on_host.events.items():
        found = on_device.events[key]
        assert [names(event) for event in found] == [names(event) for event in events]
        for one, other in zip(found, events, strict=True):
            assert numbers(one) == pytest.approx(numbers(other), rel=1e-3, abs=1e-6)


def test_where_few_rows_are_listened_to_each_token_is_told_by_itself(
    models: Models, alone: dict[str, tuple[object, ...]]
) -> None:
    """Ten rows get several steps at once, the last eight of them single ones: the texts stay, in one order."""
    listener, rows = Listener(), mixed_rows()
    stream = packed_decoder(PLAN, models, batch=len(rows), observer=listener).stream()
    for row in rows:
        stream.add(row)
    found: dict[str, StepResult] = {}
    told: list[tuple[int, int]] = []
    while stream.num_rows:
        few, before = stream.num_rows <= 8, sum(map(len, listener.events.values()))
        found |= results(stream.turn())
        told.append((few, sum(map(len, listener.events.values())) - before))
    assert written(found) == alone
    assert max(count for few, count in told if not few) > len(rows)
    assert max(count for few, count in told[-12:] if few) <= 8
    for events in listener.events.values():
        assert [event.index for event in events] == list(range(len(events)))


def names(event: TokenEvent) -> tuple[object, ...]:
    return event.index, event.piece, event.tops[0].piece, [(own.node, own.model, own.piece) for own in event.heads]


def numbers(event: TokenEvent) -> list[float]:
    of_heads = [p for own in event.heads for p in (own.probability, own.probability_of_emitted)]
    assert len(event.tops) == MOST_TOPS
    return [event.probability, *of_heads, *(top.probability for top in event.tops)]


def test_a_stream_that_ran_dry_takes_more_rows(models: Models, alone: dict[str, tuple[object, ...]]) -> None:
    stream = packed_decoder(PLAN, models, batch=3).stream()
    found: dict[str, StepResult] = {}
    for row in mixed_rows()[:4]:
        stream.add(row)
        found |= run_dry(stream)
        assert not stream.turn()
    assert written(found) == {key: alone[key] for key in found}


@settings(max_examples=5, deadline=None)
@given(
    ends=st.dictionaries(st.integers(0, len(OPTIONS) - 1), st.integers(0, 8), min_size=1, max_size=4),
    batch=st.integers(1, 5),
    num_pages=st.sampled_from([6, 40]),
)
def test_an_ended_row_gets_no_completion_and_changes_no_other_text(
    models: Models, alone: dict[str, tuple[object, ...]], ends: dict[int, int], batch: int, num_pages: int
) -> None:
    """Some rows are ended before the first turn, some while they wait, decode or have lost their pages."""
    rows, decoder = mixed_rows(), packed_decoder(PLAN, models, batch=batch, num_pages=num_pages + extra(models))
    stream, found, late = decoder.stream(), {}, set()
    for row in rows:
        stream.add(row)
    for turn in range(9):
        for k in (k for k, at in ends.items() if at == turn):
            late |= {k} if rows[k].question_id in found else set()
            stream.end(rows[k])
        found |= results(stream.turn())
    found |= run_dry(stream)
    gone = {rows[k].question_id for k in ends.keys() - late}
    assert written(found) == {key: text for key, text in alone.items() if key not in gone}
    assert pages_held(decoder) == [0, 0, 0]


def test_rows_that_come_in_together_read_what_they_begin_with_once(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of one prompt each read all of it."""
    plan = one_step(mix("A", "B", "C"), max_tokens=6, temperature=1.0)
    text = "hello and then she said " * 22
    rows = [replace(row, noise_id=f"n{k}") for k, row in enumerate(rows_of(plan, [text] * 5 + [text + "x + 1"]))]
    expected = written(results(decode(packed_decoder(plan, models, batch=1), rows)))
    assert len({text for text, _, _ in expected.values()}) > 3
    decoder = packed_decoder(plan, models, batch=6)
    stream, read, launch = decoder.stream(), list[int](), PromptReader._launch

    def note(reader: PromptReader, flat: torch.Tensor) -> None:
        read.append(flat.shape[1])
        launch(reader, flat)

    monkeypatch.setattr(PromptReader, "_launch", note)
    for row in rows:
        stream.add(row)
    found = results(stream.turn()) | run_dry(stream)
    assert written(found) == expected
    longest = [len(models[name].prompt(text + "x + 1").ids) for name in "ABC"]
    assert sum(read) <= sum(length + 5 * PAGE for length in longest) < 3 * sum(longest)
    assert pages_held(decoder) == [0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_rows_may_end_and_come_while_devices_read_prompts_piece_by_piece(
    models: Models, alone: dict[str, tuple[object, ...]], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices whose queues are mostly full take many turns for a prompt; other rows' outcomes are read meanwhile."""
    rng = random.Random(seed)
    monkeypatch.setattr(prompts, "MOST_PROMPT_TOKENS", 5)
    monkeypatch.setattr(Reading, "_has_room", lambda *_: rng.random() < 0.3)
    decoder = packed_decoder(PLAN, models, batch=4, num_pages=40)
    stream, coming, gone = decoder.stream(), mixed_rows(), set[str]()
    rng.shuffle(coming)
    found: dict[str, StepResult] = {}
    num_between = 0
    while coming or stream.num_rows:
        if coming and rng.random() < 0.2:
            stream.add(coming.pop())
        before = decoder.num_steps
        found |= results(stream.turn())
        if stream._admitted is not None:
            num_between += 1
            assert decoder.num_steps == before
            if num_between in (2, 9, 20) and stream._admitted.rows:
                row = rng.choice(stream._admitted.rows).live.row
                stream.end(row)
                gone.add(row.question_id)
    assert num_between > 20
    assert 0 < len(gone) < 4
    assert written(found) == {key: text for key, text in alone.items() if key not in gone}
    assert pages_held(decoder) == [0, 0, 0]


def test_a_loop_that_is_broken_off_while_prompts_are_read_begins_anew(
    models: Models, alone: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MOST_PROMPT_TOKENS", 5)
    decoder = packed_decoder(PLAN, models, batch=4, num_pages=40)
    with monkeypatch.context() as patched:
        rooms = iter([True] * 5)
        patched.setattr(Reading, "_has_room", lambda *_: next(rooms, False))
        stream = decoder.stream()
        for row in mixed_rows():
            stream.add(row)
        stream.turn()
        assert stream.is_waiting is False and stream._admitted is not None
        stream.turn()
        assert stream.is_waiting
        stream.close()
        assert pages_held(decoder) == [0, 0, 0]
    assert written(results(decode(decoder, mixed_rows()))) == alone


def test_prompts_that_nobody_wants_any_more_are_read_no_further(
    models: Models, alone: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is given up keeps its pages while others that came with it are read; so it does when ended again."""
    monkeypatch.setattr(prompts, "MOST_PROMPT_TOKENS", 5)
    monkeypatch.setattr(STARTUP, "seconds", None)
    decoder, rows = packed_decoder(PLAN, models, batch=2, num_pages=40), mixed_rows()
    stream, began = decoder.stream(), len(STARTUP.parts)
    with monkeypatch.context() as patched:
        rooms = iter([True] * 3)
        patched.setattr(Reading, "_has_room", lambda *_: next(rooms, False))
        for row in rows[:2]:
            stream.add(row)
        stream.turn()
        held = pages_held(decoder)
        for _ in range(2):
            stream.end(rows[0])
            assert pages_held(decoder) == held
            assert stream.num_rows == 1
        assert None in {own.seconds for own in STARTUP.parts[began:]}
        stream.end(rows[1])
    assert pages_held(decoder) == [0, 0, 0]
    assert [own.part for own in STARTUP.parts[began:]] == ["prompt"] * 3
    assert None not in {own.seconds for own in STARTUP.parts[began:]}
    assert stream.num_rows == 0
    stream.add(rows[2])
    assert written(run_dry(stream)) == {rows[2].question_id: alone[rows[2].question_id]}


def test_an_ended_row_frees_its_place_and_pages_at_once(models: Models) -> None:
    decoder = packed_decoder(PLAN, models, batch=2)
    stream, rows = decoder.stream(), mixed_rows()
    for row in rows[:2]:
        stream.add(row)
    stream.turn()
    before = pages_held(decoder)
    stream.end(rows[0])
    after = pages_held(decoder)
    assert all(now < then for now, then in zip(after, before, strict=True))
    assert stream.num_rows == 1
    stream.close()


def test_rows_that_lost_their_pages_can_be_ended(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are short for four rows; the first that gives up its own is ended before it gets them back."""
    preempted: list[LiveRow] = []
    take = Batch._preempt

    def note(rows: Batch) -> LiveRow:
        preempted.append(take(rows))
        return preempted[-1]

    monkeypatch.setattr(Batch, "_preempt", note)
    plan = one_step(mix("A", "B", "C"), max_tokens=90)
    rows = rows_of(plan, plans.QUESTIONS[:4])
    expected = written(results(decode(packed_decoder(plan, models, batch=1), rows)))
    decoder = packed_decoder(plan, models, batch=4, num_pages=6 + extra(models))
    stream = decoder.stream()
    found: dict[str, StepResult] = {}
    for row in rows:
        stream.add(row)
    while stream.num_rows and not preempted:
        found |= results(stream.turn())
    ended = preempted[0].row
    stream.end(ended)
    found |= run_dry(stream)
    assert written(found) == {key: text for key, text in expected.items() if key != ended.question_id}
    assert pages_held(decoder) == [0, 0, 0]


def test_nobody_who_listens_costs_nothing(models: Models) -> None:
    stream = packed_decoder(PLAN, models, batch=2).stream()
    stream.add(mixed_rows()[0])
    stream.turn()
    assert stream._pending[0].outcome.told is None
    stream.close()


@pytest.mark.parametrize(
    ("batch", "used", "width"),
    [
        *((240, 200, 240), (240, 180, 180), (240, 121, 180), (240, 61, 120), (240, 60, 60), (240, 16, 60)),
        *(
            (240, 15, 15),
            (300, 250, 300),
            (100, 70, 100),
            (100, 60, 60),
            (64, 17, 64),
            (64, 16, 16),
            (7, 2, 7),
            (7, 1, 1),
        ),
    ],
)
def test_steps_shrink_as_a_batch_empties(batch: int, used: int, width: int) -> None:
    """By tiles where a step's time goes by its rows, else by quarters, so that graphs are few."""
    nobody: Any = SimpleNamespace(models=(), rows=batch)
    assert Batch(nobody, [], nobody)._width(used) == width
