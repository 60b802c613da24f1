"""Weights go when a model is closed, though its runner and it hold on to each other."""

from __future__ import annotations

import copy
import weakref

from flowinfer.engine.network.runner import HeadRunner, runner_of
from tests.backends import tiny


def test_a_closed_model_frees_its_weights() -> None:
    model = tiny.model("qwen2", "closed", seed=9)
    model._model = copy.deepcopy(model._model)
    assert isinstance(runner_of(model.transformers_model), HeadRunner)
    weights = weakref.ref(model.transformers_model.model.embed_tokens.weight)
    model.close()
    assert weights() is None
