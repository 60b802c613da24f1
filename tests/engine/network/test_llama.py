"""The written-out forward: who gets it, that it is the model's own, and what a step on a CPU is made of."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from flowinfer.backends.hf import HfModel
from flowinfer.backends.row_session import RowSession
from flowinfer.engine.base import Observer
from flowinfer.engine.budget import Budget
from flowinfer.engine.caches.attention import PackedCache
from flowinfer.engine.loops.choice import Engine, Loop, make_decoder
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.loops.threads import choose_threads
from flowinfer.engine.network.matrices import Matrix
from flowinfer.engine.network.probing import gives, plain_logits
from flowinfer.engine.network.runner import HeadRunner, runner_of
from tests.engine.network.test_runner import _COMMON, CONFIGS, network
from tests.engine.plans import Listener, answers, member, mix, one_step

WRITTEN = ("Qwen2", "Qwen3", "Llama", "Mistral")


@pytest.mark.parametrize("name", CONFIGS)
def test_llamas_kind_is_written_out_and_no_other(name: str) -> None:
    assert (HeadRunner(network(CONFIGS[name]))._written is not None) == (name in WRITTEN)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**_COMMON, attention_bias=True), LlamaConfig(**_COMMON, mlp_bias=True), Qwen2Config(**_COMMON)],
    ids=["biased output", "biased mlp", "half precision"],
)
def test_what_differs_from_the_kind_keeps_its_modules(config: Any) -> None:
    made = network(config)
    assert HeadRunner(made.bfloat16() if isinstance(config, Qwen2Config) else made)._written is None


@pytest.mark.parametrize("name", WRITTEN)
def test_modules_serve_where_nothing_is_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = network(CONFIGS[name])
    written = HeadRunner(copy.deepcopy(own))
    monkeypatch.setattr("flowinfer.engine.network.runner.llama_forward", lambda model, shapes: None)
    sessions = [PackedSession(runner, 2, 128) for runner in (written, HeadRunner(own))]
    found = []
    for session in sessions:
        rows = session.add([[1, 2, 3, 4, 5, 6, 7, 8], [9]])
        session.feed({rows[0]: [5], rows[1]: [6]})
        found.append(session.logits(rows))
    torch.testing.assert_close(found[0], found[1], atol=2e-4, rtol=1e-3)


def test_a_wrong_written_forward_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Matrix, "added", lambda self, states, total: total)
    assert HeadRunner(network(CONFIGS["Llama"]))._written is None


def test_a_forward_that_is_wrong_for_one_token_alone_is_found_out() -> None:
    """Kernels of one token are others than those of several."""
    runner, counts = HeadRunner(network(CONFIGS["Llama"])), []
    expected = plain_logits(runner.model)

    def forward(ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        counts.append(len(ids))
        return runner.logits(ids, positions, wanted, cache)

    def wrong(ids: Tensor, positions: Tensor, wanted: Tensor, cache: PackedCache) -> Tensor:
        return forward(ids, positions, wanted, cache) * (0.9 if len(ids) == 1 else 1)

    assert gives(runner.model, runner.layers, expected, forward) and counts == [4, 3, 1]
    assert not gives(runner.model, runner.layers, expected, wrong)


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
def test_rows_longer_than_the_first_table_of_positions_have_their_own_logits(config: Any) -> None:
    own = network(config(**(_COMMON | {"max_position_embeddings": 700})))
    reference, session = RowSession(own), PackedSession(HeadRunner(copy.deepcopy(own)), 2, 700)
    ids = torch.randint(0, 300, (640,), generator=torch.Generator().manual_seed(2)).tolist()
    for one in (reference, session):
        one.add([ids[:250], ids[:3]])
        one.feed({0: ids[250:520], 1: ids[3:4]})
        one.feed({0: ids[520:521], 1: ids[4:5]})
    torch.testing.assert_close(session.logits([0, 1]), reference.logits([0, 1]), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_in_another_order_multiplies_the_same(columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight, bias, total = (
        torch.randn(shape, generator=generator, dtype=dtype)
        for shape in ((columns, 24), (40, 24), (40,), (columns, 40))
    )
    expected = states @ weight.t()
    for is_copied in (False, True):
        torch.testing.assert_close(Matrix(weight, bias, is_copied=is_copied)(states), expected + bias)
        torch.testing.assert_close(Matrix(weight, is_copied=is_copied).added(states, total), expected + total)


def test_a_copied_model_has_a_runner_of_its_own() -> None:
    own = network(CONFIGS["Llama"])
    made = runner_of(own)
    assert isinstance(made, HeadRunner)
    PackedSession(made, 1, 128).add([[1, 2, 3]])
    other = runner_of(copy.deepcopy(own))
    assert isinstance(other, HeadRunner) and other is not made
    sessions = [PackedSession(one, 1, 128) for one in (made, other)]
    logits = [session.logits(session.add([[4, 5, 6]])) for session in sessions]
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.parametrize(("policy", "rows", "threads"), [("PASSIVE", 1, 1), ("PASSIVE", 10**6, 2), ("ACTIVE", 1, 2)])
def test_small_steps_wake_no_sleeping_threads(
    policy: str, rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    choose = choose_threads([HeadRunner(network(CONFIGS["Llama"]))])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with choose(rows):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("engine", "is_exact", "is_packed"),
    [("auto", True, True), ("auto", False, False), ("packed", False, True), ("reference", True, False)],
)
def test_a_cpu_packs_by_itself_where_texts_cannot_change(
    models: dict[str, HfModel], engine: Engine, is_exact: bool, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models["A"], "is_exact", is_exact)
    loop = Loop(one_step(member("A")).steps[0], [models["A"]], None, 2, Observer(), False, Budget())
    decoder = make_decoder(loop, engine)
    assert isinstance(decoder, RoundDecoder)
    sessions = decoder.stream().sessions
    assert [isinstance(session, PackedSession) for session in sessions] == [is_packed]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_texts_by_default_are_those_of_the_reference_engine(models: dict[str, HfModel], batch: int) -> None:
    plan = one_step(mix("A", "B", "W"), max_tokens=24)
    listener = Listener()
    found = answers(plan, models, batch=batch, observer=listener)
    assert found == answers(plan, models, batch=batch, engine="reference")
    assert listener.notices == []
