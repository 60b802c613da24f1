"""Fusers: laws that hold for any distributions, and worked examples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowinfer.fusion.fusers import (
    Drop,
    Entropy,
    Fuser,
    FuserView,
    Gated,
    Geometric,
    Mean,
    Power,
    Sharpen,
    Unite,
    Vote,
    canonical_order,
)
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.vocab import from_json
from tests.fusion import toys

ALL = [
    Mean(),
    Geometric(),
    Power(0.5),
    Power(-2.0),
    Power(8.0),
    Unite(3),
    Gated(0.4),
    Drop(2),
    Entropy(4),
    Vote(),
    Sharpen(),
]


def named(fuser: object) -> str:
    return type(fuser).__name__ + "".join(f" {key}={value}" for key, value in vars(fuser).items())


@cache
def vocabulary(kind: str) -> SharedVocabulary:
    """Return "same": three heads of one vocabulary; "other": byte-level x SentencePiece x a smaller byte-level."""
    level = toys.head(from_json(toys.byte_level().to_str()), [0, 2])
    if kind == "same":
        return SharedVocabulary([level] * 3)
    piece = toys.head(from_json(toys.sentencepiece().to_str()), [2])
    return SharedVocabulary([level, piece, toys.head(from_json(toys.byte_level(320).to_str()), [0])])


def view(kind: str = "same", order: Sequence[int] = (0, 1, 2)) -> FuserView:
    return FuserView(vocabulary(kind), tuple("ABC"[k] for k in order), tuple(order))


def distributions(kind: str = "same", rows: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared = vocabulary(kind)
    return torch.stack(
        [
            shared.lift(k, torch.randn(rows, head.num_columns, generator=generator, dtype=torch.float64) * 4)
            for k, head in enumerate(shared.heads)
        ]
    )


def weights(*values: float) -> Tensor:
    made = torch.tensor(values or (1.0, 1.0, 1.0), dtype=torch.float64)
    return made / made.sum()


def small(*rows: Sequence[float]) -> tuple[Tensor, FuserView]:
    """Return K distributions of one row over keys a, ab, b and the end, and their view."""
    heads = [toys.head([b"a", b"ab", b"b", None], [3])] * len(rows)
    names = tuple("ABCDE"[: len(rows)])
    return (
        torch.tensor(rows, dtype=torch.float64)[:, None, :],
        FuserView(SharedVocabulary(heads), names, tuple(range(len(rows)))),
    )


@pytest.mark.parametrize("kind", ["same", "other"])
@pytest.mark.parametrize("fuser", ALL, ids=named)
@pytest.mark.parametrize("shares", [(), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_fused_rows_are_distributions(fuser: Fuser, kind: str, shares: tuple[float, ...]) -> None:
    fused = fuser(distributions(kind), weights(*shares), view(kind))
    assert fused.shape == (4, vocabulary(kind).size)
    assert (fused >= 0).all()
    assert fused.sum(-1).tolist() == pytest.approx([1.0] * 4, abs=1e-9)


@pytest.mark.parametrize("fuser", ALL, ids=named)
def test_equal_sources_give_their_own_favourite(fuser: Fuser) -> None:
    one = distributions()[:1].expand(3, -1, -1)
    assert torch.equal(fuser(one, weights(), view()).argmax(-1), one[0].argmax(-1))


@pytest.mark.parametrize(
    "fuser", [Mean(), Geometric(), Power(0.5), Power(-2.0), Gated(0.4), Drop(), Entropy()], ids=named
)
def test_equal_sources_give_their_own_distribution(fuser: Fuser) -> None:
    one = distributions()[:1].expand(3, -1, -1)
    torch.testing.assert_close(fuser(one, weights(0.2, 0.3, 0.5), view()), one[0], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("kind", ["same", "other"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("fuser", [fuser for fuser in ALL if not isinstance(fuser, Gated)], ids=named)
def test_permuted_sources_in_canonical_order_change_no_bit(fuser: Fuser, order: tuple[int, ...], kind: str) -> None:
    """The engine sorts sources before it calls a fuser, so that float sums come out in one order."""
    probs, shares = distributions(kind).float(), [0.5, 0.2, 0.3]
    names = ["ABC"[k] for k in order]
    back = canonical_order(names, [shares[k] for k in order], names)
    final = [order[k] for k in back]
    fused = fuser(probs[final], weights(*(shares[k] for k in final)).float(), view(kind, final))
    assert torch.equal(fused, fuser(probs, weights(*shares).float(), view(kind)))


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("fuser", ALL, ids=named)
def test_permuted_sources_without_sorting_change_only_rounding(fuser: Fuser, order: tuple[int, ...]) -> None:
    probs, shares = distributions("other"), [0.5, 0.2, 0.3]
    if isinstance(fuser, Gated):
        fuser = Gated(fuser.tau, primary="B")
    fused = fuser(probs[list(order)], weights(*(shares[k] for k in order)), view("other", order))
    torch.testing.assert_close(fused, fuser(probs, weights(*shares), view("other")), atol=1e-12, rtol=1e-9)


def test_canonical_order_is_by_name_then_weight_then_tie() -> None:
    names, shares, ties = ["B", "A", "A", "A"], [0.1, 0.3, 0.2, 0.2], ["", "", "y", "x"]
    assert canonical_order(names, shares, ties) == [3, 2, 1, 0]


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.integers(0, 50))
def test_mean_of_any_weights_sums_to_1(shares: list[float], seed: int) -> None:
    fused = Mean()(distributions("other", rows=1, seed=seed), weights(*shares), view("other"))
    assert float(fused.sum()) == pytest.approx(1.0, abs=1e-9)


def test_mean_is_equation_7() -> None:
    probs, group = small([0.5, 0.2, 0.2, 0.1], [0.1, 0.0, 0.8, 0.1])
    assert Mean()(probs, weights(1, 1), group)[0].tolist() == pytest.approx([0.3, 0.1, 0.5, 0.1])


def test_mean_with_all_weight_on_one_source_is_that_source() -> None:
    probs = distributions("other")
    assert torch.equal(Mean()(probs, weights(1, 0, 0), view("other")), probs[0])


def test_mean_of_halves_of_one_source_is_the_source_with_full_weight() -> None:
    probs = distributions()
    doubled = probs[[0, 0, 1, 2]]
    four = FuserView(vocabulary("same"), ("A", "A", "B", "C"), (0, 0, 1, 2))
    torch.testing.assert_close(
        Mean()(doubled, weights(0.25, 0.25, 0.3, 0.2), four), Mean()(probs, weights(0.5, 0.3, 0.2), view())
    )


def test_nested_means_multiply_their_shares() -> None:
    probs, group = distributions(), view()
    inner = Mean()(probs[1:], weights(0.25, 0.75), group)
    nested = Mean()(torch.stack([probs[0], inner]), weights(0.4, 0.6), group)
    torch.testing.assert_close(nested, Mean()(probs, weights(0.4, 0.15, 0.45), group))


def test_power_of_1_is_the_mean() -> None:
    probs = distributions("other")
    torch.testing.assert_close(
        Power(1.0)(probs, weights(0.5, 0.3, 0.2), view("other")), Mean()(probs, weights(0.5, 0.3, 0.2), view("other"))
    )


@pytest.mark.parametrize("a", [1e-4, -1e-4])
def test_power_near_0_is_the_geometric_mean(a: float) -> None:
    probs = distributions("other")
    torch.testing.assert_close(
        Power(a)(probs, weights(), view("other")), Geometric()(probs, weights(), view("other")), atol=1e-3, rtol=0.0
    )


def test_power_of_a_large_exponent_is_the_maximum() -> None:
    probs, group = small([0.9, 0.0, 0.1, 0.0], [0.0, 0.3, 0.6, 0.1])
    most = torch.tensor([0.9, 0.3, 0.6, 0.1], dtype=torch.float64)
    torch.testing.assert_close(Power(64.0)(probs, weights(1, 1), group)[0], most / most.sum(), atol=1e-2, rtol=0.0)


def test_power_of_a_large_negative_exponent_is_the_minimum() -> None:
    probs, group = small([0.8, 0.05, 0.1, 0.05], [0.1, 0.2, 0.6, 0.1])
    least = torch.tensor([0.1, 0.05, 0.1, 0.05], dtype=torch.float64)
    torch.testing.assert_close(Power(-64.0)(probs, weights(1, 1), group)[0], least / least.sum(), atol=1e-2, rtol=0.0)


def test_power_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="the exponent a of fuse=power must not be 0; use fuse=geometric"):
        Power(0)


def test_geometric_mean_by_hand() -> None:
    probs, group = small([0.64, 0.04, 0.16, 0.16], [0.04, 0.64, 0.16, 0.16])
    assert Geometric()(probs, weights(1, 1), group)[0].tolist() == pytest.approx([0.25, 0.25, 0.25, 0.25])


def test_missing_key_counts_with_the_first_token_it_would_be_written_with() -> None:
    """Head 2 has no 'ab': its 'ab' is the probability of 'a'."""
    heads = [toys.head([b"a", b"ab", b"b"]), toys.head([b"b", b"a"])]
    group = FuserView(SharedVocabulary(heads), ("A", "B"), (0, 1))
    probs = torch.tensor([[[0.2, 0.5, 0.3, 0.0]], [[0.6, 0.0, 0.4, 0.0]]])
    assert group.filled(probs)[:, 0].tolist() == [
        pytest.approx([0.2, 0.5, 0.3, 0.0]),
        pytest.approx([0.6, 0.6, 0.4, 0.0]),
    ]


def test_mixtures_inside_a_group_are_not_filled() -> None:
    group = FuserView(vocabulary("other"), ("A", "(B|C)"), (0, None))
    probs = distributions("other")[:2]
    assert torch.equal(group.filled(probs)[1], probs[1])


def test_unite_over_everything_with_one_vocabulary_is_the_mean() -> None:
    probs = distributions()
    torch.testing.assert_close(
        Unite(10**6)(probs, weights(0.5, 0.3, 0.2), view()), Mean()(probs, weights(0.5, 0.3, 0.2), view())
    )


def test_unite_gives_nothing_to_keys_outside_the_union() -> None:
    probs, group = small([0.5, 0.3, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1])
    assert Unite(1)(probs, weights(1, 1), group)[0].tolist() == pytest.approx(
        [(5 / 8 + 1 / 6) / 2, (3 / 8 + 5 / 6) / 2, 0, 0]
    )


@pytest.mark.parametrize("primary", ["A", "B", "C"])
def test_gate_at_0_is_the_primary_alone(primary: str) -> None:
    probs = distributions("other")
    assert torch.equal(Gated(0.0, primary)(probs, weights(), view("other")), probs["ABC".index(primary)])


def test_gate_above_1_is_the_mean() -> None:
    probs = distributions("other")
    assert torch.equal(Gated(1.1, "B")(probs, weights(), view("other")), Mean()(probs, weights(), view("other")))


def test_gate_decides_row_by_row() -> None:
    sure, group = small([0.9, 0.0, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0])
    unsure, _ = small([0.4, 0.3, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0])
    fused = Gated(0.5, "A")(torch.cat([sure, unsure], dim=1), weights(1, 1), group)
    assert fused.argmax(-1).tolist() == [0, 2]


def test_dropped_is_the_source_whose_favourite_nobody_supports() -> None:
    probs, group = small([0.6, 0.4, 0.0, 0.0], [0.5, 0.4, 0.1, 0.0], [0.0, 0.1, 0.9, 0.0])
    assert Drop(1)(probs, weights(1, 1, 1), group)[0].tolist() == pytest.approx([0.55, 0.4, 0.05, 0.0])


def test_all_count_where_nobody_is_supported() -> None:
    probs, group = small([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    assert Drop(1)(probs, weights(1, 1), group)[0].tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0])


def test_all_count_where_only_sources_of_no_weight_are_supported() -> None:
    """Such shares would be 0/0, and the fused row NaN."""
    probs, group = small([0.1, 0.5, 0.4, 0.0], [0.5, 0.0, 0.3, 0.2], [0.6, 0.0, 0.3, 0.1])
    assert Drop(1)(probs, weights(1, 0, 0), group)[0].tolist() == pytest.approx([0.1, 0.5, 0.4, 0.0])


def test_a_source_of_one_stays_as_it_is() -> None:
    probs, group = small([0.1, 0.5, 0.4, 0.0])
    assert torch.equal(Drop()(probs, weights(1), group), probs[0])


def test_certain_source_outweighs_an_uncertain_one() -> None:
    probs, group = small([0.97, 0.01, 0.01, 0.01], [0.2, 0.3, 0.3, 0.2])
    fused = Entropy()(probs, weights(1, 1), group)[0]
    entropy = -(probs[:, 0] * probs[:, 0].log()).sum(-1)
    shares = (1 / entropy) / (1 / entropy).sum()
    torch.testing.assert_close(fused, shares @ probs[:, 0])


def test_majority_beats_a_larger_mean() -> None:
    probs, group = small([0.4, 0.3, 0.3, 0.0], [0.4, 0.3, 0.3, 0.0], [0.0, 1.0, 0.0, 0.0])
    assert Mean()(probs, weights(), group).argmax() == 1
    assert Vote()(probs, weights(), group).argmax() == 0


def test_mean_decides_between_equal_numbers_of_votes() -> None:
    probs, group = small([0.6, 0.0, 0.4, 0.0], [0.0, 0.9, 0.1, 0.0])
    assert Vote()(probs, weights(1, 1), group).argmax() == 1


def test_a_short_key_inherits_the_mass_of_longer_candidates() -> None:
    """'So' and 'Sofia' split one wish; together they beat 'b'."""
    probs, group = small([0.3, 0.3, 0.4, 0.0])
    assert Mean()(probs, weights(1), group).argmax() == 2
    assert Sharpen()(probs, weights(1), group).argmax() == 0


@pytest.mark.parametrize(("floor", "winner"), [(0.1, 0), (0.35, 2)])
def test_only_keys_above_the_floor_inherit(floor: float, winner: int) -> None:
    probs, group = small([0.3, 0.3, 0.4, 0.0])
    assert int(Sharpen(floor=floor)(probs, weights(1), group).argmax()) == winner


def test_a_lone_space_inherits_nothing() -> None:
    heads = [toys.head([b" ", b" a", b"b"])]
    group = FuserView(SharedVocabulary(heads), ("A",), (0,))
    probs = torch.tensor([[[0.3, 0.3, 0.4, 0.0]]])
    assert Sharpen()(probs, weights(1), group).argmax() == 2


@pytest.mark.parametrize("fuser", [Geometric(), Unite(5), Power(-1.0)], ids=named)
def test_heads_that_fill_missing_keys_work_beside_a_character_head(fuser: Any) -> None:
    """Some of its keys start, in a byte-level head's ids, with a byte that the character head cannot write."""
    character = toys.head(["ö".encode(), b"a", b"b", None], [3])
    level = toys.head(from_json(toys.byte_level().to_str()), [0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = FuserView(SharedVocabulary([character, level]), ("A", "B"), (0, 1))
    shared = group.vocabulary
    probs = torch.stack([shared.lift(k, torch.zeros(1, head.num_columns)) for k, head in enumerate(shared.heads)])
    assert float(fuser(probs, weights(1, 1).float(), group).sum()) == pytest.approx(1.0, abs=1e-5)
