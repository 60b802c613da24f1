"""A loop whose heads are in several places: whichever they are, texts and what is told stay the same.

One CPU stands in for several devices: each place has states of its own and hears of the others by copies alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowinfer.engine.base import decode
from flowinfer.engine.loops import stream as packed
from flowinfer.engine.loops.mixing import fusing_device
from flowinfer.engine.loops.place import Place
from flowinfer.engine.loops.ways import Way, detours
from flowinfer.planning.plan import members
from tests.engine import plans
from tests.engine.loops.test_decoder import Models, assert_equal, packed_decoder, reference, results, rows_of, told
from tests.engine.loops.test_stream import OPTIONS
from tests.engine.oracle import decode_plainly
from tests.engine.plans import Listener, group, member, mix, one_step


@settings(max_examples=8, deadline=None)
@given(
    names=st.lists(st.sampled_from("ABCW"), min_size=2, max_size=4),
    places=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    options=st.lists(st.sampled_from(OPTIONS), min_size=1, max_size=7),
    batch=st.integers(1, 5),
    num_pages=st.integers(8, 30),
    tile=st.sampled_from([1, 2, 5, 16]),
)
def test_any_heads_at_any_places_write_what_the_oracle_writes(
    models: Models,
    names: Sequence[str],
    places: Sequence[int],
    options: Sequence[dict[str, Any]],
    batch: int,
    num_pages: int,
    tile: int,
) -> None:
    plan = one_step(mix(*names), max_tokens=8)
    step, texts = plan.steps[0], [f"{plans.QUESTIONS[k % 7]} {k}" for k in range(len(options))]
    own = [step.decoding.model_copy(update=option) for option in options]
    rows = [replace(row, decoding=one) for row, one in zip(rows_of(plan, texts), own, strict=True)]
    expected = decode_plainly(step, [models[one.model] for one in members(step.source)], rows)
    placement = places[: len(names)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "tile_for", lambda rows: max(rows, tile))
        decoder = packed_decoder(plan, models, batch=batch, num_pages=num_pages, placement=placement)
        assert len(decoder._lock.places) == len(set(placement))
        found = results(decode(decoder, rows))
    assert {key: told(one) for key, one in found.items()} == {f"q{k}": told(one) for k, one in enumerate(expected)}


@pytest.mark.parametrize("fuse", ["geometric", "unite", "entropy"])
def test_fusers_of_all_kinds_take_what_came(models: Models, fuse: str) -> None:
    plan = one_step(mix("A", "B", "C", fuse=fuse), max_tokens=8)
    assert_equal(plan, models, plans.QUESTIONS, batch=4, placement=[0, 1, 2])


def test_nested_groups_take_what_came(models: Models) -> None:
    nested = group(member("A", weight=0.7), group(member("B"), member("C"), weight=0.3))
    assert_equal(one_step(nested, max_tokens=8), models, plans.QUESTIONS, batch=4, placement=[0, 1, 0])


def test_rows_move_together_in_every_place(models: Models) -> None:
    """Rows end early and at different times, so that indices are exchanged while slots are on their way."""
    plan = one_step(mix("A", "B"), max_tokens=40, stop=("a", "e", " "))
    texts = [f"{text} {k}" for k in range(3) for text in plans.QUESTIONS]
    assert_equal(plan, models, texts, batch=16, placement=[0, 1])


def test_who_listens_hears_the_same_from_any_place(models: Models) -> None:
    plan = one_step(mix("A", "B", "C"), max_tokens=8)
    heard = []
    for placement in ([0, 0, 0], [0, 1, 2]):
        listener = Listener()
        decoder = packed_decoder(plan, models, batch=3, observer=listener, placement=placement)
        list(decode(decoder, rows_of(plan, plans.QUESTIONS)))
        heard.append(listener.events)
    assert heard[0] == heard[1]


def test_all_heads_are_queued_before_anything_travels(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is queued before another device's heads keeps the devices waiting for one another."""
    order: list[str] = []
    feed, send = Place.feed, Way.send

    def note_feed(place: Place, *form: int, **options: bool) -> list[Tensor]:
        order.append("feed")
        return feed(place, *form, **options)

    def note_send(way: Way, states: Tensor, to: Tensor) -> None:
        order.append("send")
        send(way, states, to)

    monkeypatch.setattr(Place, "feed", note_feed)
    monkeypatch.setattr(Way, "send", note_send)
    plan = one_step(mix("A", "B", "C"), max_tokens=1)
    list(decode(packed_decoder(plan, models, batch=1, placement=[0, 1, 2]), rows_of(plan, ["hello"])))
    step = [*["feed"] * 3, *["send"] * 2, *["send"] * 2]  # heads, logits of two places, slots to both
    assert order == step * (len(order) // len(step))


def test_one_place_sends_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(way: Way, states: Tensor, to: Tensor) -> None:
        raise AssertionError("there is nowhere to send anything")

    monkeypatch.setattr(Way, "send", send)
    plan = one_step(mix("A", "B"), max_tokens=4)
    assert len(list(decode(packed_decoder(plan, models, batch=2), rows_of(plan, ["hello"])))) == 1


HERE, THERE = torch.device("cpu"), torch.device("cpu", 0)  # one device, but two by name


@dataclass
class Sized:
    """A model of so many weights on a device."""

    device: torch.device
    size: int

    @property
    def transformers_model(self) -> nn.Module:
        return nn.Linear(self.size, 1, bias=False)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(HERE, 3), (THERE, 4)], THERE),
        ([(HERE, 5), (THERE, 4)], HERE),
        ([(HERE, 3), (THERE, 4), (HERE, 2)], HERE),
        ([(HERE, 4), (THERE, 4)], HERE),
    ],
)
def test_slots_are_chosen_where_most_weights_are_read(
    sizes: Sequence[tuple[torch.device, int]], expected: torch.device
) -> None:
    models: list[Any] = [Sized(device, size) for device, size in sizes]
    assert fusing_device(models) is expected


def test_one_device_needs_no_detour() -> None:
    assert detours([HERE, HERE]) == []


@pytest.mark.parametrize("placement", [[0, 0, 0], [0, 1, 0], [0, 1, 2]])
def test_what_devices_do_adds_up_to_the_step_in_every_place(models: Models, placement: Sequence[int]) -> None:
    """Where slots are chosen there is a choice and nothing to send, elsewhere the other way about."""
    plan = one_step(mix("A", "B", "C"), max_tokens=8)
    decoder = packed_decoder(plan, models, batch=2, placement=placement)
    watch = decoder.watched()
    found = results(decode(decoder, rows_of(plan, plans.QUESTIONS[:2])))
    assert {key: told(one) for key, one in found.items()} == {
        key: told(one) for key, one in reference(plan, models, plans.QUESTIONS[:2]).items()
    }
    devices = watch.devices()
    assert sorted(k for own in devices for k in own.heads) == [0, 1, 2]
    assert len(devices) == len(set(placement))
    assert {len(own.steps) for own in devices} == {decoder.num_steps - 1}
    fusing = [own for own in devices if all(step["fuse"] > 0 for step in own.steps)]
    assert len(fusing) == 1
    for own in devices:
        assert all(step["heads"] > 0 for step in own.steps)
        assert all((step["transfer"] > 0) == (own not in fusing) for step in own.steps)
    watch.forget()
    assert all(not own.steps for own in watch.devices())
