"""Where weights go: against all assignments that there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flowinfer.planning.assignment import Layers, Lie, Unit, assign, split

GB = 10**9
_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def units_of(sizes: Sequence[int], devices: Sequence[str], declared: Mapping[int, str]) -> list[Unit]:
    """Return units of one step each, which read what they weigh."""
    return [
        Unit((f"m{k}",), f"m{k}", size, {f"s{k}": size}, (declared[k],) if k in declared else tuple(devices))
        for k, size in enumerate(sizes)
    ]


def everything(units: Sequence[Unit], free: Mapping[str, int]) -> dict[str, Lie] | None:
    """Assign all units at once."""
    return assign(units, [[step for unit in units for step in unit.reads]], [units], free)


def loads(units: Sequence[Unit], lies: Mapping[str, Lie]) -> dict[str, int]:
    """Return what each device holds."""
    found: dict[str, int] = {}
    for unit in units:
        for share in lies[unit.key]:
            found[share.device] = found.get(share.device, 0) + int(share.part * unit.size)
    return found


def all_loads(units: Sequence[Unit], free: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield what devices hold in each assignment that fits."""
    for chosen in product(*(unit.devices for unit in units)):
        found: dict[str, int] = {}
        for unit, device in zip(units, chosen, strict=True):
            found[device] = found.get(device, 0) + unit.size
        if all(found.get(device, 0) <= room for device, room in free.items()):
            yield found


@given(_sizes, st.integers(1, 4))
def test_the_busiest_device_has_at_most_four_thirds_of_the_least_there_is(sizes: list[int], num_devices: int) -> None:
    free = {f"cuda:{k}": 10**6 for k in range(num_devices)}
    units = units_of(sizes, list(free), {})
    lies = everything(units, free)
    assert lies is not None
    least = min(max(found.values()) for found in all_loads(units, free))
    assert max(loads(units, lies).values()) * 3 <= least * 4


@given(_sizes, st.lists(st.integers(10, 80), min_size=1, max_size=3), st.data())
def test_what_fits_is_found_within_memory_and_declared_devices_are_kept(
    sizes: list[int], rooms: list[int], data: st.DataObject
) -> None:
    free = {f"cuda:{k}": room for k, room in enumerate(rooms)}
    declared = data.draw(st.dictionaries(st.integers(0, len(sizes) - 1), st.sampled_from(sorted(free)), max_size=2))
    units = units_of(sizes, list(free), declared)
    lies = everything(units, free)
    if lies is None:
        assert not list(all_loads(units, free))
        return
    assert all(used <= free[device] for device, used in loads(units, lies).items())
    assert all(lies[f"m{k}"][0].device == device for k, device in declared.items())


@given(_sizes, st.integers(1, 3), st.randoms())
def test_the_order_of_models_decides_nothing(sizes: list[int], num_devices: int, random: object) -> None:
    free = {f"cuda:{k}": 60 for k in range(num_devices)}
    units = units_of(sizes, list(free), {})
    shuffled = list(units)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert everything(units, free) == everything(shuffled, free)


def test_heads_of_one_step_part_before_stages_do() -> None:
    """Every device is as busy either way; side by side, a step costs what its busiest device reads."""
    heads = [Unit((name,), name, 10, {"s2": 10}, ("cuda:0", "cuda:1")) for name in ("B", "C")]
    stages = [Unit((name,), name, 10, {step: 10}, ("cuda:0", "cuda:1")) for name, step in (("A", "s1"), ("D", "s3"))]
    units = [*stages, *heads]
    lies = assign(units, [["s1", "s2", "s3"]], [units], {"cuda:0": 100, "cuda:1": 100})
    assert lies is not None and lies["B"] != lies["C"]


def test_a_model_of_two_stages_counts_twice() -> None:
    units = [
        Unit(("A",), "A", 10, {"s1": 10, "s3": 10}, ("cuda:0", "cuda:1")),
        Unit(("B",), "B", 10, {"s2": 10}, ("cuda:0", "cuda:1")),
        Unit(("C",), "C", 10, {"s4": 10}, ("cuda:0", "cuda:1")),
    ]
    lies = assign(units, [["s1", "s2", "s3", "s4"]], [units], {"cuda:0": 100, "cuda:1": 100})
    assert lies is not None and lies["B"] == lies["C"] != lies["A"]


def layered(size: int, layers: int, ends: int, devices: Sequence[str], *, is_split: bool = False) -> Unit:
    """Return a unit that can be split."""
    each = (size - ends) // layers
    return Unit(("m",), "m", size, {"s1": size}, tuple(devices), Layers(layers, each, ends), is_split)


@given(
    st.integers(2, 60),
    st.integers(0, 30),
    st.lists(st.integers(5, 200), min_size=2, max_size=4),
)
def test_every_layer_lies_on_one_device_and_none_has_more_than_its_room(
    num_layers: int, ends: int, rooms: list[int]
) -> None:
    free = {f"cuda:{k}": room for k, room in enumerate(rooms)}
    unit = layered(ends + 3 * num_layers, num_layers, ends, list(free), is_split=True)
    lie = split(unit, unit.devices, free)
    assume(lie is not None)
    assert lie is not None
    assert sum(share.layers for share in lie) == num_layers and all(share.layers for share in lie)
    assert sum(share.part for share in lie) == pytest.approx(1)
    assert all(share.part * unit.size <= free[share.device] * (1 + 1e-9) for share in lie)


def test_a_model_that_fits_on_one_device_is_not_split() -> None:
    lies = everything([layered(100, 10, 20, ["cuda:0", "cuda:1"])], {"cuda:0": 90, "cuda:1": 110})
    assert lies is not None and [share.device for share in lies["m"]] == ["cuda:1"]


def test_a_model_that_fits_on_none_lies_on_as_few_as_hold_it() -> None:
    devices = ["cuda:0", "cuda:1", "cuda:2"]
    lies = everything([layered(100, 10, 20, devices)], {"cuda:0": 70, "cuda:1": 30, "cuda:2": 60})
    assert lies is not None and [share.device for share in lies["m"]] == ["cuda:0", "cuda:2"]


def test_layers_go_by_room() -> None:
    lie = split(layered(100, 10, 20, ["a", "b"]), ["a", "b"], {"a": 100, "b": 50})
    assert lie is not None and [share.layers for share in lie] == [6, 4]


def test_a_model_whose_layers_are_not_known_lies_evenly_where_it_is_declared() -> None:
    unit = Unit(("m",), "m", 0, {}, ("cuda:0", "cuda:1"), None, is_split=True)
    lies = assign([unit], [["s1"]], [[unit]], {"cuda:0": 5, "cuda:1": 5})
    assert lies is not None and [(share.layers, share.part) for share in lies["m"]] == [(0, 0.5), (0, 0.5)]
