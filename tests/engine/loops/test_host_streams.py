"""Loops of the host, turn by turn: rows come at any time, may be ended from outside, and have options of their own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.backends.base import TextCompletion
from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Completion, Observer, Row, RowStream
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.text_only import Lanes, TextDecoder
from flowinfer.planning.plan import Step, members
from flowinfer.spec import Decoding, ModelSpec
from tests.engine import plans
from tests.engine.oracle import decode_plainly
from tests.engine.plans import member, mix, one_step

Models = dict[str, HfModel]
OPTIONS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 9),
        "temperature": st.sampled_from((0.0, 0.7, 1.3)),
        "top_p": st.sampled_from((1.0, 0.6)),
        "seed": st.integers(0, 3),
        "stop": st.sampled_from(((), ("e",), ("a", "，"))),
    }
)


def rows_of(step: Step, decodings: Sequence[Decoding | None] = (None,) * 4) -> list[Row]:
    texts = [plans.QUESTIONS[k % len(plans.QUESTIONS)] for k in range(len(decodings))]
    return [
        Row(f"q{k}", step.id, {one.node: text for one in members(step.source)}, decoding=decoding)
        for k, (text, decoding) in enumerate(zip(texts, decodings, strict=True))
    ]


def stream_of(step: Step, models: Models, batch: int = 2) -> RowStream:
    heads = [models[one.model] for one in members(step.source)]
    return RoundDecoder(step, heads, batch=batch, observer=Observer()).stream()


def rest(stream: RowStream) -> list[Completion]:
    """Turn until no row is left."""
    ended: list[Completion] = []
    while stream.num_rows:
        ended += stream.turn()
        if stream.is_waiting:
            stream.wait()
    return ended


def told(ended: Sequence[Completion]) -> dict[str, tuple[object, ...]]:
    results = {done.row.question_id: done.result for done in ended}
    return {key: (one.text, one.tokens, one.finish_reason) for key, one in results.items() if one}


def expected(step: Step, models: Models, rows: Sequence[Row]) -> dict[str, tuple[object, ...]]:
    """Return what the oracle writes for each row alone."""
    heads = [models[one.model] for one in members(step.source)]
    alone = {row.question_id: decode_plainly(step, heads, [row])[0] for row in rows}
    return {key: (one.text, one.tokens, one.finish_reason) for key, one in alone.items()}


@given(st.data())
@settings(max_examples=12)
def test_rows_with_options_of_their_own_share_a_loop_and_write_what_each_writes_alone(
    models: Models, data: st.DataObject
) -> None:
    step = one_step(mix(*data.draw(st.sampled_from(("A", "AB")))), max_tokens=6).steps[0]
    drawn = data.draw(st.lists(st.none() | OPTIONS, min_size=2, max_size=5))
    rows = rows_of(step, [own and step.decoding.model_copy(update=own) for own in drawn])
    stream, ended = stream_of(step, models, data.draw(st.integers(1, 4))), []
    for row in rows:
        stream.add(row)
        for _ in range(data.draw(st.integers(0, 2))):
            ended += stream.turn()
    assert told([*ended, *rest(stream)]) == expected(step, models, rows)


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("gone", [0, 3])
def test_a_row_that_is_ended_from_outside_frees_its_place_and_changes_no_other_text(
    models: Models, turns: int, gone: int
) -> None:
    step = one_step(mix("A", "B"), max_tokens=8).steps[0]
    rows = rows_of(step)
    stream = stream_of(step, models)
    for row in rows:
        stream.add(row)
    ended = [done for _ in range(turns) for done in stream.turn()]
    stream.end(rows[gone])
    assert stream.num_rows == 3
    stream.turn()
    ended += rest(stream)
    kept = [row for row in rows if row is not rows[gone]]
    assert told(ended) == expected(step, models, kept)


def test_a_row_may_come_when_all_others_have_ended(models: Models) -> None:
    step = one_step(member("A"), max_tokens=3).steps[0]
    rows, stream = rows_of(step), stream_of(step, models)
    ended: list[Completion] = []
    for row in rows:
        assert list(stream.turn()) == []
        stream.add(row)
        ended += rest(stream)
    assert told(ended) == expected(step, models, rows)


class Endpoint:
    """A text model that answers when it may."""

    name = "E"

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked: list[Decoding] = []

    def complete(self, prompt: str, decoding: Decoding, *, seed: int) -> TextCompletion:
        self.asked.append(decoding)
        assert self.may_answer.wait(30)
        return TextCompletion(prompt.upper(), 1, "eos", 0.0)

    def close(self) -> None:
        """Nothing to close."""


def text_decoder(step: Step, endpoint: Any, lanes: Lanes | None = None) -> TextDecoder:
    spec = ModelSpec(name="E", ref="e")
    return TextDecoder(step, endpoint, spec, lanes or Lanes(8), observer=Observer(), keeps_thinking=False)


def endpoint_stream(endpoint: Any, rows: int = 2) -> tuple[RowStream, list[Row]]:
    step = one_step(member("E")).steps[0]
    stream = text_decoder(step, endpoint).stream()
    made = rows_of(step, [None] * rows)
    for row in made:
        stream.add(row)
    return stream, made


def test_a_turn_does_not_wait_for_an_endpoint() -> None:
    endpoint = Endpoint()
    stream, rows = endpoint_stream(endpoint)
    assert list(stream.turn()) == []
    assert stream.is_waiting and stream.num_rows == 2
    endpoint.may_answer.set()
    assert {done.row.question_id for done in rest(stream)} == {row.question_id for row in rows}


def test_an_answer_to_a_row_that_was_ended_from_outside_comes_to_nothing() -> None:
    endpoint = Endpoint()
    stream, rows = endpoint_stream(endpoint, 10)  # two more than are asked at once
    stream.turn()
    stream.end(rows[0])
    stream.end(rows[9])
    endpoint.may_answer.set()
    assert stream.num_rows == 8
    assert {done.row.question_id for done in rest(stream)} == {row.question_id for row in rows[1:9]}


def test_an_endpoint_is_asked_with_the_rows_own_options() -> None:
    endpoint, step = Endpoint(), one_step(member("E")).steps[0]
    endpoint.may_answer.set()
    own = step.decoding.model_copy(update={"max_tokens": 3})
    stream = text_decoder(step, endpoint).stream()
    for row in rows_of(step, [own]):
        stream.add(row)
    rest(stream)
    assert endpoint.asked == [own]


def test_steps_that_ask_one_endpoint_share_its_lanes() -> None:
    endpoint, lanes, step = Endpoint(), Lanes(3), one_step(member("E")).steps[0]
    streams = [text_decoder(step, endpoint, lanes).stream() for _ in range(2)]
    for stream in streams:
        for row in rows_of(step, [None] * 2):
            stream.add(row)
        stream.turn()
    assert not lanes.free.acquire(blocking=False)
    endpoint.may_answer.set()
    assert sum(len(rest(stream)) for stream in streams) == 4
    assert [lanes.free.acquire(blocking=False) for _ in range(4)] == [True, True, True, False]
