"""Loaded models: each distinct set of weights once, however many nodes call it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import cast

from flowinfer.backends.base import Loader, TextModel, TokenModel, lacks
from flowinfer.engine.base import Observer
from flowinfer.engine.faults import device_lost, unless_lost
from flowinfer.engine.network.beside import keep_compiled
from flowinfer.errors import HeadLoading, LoadError, is_device_lost
from flowinfer.output.secrets import learn_environment
from flowinfer.planning.plan import Placement, Plan, placement_of
from flowinfer.registry import BackendInfo, backends, load
from flowinfer.spec import ModelSpec
from flowinfer.startup import NEEDLESS, STARTUP

Loaded = TokenModel | TextModel
_AGAIN_SECONDS = 0.5
"""How often a head elsewhere is asked whether it has loaded its model."""


class ModelPool:
    """Load models on demand and free them when a wave ends.

    Two names that mean the same weights on the same device share one loaded model.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Loaded] = {}

    def get(self, plan: Plan, name: str, observer: Observer) -> Loaded:
        """Return the model of that name, loading it if need be.

        Raises:
            LoadError, MemoryShort: it cannot be loaded, or need not be any more.
        """
        spec, placement = plan.models[name], placement_of(plan, name)
        key = _weights_key(spec, placement)
        if key not in self._loaded:
            if observer.is_leaving:
                raise LoadError(f"{name} is not loaded any more: nobody waits for it")
            observer.model_loading(name, str(spec.base_url) if spec.backend == "remote" else placement.device)
            start = time.perf_counter()
            try:
                self._loaded[key] = self._load_when_there(spec, placement, observer)
            except BaseException:
                observer.model_failed(name)
                raise
            observer.model_loaded(name, time.perf_counter() - start)
            for note in self._loaded[key].notes:
                observer.notice(note)
        return self._loaded[key]

    def begin(self, plan: Plan, names: Iterable[str]) -> None:
        """Begin to read the files of models that will be wanted, while Python imports what runs them.

        Memory may not be measured before `settle`.
        """
        from flowinfer.backends import weights
        from flowinfer.engine.network import llama_ahead

        wanted = {name: (plan.models[name], placement_of(plan, name)) for name in names}
        missing = {
            name: (spec, placement.device)
            for name, (spec, placement) in wanted.items()
            if spec.backend == "hf" and not placement.split and _weights_key(spec, placement) not in self._loaded
        }
        if missing:
            weights.begin(missing)
            llama_ahead.begin(missing.values())
            _loader(backends()["hf"])
            from flowinfer.backends import hf

            hf.begin([spec for spec, _ in missing.values()])

    def settle(self) -> None:
        """Wait until no weights are being read."""
        from flowinfer.backends import weights

        weights.settle()

    def is_loaded(self, plan: Plan, name: str) -> bool:
        """Return whether the weights of the model of that name are in memory, or have their place there."""
        from flowinfer.backends import weights

        spec, placement = plan.models[name], placement_of(plan, name)
        return _weights_key(spec, placement) in self._loaded or weights.is_begun(spec, placement.device)

    def peek(self, plan: Plan, name: str) -> Loaded | None:
        """Return the model of that name if it is loaded."""
        placement = plan.placements.get(name)
        return self._loaded.get(_weights_key(plan.models[name], placement)) if placement else None

    def bytes_read(self, plan: Plan, name: str) -> int:
        """Return how many bytes of a model's weights are in memory; where a library reads them, all or none."""
        if self.peek(plan, name) is not None:
            return plan.needs[name].weight_bytes or 0
        weights = sys.modules.get("flowinfer.backends.weights")
        num_read = getattr(weights, "num_read", None)  # none while another thread imports it
        return num_read(plan.models[name], placement_of(plan, name).device) if num_read else 0

    def keep_only(self, plan: Plan, names: Iterable[str]) -> None:
        """Free every model that none of these names needs."""
        self.keep_all_of((plan, name) for name in names)

    def keep_all_of(self, wanted: Iterable[tuple[Plan, str]]) -> None:
        """Free every model that is none of these: names, each of a plan."""
        specs = [(plan.models[name], plan.placements.get(name)) for plan, name in wanted]
        kept = {_weights_key(spec, placement) for spec, placement in specs if placement}
        for key in [key for key in self._loaded if key not in kept]:
            with unless_lost():
                self._loaded.pop(key).close()

    def _load_when_there(self, spec: ModelSpec, placement: Placement, observer: Observer) -> Loaded:
        """Return a model; one that another process still loads, as soon as it has."""
        has_told = False
        while True:
            try:
                return _load(spec, placement)
            except HeadLoading as error:
                if not has_told:
                    observer.notice(f"{error.message}: waiting for it")
                has_told = True
                if observer.is_leaving:
                    raise
                time.sleep(_AGAIN_SECONDS)

    def close(self) -> None:
        """Free all models."""
        weights, hf = (sys.modules.get(f"flowinfer.backends.{name}") for name in ("weights", "hf"))
        for begun in filter(None, (weights, hf)):
            begun.drop()
        while self._loaded:
            with unless_lost():
                self._loaded.popitem()[1].close()


def _load(spec: ModelSpec, placement: Placement) -> Loaded:
    info = backends().get(spec.backend)
    if info is None:
        raise LoadError(f"unknown backend '{spec.backend}'", help=f"known: {', '.join(backends())}")
    learn_environment(os.environ, *([spec.api_key_env] if spec.api_key_env else []))
    loader = _loader(info)
    try:
        split = {"split": placement.split} if placement.split else {}
        model = loader(spec, placement.device, placement.dtype, **split)
    except LoadError as error:
        if error.__cause__ is None or not is_device_lost(error.__cause__):
            raise
        raise device_lost(placement.where, error.__cause__, when=f"while '{spec.name}' was loaded") from error
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


def _loader(info: BackendInfo) -> Loader:
    """Import a backend."""
    keep_compiled()
    with STARTUP.waiting_for("import", f"backend {info.name}"), STARTUP.without(*NEEDLESS):
        return cast(Loader, load(info))


def _weights_key(spec: ModelSpec, placement: Placement) -> str:
    parts = spec.model_dump(exclude={"name", "think", "device"})
    return f"{sorted(parts.items(), key=str)} at {spec.address} on {placement.where} as {placement.dtype}"
