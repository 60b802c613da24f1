"""A model whose layers lie on several devices: a chain of links, which writes with others what it writes whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.backends.known import whole
from flowinfer.engine.base import Observer, decode
from flowinfer.engine.caches.pages import PAGE, ChainedCache, PagedCache, Pages
from flowinfer.engine.caches.tiles import flat_places
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.models import ModelPool
from flowinfer.engine.network import runner as running
from flowinfer.engine.network.probing import NotPackable
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.language.check import check
from flowinfer.planning.plan import compile, members
from tests.engine import plans
from tests.engine.loops.test_decoder import TEXTS, Models, packed_decoder, reference, results, rows_of, told
from tests.engine.plans import member, mix, one_step
from tests.engine.test_cuda import CPU, ONE, zoo


@pytest.fixture(scope="module")
def chains(models: Models) -> dict[str, HeadRunner]:
    """Return some of the models, each cut behind its first layer."""
    return {name: HeadRunner(copy.deepcopy(models[name].transformers_model), (1,)) for name in "ABW"}


@pytest.mark.parametrize(
    ("names", "placement"),
    [
        ("A", [0, 1]),
        ("A", [0, 0]),
        ("AB", [0, 1, 0, 1]),
        ("AB", [0, 1, 1, 0]),
        ("AB", [0, 1, 2, 3]),
        ("BW", [1, 0, 0, 2]),
    ],
)
def test_chains_at_any_places_write_what_whole_models_write(
    models: Models, chains: dict[str, HeadRunner], names: str, placement: Sequence[int]
) -> None:
    source = mix(*names) if len(names) > 1 else member(names)
    plan = one_step(source, max_tokens=10)
    runners = [chains[name] for name in names]
    decoder = packed_decoder(plan, models, batch=3, num_pages=20, placement=placement, runners=runners)
    assert len(decoder._lock.places) == len(set(placement))
    found = results(decode(decoder, rows_of(plan, plans.QUESTIONS)))
    expected = reference(plan, models, plans.QUESTIONS)
    assert {key: told(one) for key, one in found.items()} == {key: told(one) for key, one in expected.items()}


def test_a_chain_fuses_with_whole_models(models: Models, chains: dict[str, HeadRunner]) -> None:
    plan = one_step(mix("A", "C", "W"), max_tokens=10)
    whole = HeadRunner(copy.deepcopy(models["C"].transformers_model))
    runners = [chains["A"], whole, chains["W"]]
    decoder = packed_decoder(plan, models, batch=3, placement=[0, 1, 1, 2, 0], runners=runners)
    found = results(decode(decoder, rows_of(plan, plans.QUESTIONS)))
    expected = reference(plan, models, plans.QUESTIONS)
    assert {key: told(one) for key, one in found.items()} == {key: told(one) for key, one in expected.items()}
    assert [one.model for one in members(plan.steps[0].source)] == ["A", "C", "W"]


def test_a_chain_reads_behind_pages_that_rows_share(models: Models, chains: dict[str, HeadRunner]) -> None:
    """What a link returns of tokens far behind a prompt's beginning was looked for at their positions."""
    plan, texts = one_step(member("A"), max_tokens=4), TEXTS[-2:]
    decoder = packed_decoder(plan, models, batch=2, num_pages=20, placement=[0, 1], runners=[chains["A"]])
    found = results(decode(decoder, rows_of(plan, texts)))
    expected = reference(plan, models, texts)
    assert {key: told(one) for key, one in found.items()} == {key: told(one) for key, one in expected.items()}


def test_hooks_that_move_what_layers_read_do_not_run_in_a_chain(models: Models) -> None:
    model = copy.deepcopy(models["A"].transformers_model)
    seen: list[str] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *given: seen.append("moved"))
    runner = HeadRunner(model, (1,))
    seen.clear()
    session = PackedSession(runner, 1, 64)
    session.logits(session.add([[1, 2, 3]]))
    assert not seen
    model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert seen == ["moved"] * 2


def test_a_chains_sessions_give_the_whole_models_logits(models: Models, chains: dict[str, HeadRunner]) -> None:
    prompts = [list(range(5, 25)), list(range(40, 47))]
    whole = models["A"].open()
    session = PackedSession(chains["A"], 2, 64)
    expected, found = whole.logits(whole.add(prompts)), session.logits(session.add(prompts))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_has_the_same_pages_in_all_links(chains: dict[str, HeadRunner]) -> None:
    pages = Pages(6, 2, 3 * PAGE)
    cache = chains["A"].new_cache(pages)
    assert isinstance(cache, ChainedCache)
    assert all(isinstance(part, PagedCache) and part.pages is pages for part in cache.parts)
    pages.reserve(1, 2 * PAGE)
    cache.sync()
    assert not pages.is_changed
    for part in cache.parts:
        assert torch.equal(part.table, pages.table)
    rows, positions = flat_places([1], [0], [4])
    chains["A"].read(torch.arange(4), positions, cache.at(rows, positions, 1))
    for part in cache.parts:
        assert any(keys[pages.table[1, 0]].any() for keys, _ in part._layers.values())
    assert [list(part._layers) for part in cache.parts] == [[0], [1]]


def test_a_model_that_adds_to_what_its_layers_read_is_refused(models: Models) -> None:
    """GPT-2 adds embeddings of positions before its first layer: a further link would add them again."""
    with pytest.raises(NotPackable):
        HeadRunner(copy.deepcopy(models["C"].transformers_model), (1,))


def load(folder: Path, where: Any, dtype: str) -> dict[str, HfModel]:
    """Load the lab's models, named A, B and C."""
    plan = compile(check("(Qwen | Ds | Yi)", zoo=zoo(folder, where, dtype)))
    pool = ModelPool()
    return {own: pool.get(plan, name, Observer()) for own, name in zip("ABC", where, strict=True)}  # type: ignore[misc]


def of_transformers(model: HfModel) -> Any:
    """Return a model's network, from now on transformers' own: one known from its files cannot move."""
    model._model = whole(model.transformers_model)
    return model._model


def lay_out(model: HfModel, first: str, second: str) -> None:
    """Move a model to two devices, its later layers to the second, so that it can be called as before."""

    def moved(device: str, given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(moved(device, one) for one in given)
        return given.to(device) if isinstance(given, torch.Tensor) else given

    network = of_transformers(model).to(first)
    layers = network.model.layers
    for layer in layers[len(layers) // 2 :]:
        layer.to(second).register_forward_pre_hook(
            lambda _, given, named: (moved(second, given), {key: moved(second, one) for key, one in named.items()}),
            with_kwargs=True,
        )
    layers[-1].register_forward_hook(lambda _, given, output: moved(first, output))
    model.device = torch.device(first)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than 2 GPUs")
@pytest.mark.parametrize(("dtype", "is_compiled"), [("float32", False), ("float32", True), ("float16", True)])
def test_models_over_two_gpus_write_what_they_write_on_one(
    dtype: str, is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = one_step(mix("A", "B", "C"), max_tokens=40)
    rows = rows_of(plan, plans.QUESTIONS)
    if is_compiled:
        monkeypatch.setattr(running, "_WORTH_COMPILING", 0)
    whole = results(decode(packed_decoder(plan, load(tmp_path / "one", ONE, dtype), batch=3, num_pages=60), rows))
    models = load(tmp_path / "cpu", CPU, dtype)
    lay_out(models["A"], "cuda:0", "cuda:1")
    lay_out(models["B"], "cuda:1", "cuda:0")
    of_transformers(models["C"]).to("cuda:1")
    models["C"].device = torch.device("cuda:1")
    decoder = packed_decoder(plan, models, batch=3, num_pages=60)
    assert [len(link.runner.segments) for place in decoder._lock.places for link in place.links].count(3) == 6
    found = results(decode(decoder, rows))
    assert {key: told(one) for key, one in found.items()} == {key: told(one) for key, one in whole.items()}
    session = PackedSession(next(place for place in decoder._lock.places).links[0].runner, 2, 64)
    assert session.logits(session.add([[1, 2, 3], [4, 5]])).isfinite().all()
