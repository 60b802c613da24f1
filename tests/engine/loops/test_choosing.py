"""Choosing among likely slots only: what looking at all of them gives, for heads of large vocabularies on a CPU."""

from __future__ import annotations

import pytest
import torch

from flowinfer.engine.loops import choosing
from flowinfer.engine.loops.choosing import Choice, choose
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.planning.plan import members
from tests.backends import tiny
from tests.engine.loops.test_torch_choice import SOURCES
from tests.engine.plans import one_step

SHARPNESS = (0.0, 1.0, 5.0, 30.0)
"""From heads that know nothing to heads that are sure."""
STATES = torch.tensor([0, 0, 1, 2])
"""Two texts between characters, two within one."""


def choices(source: str, sharpness: float, seed: int) -> tuple[Choice, Choice]:
    """Return what is chosen behind random logits among likely slots, and among all."""
    models = {"A": tiny.model("qwen2", "A"), "B": tiny.model("llama", "B", seed=1)}
    step = one_step(SOURCES[source]).steps[0]
    mixer = Mixer(step, [models[one.model] for one in members(step.source)])
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(lift.banned) for lift in mixer.vocabulary.lifts]
    logits = [sharpness * torch.randn(len(STATES), size, generator=generator) for size in sizes]
    found = []
    for skips in (True, False):
        mixer.skips_unlikely = skips
        found.append(choose(mixer, logits, STATES, (), None, is_told=True))
    return found[0], found[1]


@pytest.mark.parametrize("source", ["one", "mean", "weighted"])
@pytest.mark.parametrize("sharpness", SHARPNESS)
def test_likely_slots_give_what_all_give(source: str, sharpness: float) -> None:
    for seed in range(4):
        ours, whole = choices(source, sharpness, seed)
        for name in ("slots", "values", "favourites"):
            assert torch.equal(getattr(ours, name), getattr(whole, name)), name
        assert (ours.leads - whole.leads).abs().max() <= 2 * choosing.LEAST  # of two columns for a slot
        assert ours.told is not None and whole.told is not None
        assert torch.equal(ours.told.of_slots, whole.told.of_slots)


def test_rows_that_none_of_the_likely_slots_may_follow_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a character only few slots are allowed, and no head need want any of them."""
    asked: list[bool] = []
    inner = choosing._likely

    def likely(*given: object, **options: object) -> Choice | None:
        found = inner(*given, **options)  # type: ignore[arg-type]
        asked.append(found is None)
        return found

    monkeypatch.setattr(choosing, "_likely", likely)
    for sharpness in (300.0, float("nan")):  # and nothing is settled by what is no number
        ours, whole = choices("mean", sharpness, 0)
        assert asked.pop() and torch.equal(ours.slots, whole.slots)
