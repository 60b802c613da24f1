"""Models whose answers never end by themselves, so that every row of a profile has the same number of tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

from flowinfer.backends.base import TextModel, TokenModel
from flowinfer.engine.base import Observer
from flowinfer.engine.models import Loaded, ModelPool
from flowinfer.fusion.vocab import HeadVocabulary
from flowinfer.planning.plan import Plan


class EndlessPool(ModelPool):
    """Load models as `ModelPool` does and hand them out without their end tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._endless: dict[int, Loaded] = {}

    def get(self, plan: Plan, name: str, observer: Observer) -> Loaded:
        """Return the model of that name, without its end tokens where it shows its distributions."""
        model = super().get(plan, name, observer)
        if isinstance(model, TextModel):
            return model
        if id(model) not in self._endless:
            self._endless[id(model)] = endless(model)
        return self._endless[id(model)]

    def keep_only(self, plan: Plan, names: Iterable[str]) -> None:
        """Free every model that none of these names needs."""
        self._endless.clear()
        super().keep_only(plan, names)

    def close(self) -> None:
        """Free all models."""
        self._endless.clear()
        super().close()


def endless(model: TokenModel) -> TokenModel:
    """Return a view of a model, of the same class, whose vocabulary has no end ids."""
    view = copy.copy(model)

    def vocabulary(stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        return replace(model.vocabulary(stop_tokens), eos_ids=frozenset())

    view.vocabulary = vocabulary  # type: ignore[method-assign]  # one object's, so that engines see the class they know
    return view
