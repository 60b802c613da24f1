"""The choice from all heads' logits: Triton's kernels (compiled on CUDA devices, else interpreted) beside torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.loops import triton_fusing
from flowinfer.engine.loops.fusing import Choice, FusedChoice
from flowinfer.engine.loops.sampling import Chosen, Draws, choose_slots, draws_of, row_key
from flowinfer.fusion.fusers import mean
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.vocab import HeadVocabulary, from_json
from flowinfer.spec import Decoding
from tests.fusion import toys

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # Triton's interpreter
    *([pytest.mark.gpu] if CUDA else []),
]
DEVICE = "cuda" if CUDA else "cpu"
ROWS = 3
WARM, CUT = {"temperature": 0.8}, {"temperature": 1.3, "top_p": 0.7}


def level() -> HeadVocabulary:
    """Two end tokens, padding columns behind the tokens."""
    return toys.head(from_json(toys.byte_level().to_str()), [0, 2], 431)


def piece() -> HeadVocabulary:
    """Bytes beside characters, so that some keys have two ids."""
    return toys.head(from_json(toys.sentencepiece().to_str()), [2])


def repeats() -> HeadVocabulary:
    """One key with five ids, three end tokens."""
    first = [b"a", None, b"hello", b"a", b"\xe4", None, b"a", b"a", None, b"\xb8", b"\xad", b"b"]
    return toys.head([*first, *(bytes([byte]) for byte in range(256))], [1, 5, 8])


GROUPS: dict[str, list[HeadVocabulary]] = {
    "one": [level()],
    "same": [level(), level()],
    "two": [level(), piece()],
    "three": [piece(), repeats(), level()],
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_fusing, "BLOCK", 64)
    monkeypatch.setattr(triton_fusing, "PART", 128)


class Case:
    """Random logits for a group, the kernels' choice and that of torch."""

    def __init__(
        self,
        group: str = "three",
        *,
        dtype: torch.dtype = torch.float32,
        eos: Literal["sum", "max"] = "sum",
        is_strict: bool = True,
        fill: Callable[[Tensor], Tensor] = lambda noise: 3 * noise,
        rows: int = ROWS,
        options: Sequence[Mapping[str, float]] = ({},),
    ) -> None:
        heads = GROUPS[group]
        self.vocabulary = SharedVocabulary(heads, eos=eos, device=DEVICE, is_strict=is_strict)
        self.order = list(range(len(heads)))[::-1]
        raw = torch.tensor([0.5, 0.2, 0.3][: len(heads)], dtype=torch.float64)
        self.weights = (raw / raw.sum()).tolist()
        self.decodings = [Decoding(**options[k % len(options)]) for k in range(rows)]  # type: ignore[arg-type]
        self.fused = FusedChoice(self.vocabulary, self.weights, self.order, rows, dtype)
        generator = torch.Generator().manual_seed(7)
        shapes = [(rows, head.num_columns) for head in heads]
        self.logits = [fill(torch.randn(shape, generator=generator)).to(DEVICE, dtype) for shape in shapes]
        self.states = torch.tensor([0, 1, 2, 5, 7, 0, 3][:rows] if is_strict else [0] * rows, device=DEVICE)
        self.keys = [row_key(Decoding(), f"q{k}", "s1") for k in range(rows)]
        self.indices = list(range(rows))

    def draws(self, rows: Sequence[int]) -> Draws | None:
        decodings, keys, indices = ([own[k] for k in rows] for own in (self.decodings, self.keys, self.indices))
        return draws_of(decodings, keys, indices, self.states.device)  # type: ignore[arg-type]  # of one kind each

    def choose(self, rows: Sequence[int] | None = None, *, num_tops: int = 0) -> Choice:
        """What the kernels choose."""
        rows = range(len(self.states)) if rows is None else rows
        logits = [own[list(rows)] for own in self.logits]
        return self.fused(logits, self.states[list(rows)], self.draws(rows), is_told=True, num_tops=num_tops)

    def best(self) -> Chosen:
        """What torch chooses."""
        return choose_slots(self.mixed(), self.vocabulary.guard.mask(self.states), self.draws(range(len(self.states))))

    def probs(self) -> list[Tensor]:
        return [self.vocabulary.lift(k, own) for k, own in enumerate(self.logits)]

    def mixed(self) -> Tensor:
        probs = self.probs()
        return mean([probs[k] for k in self.order], torch.tensor(self.weights, dtype=torch.float32, device=DEVICE))


def assert_same(case: Case) -> None:
    choice, best, probs = case.choose(), case.best(), case.probs()
    at = best.slots[:, None]
    assert choice.slots.tolist() == best.slots.tolist()
    torch.testing.assert_close(choice.leads, best.leads, atol=1e-6, rtol=0)
    torch.testing.assert_close(choice.values, case.mixed().gather(-1, at)[:, 0], atol=1e-6, rtol=1e-5)
    assert choice.favourites.tolist() == [own.argmax(-1).tolist() for own in probs]
    assert choice.told is not None
    torch.testing.assert_close(
        choice.told.of_favourites, torch.stack([own.amax(-1) for own in probs]), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        choice.told.of_slots, torch.stack([own.gather(-1, at)[:, 0] for own in probs]), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("options", [[{}], [{}, WARM, CUT]], ids=str)
def test_the_most_probable_slots_are_those_of_torch(options: Sequence[Mapping[str, float]]) -> None:
    case = Case("three", options=options)
    choice, plain = case.choose(num_tops=5), case.choose()
    assert choice.tops is not None
    values, slots = case.mixed().masked_fill(~case.vocabulary.guard.mask(case.states), -1.0).topk(5)
    assert choice.tops.slots.tolist() == slots.tolist()
    torch.testing.assert_close(choice.tops.values, values, atol=1e-6, rtol=1e-5)
    assert choice.slots.tolist() == plain.slots.tolist()


@pytest.mark.parametrize("group", list(GROUPS))
@pytest.mark.parametrize("options", [[{}], [WARM], [{}, WARM, CUT]], ids=str)
def test_kernels_choose_and_tell_as_torch_does(group: str, options: Sequence[Mapping[str, float]]) -> None:
    assert_same(Case(group, options=options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_read_half_precision(dtype: torch.dtype) -> None:
    assert_same(Case(dtype=dtype))


@pytest.mark.parametrize("group", ["two", "three"])
def test_end_tokens_are_pooled_by_the_largest(group: str) -> None:
    assert_same(Case(group, eos="max"))


def test_without_the_guard_all_slots_are_allowed() -> None:
    assert_same(Case(is_strict=False))


@pytest.mark.parametrize("eos", ["sum", "max"])
def test_the_pooled_end_wins_where_its_tokens_together_lead(eos: Literal["sum", "max"]) -> None:
    case = Case("one", eos=eos, fill=torch.zeros_like)
    case.logits[0][:, [0, 2]] = 8.0
    letter = case.vocabulary.heads[0].tokens.id_of[b"a"]
    case.logits[0][:, letter] = 8.3  # ahead of each alone, behind both together
    case.states.zero_()
    assert_same(case)
    assert (case.choose().slots == case.vocabulary.eos_slot).all() == (eos == "sum")


def test_ids_with_equal_bytes_add_in_the_kernels() -> None:
    case = Case("three", fill=torch.zeros_like)
    case.states.zero_()
    case.logits[1][:, [0, 3, 6, 7, 12 + ord("a")]] = 5.0
    case.logits[1][:, 2] = 6.0
    assert_same(case)
    assert (case.choose().slots == case.vocabulary.keys.index(b"a")).all()


def test_equal_slots_go_to_the_smallest() -> None:
    case = Case("same", fill=torch.zeros_like)
    case.states.zero_()
    for view in case.logits:
        view[:, [0, 2]] = -9.0  # the end
    assert_same(case)
    assert case.choose().slots.tolist() == [0] * ROWS
    assert case.choose().leads.tolist() == [0.0] * ROWS


def test_coarse_logits_tie_as_in_torch() -> None:
    assert_same(Case("same", fill=lambda noise: noise.round().clamp(-1, 1)))


def test_banned_columns_do_not_count() -> None:
    case = Case()
    before = case.choose().values.clone()
    for view, lift in zip(case.logits, case.vocabulary.lifts, strict=True):
        view[:, lift.banned] = 60.0
    assert_same(case)
    assert torch.equal(case.choose().values, before)


@pytest.mark.parametrize("options", [{}, WARM], ids=str)
def test_extreme_logits_are_no_trouble(options: Mapping[str, float]) -> None:
    assert_same(Case(fill=lambda noise: 1e4 * noise, options=[options]))
    assert_same(Case(fill=lambda noise: torch.where(noise > 0.5, noise, -torch.inf), options=[options]))


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 3], [5, 4], [1, 2, 6]], ids=str)
def test_a_row_chooses_alike_in_every_batch_whatever_the_others_options_are(rows: list[int]) -> None:
    case = Case(options=[{}, WARM, CUT], rows=7)
    together = [part.clone() for part in parts(case.choose())]
    for own, whole in zip(parts(case.choose(rows)), together, strict=True):
        assert own.tolist() == whole[..., rows].tolist()


def parts(choice: Choice) -> list[Tensor]:
    assert choice.told is not None
    return [choice.slots, choice.values, choice.leads, choice.favourites, choice.told.of_slots]


@pytest.mark.parametrize("temperature", [1.3, 1e6])
def test_many_draws_follow_the_same_noise(temperature: float) -> None:
    """At the higher temperature nothing but the noise decides."""
    case = Case("two", options=[{"temperature": temperature}])
    for index in (1, 2**20, 2**31 - 1):
        case.indices = [index] * ROWS
        assert_same(case)


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_kernels_run_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # tiles as they are
    case = Case(dtype=torch.bfloat16, options=[{}, WARM, CUT])
    draws = case.draws(range(ROWS))
    case.fused(case.logits, case.states, draws)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        choice = case.fused(case.logits, case.states, draws)
    for own in case.logits:
        own.copy_(torch.randn(own.shape))
    graph.replay()
    assert choice.slots.tolist() == case.best().slots.tolist()
