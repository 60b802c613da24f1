"""Loaded models: each distinct set of weights once, however many nodes call it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import cast

from flowinfer.backends.base import Loader, TextModel, TokenModel, lacks
from flowinfer.engine.base import Observer
from flowinfer.engine.faults import device_lost, is_device_lost, unless_lost
from flowinfer.errors import LoadError
from flowinfer.output.secrets import learn_environment
from flowinfer.planning.plan import Placement, Plan, placement_of
from flowinfer.registry import backends, load
from flowinfer.spec import ModelSpec

Loaded = TokenModel | TextModel


class ModelPool:
    """Load models on demand and free them when a wave ends.

    Two names that mean the same weights on the same device share one loaded model.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Loaded] = {}

    def get(self, plan: Plan, name: str, observer: Observer) -> Loaded:
        """Return the model of that name, loading it if need be.

        Raises:
            LoadError, MemoryShort: it cannot be loaded.
        """
        spec, placement = plan.models[name], placement_of(plan, name)
        key = _weights_key(spec, placement)
        if key not in self._loaded:
            observer.model_loading(name, placement.device)
            start = time.perf_counter()
            self._loaded[key] = _load(spec, placement)
            observer.model_loaded(name, time.perf_counter() - start)
            for note in self._loaded[key].notes:
                observer.notice(note)
        return self._loaded[key]

    def is_loaded(self, plan: Plan, name: str) -> bool:
        """Return whether the weights of the model of that name are in memory."""
        return _weights_key(plan.models[name], placement_of(plan, name)) in self._loaded

    def keep_only(self, plan: Plan, names: Iterable[str]) -> None:
        """Free every model that none of these names needs."""
        specs = [(plan.models[name], plan.placements.get(name)) for name in names]
        wanted = {_weights_key(spec, placement) for spec, placement in specs if placement}
        for key in [key for key in self._loaded if key not in wanted]:
            with unless_lost():
                self._loaded.pop(key).close()

    def close(self) -> None:
        """Free all models."""
        while self._loaded:
            with unless_lost():
                self._loaded.popitem()[1].close()


def _load(spec: ModelSpec, placement: Placement) -> Loaded:
    info = backends().get(spec.backend)
    if info is None:
        raise LoadError(f"unknown backend '{spec.backend}'", help=f"known: {', '.join(backends())}")
    learn_environment(os.environ, *([spec.api_key_env] if spec.api_key_env else []))
    loader = cast(Loader, load(info))
    try:
        split = {"split": placement.split} if placement.split else {}
        model = loader(spec, placement.device, placement.dtype, **split)
    except LoadError as error:
        if error.__cause__ is None or not is_device_lost(error.__cause__):
            raise
        raise device_lost(f"{placement.where}, with '{spec.name}' being loaded,", error.__cause__) from error
    except OSError as error:
        reason = error.strerror or error
        raise LoadError(
            f"model '{spec.name}' cannot be loaded from '{spec.ref}': {reason}", help="check ref"
        ) from error
    if missing := lacks(model, TextModel if info.text_only else TokenModel):
        raise LoadError(
            f"backend '{info.name}' ({info.doc}) gives an object without {', '.join(missing)}",
            help="docs/backends.md says what a model must have; see that package's own news for a newer release",
        )
    return model


def _weights_key(spec: ModelSpec, placement: Placement) -> str:
    parts = spec.model_dump(exclude={"name", "think", "device"})
    return f"{sorted(parts.items(), key=str)} at {spec.address} on {placement.where} as {placement.dtype}"
