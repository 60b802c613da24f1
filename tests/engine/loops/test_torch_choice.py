"""The choice by tensor operations writes the reference engine's texts, and serves where the kernels cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.engine.loops.fusing import TorchChoice, fused_choice
from flowinfer.engine.loops.mixing import FlatMean, Mixer
from flowinfer.engine.loops.sampling import draws_of, row_key
from flowinfer.planning.plan import Source, members
from tests.backends import tiny
from tests.engine.plans import QUESTIONS, answers, group, member, mix, one_step

SOURCES: dict[str, Source] = {
    "one": member("A"),
    "mean": mix("A", "B"),
    "weighted": group(member("A", weight=0.3, node="n1"), member("B", weight=0.7, node="n2")),
    "geometric": mix("A", "B", fuse="geometric"),
    "nested": group(member("A", node="n1", weight=0.5), group(member("B", node="n2"), weight=0.5)),
}


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {"A": tiny.model("qwen2", "A"), "B": tiny.model("llama", "B", seed=1)}


def mixer(source: Source, models: dict[str, HfModel], **decoding: Any) -> Mixer:
    step = one_step(source, **decoding).steps[0]
    return Mixer(step, [models[one.model] for one in members(source)])


def written(source: Source, models: dict[str, HfModel], **options: Any) -> list[str]:
    """Decode all questions in step, each head reading the slots' own ids."""
    step = one_step(source, max_tokens=12, **options).steps[0]
    own = [models[one.model] for one in members(source)]
    mixing = Mixer(step, own)
    choose = fused_choice(mixing, len(QUESTIONS), torch.float32)
    sessions = [model.open() for model in own]
    handles = [
        session.add([model.prompt(text).ids for text in QUESTIONS])
        for model, session in zip(own, sessions, strict=True)
    ]
    rows = len(QUESTIONS)
    keys = [row_key(step.decoding, f"q{k}", "s1") for k in range(rows)]
    texts, states, is_live = [b""] * rows, [0] * rows, [True] * rows
    for index in range(12):
        logits = [session.logits(mine) for session, mine in zip(sessions, handles, strict=True)]
        draws = draws_of([step.decoding] * rows, keys, [index] * rows, torch.device("cpu"))
        slots = choose(logits, torch.tensor(states), draws).slots.tolist()
        for row, slot in enumerate(slots):
            is_live[row] &= slot != mixing.vocabulary.eos_slot
            if is_live[row]:
                texts[row] += mixing.vocabulary.keys[slot]
                states[row] = mixing.vocabulary.guard.advance(states[row], slot)
        for k, (session, mine) in enumerate(zip(sessions, handles, strict=True)):
            session.feed({mine[r]: mixing.vocabulary.ids(k, slots[r]) for r in range(rows) if is_live[r]})
        if not any(is_live):
            break
    return [text.decode(errors="ignore") for text in texts]


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("options", [{}, {"temperature": 0.9}, {"temperature": 0.9, "top_p": 0.7}], ids=str)
def test_texts_are_those_of_the_reference_engine(
    models: dict[str, HfModel], source: str, options: dict[str, Any]
) -> None:
    plan = one_step(SOURCES[source], max_tokens=12, **options)
    assert written(SOURCES[source], models, **options) == answers(plan, models)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("one", FlatMean((0,), (1.0,))),
        ("weighted", FlatMean((0, 1), (0.3, 0.7))),
        ("geometric", None),
        ("nested", None),
    ],
)
def test_a_flat_mean_is_known_as_such(models: dict[str, HfModel], source: str, wanted: FlatMean | None) -> None:
    assert mixer(SOURCES[source], models).flat_mean == wanted


def test_a_cpu_gets_tensor_operations(models: dict[str, HfModel]) -> None:
    one = mixer(SOURCES["mean"], models)
    assert isinstance(fused_choice(one, 4, torch.float32), TorchChoice)
