"""Rows of models whose rotary factors depend on the row's length: always as one forward over the whole row."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
)
from transformers import PreTrainedModel as Network

from flowinfer.backends import hf
from flowinfer.backends.rotary import factors_at, most_positions
from flowinfer.backends.row_session import RowSession
from flowinfer.backends.session import BatchSession
from flowinfer.engine.caches.dense import DenseCache
from flowinfer.engine.network.runner import HeadRunner, runner_of
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.fusion import toys

SWITCH = 24
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@cache
def network(kind: str) -> Network:
    """Return a tiny random model: longrope that switches at SWITCH, dynamic NTK beyond it, or either in some layers."""
    torch.manual_seed(0)
    long = LONG | {"original_max_position_embeddings": SWITCH}
    match kind:
        case "longrope":
            config = Phi3Config(
                **SIZES,
                max_position_embeddings=96,
                original_max_position_embeddings=SWITCH,
                rope_parameters=LONG | {"original_max_position_embeddings": SWITCH, "partial_rotary_factor": 1.0},
            )
            return Phi3ForCausalLM(config).eval()
        case "dynamic":
            return LlamaForCausalLM(
                LlamaConfig(**SIZES, max_position_embeddings=SWITCH, rope_parameters=DYNAMIC)
            ).eval()
    of_layers = {"sliding_attention": PLAIN, "full_attention": long if kind == "longrope in some layers" else DYNAMIC}
    config = Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        max_position_embeddings=SWITCH if kind == "dynamic in some layers" else 96,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=of_layers,
    )
    made = Gemma3ForCausalLM(config).eval()
    try:
        for _ in range(2):
            whole(made, drawn(SWITCH + 1))
    except UnboundLocalError:
        pytest.skip(f"transformers {transformers.__version__} cannot read a long row of a model with {kind}")
    return made


KINDS = ("longrope", "dynamic", "longrope in some layers", "dynamic in some layers")


@torch.inference_mode()
def whole(model: Network, ids: list[int]) -> torch.Tensor:
    """Return the last logits of one forward over a whole row, by a model that has seen no other row."""
    for module in model.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def drawn(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (count,), generator=generator).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [5, SWITCH - 1, SWITCH, SWITCH + 1])
def test_a_row_fed_across_the_switch_is_as_one_forward_over_it(kind: str, first: int) -> None:
    model, ids = network(kind), drawn(SWITCH + 6)
    session = RowSession(model)
    (row,) = session.add([ids[:first]])
    for end in range(first + 1, len(ids) + 1):
        session.feed({row: ids[end - 1 : end]})
        torch.testing.assert_close(session.logits([row])[0], whole(model, ids[:end]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_across_the_switch_are_verified_by_the_factors_of_each_length(kind: str) -> None:
    model, ids = network(kind), drawn(SWITCH + 3)
    session = RowSession(model)
    (row,) = session.add([ids[: SWITCH - 3]])
    segments = [[ids[at]] for at in range(SWITCH - 3, SWITCH)] + [ids[SWITCH : SWITCH + 2], ids[SWITCH + 2 :]]
    told = session.verify({row: segments})
    ends = [SWITCH - 2, SWITCH - 1, SWITCH, SWITCH + 2, SWITCH + 3]
    expected = torch.stack([whole(model, ids[:end]) for end in ends])
    torch.testing.assert_close(told, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_rolled_back_over_the_switch_has_its_old_factors_again(kind: str) -> None:
    model, ids = network(kind), drawn(SWITCH + 4)
    session = RowSession(model)
    (row,) = session.add([ids])
    session.rollback(row, 8)
    session.feed({row: [7]})
    torch.testing.assert_close(session.logits([row])[0], whole(model, [*ids[:-8], 7]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_row_does_not_change_the_factors_of_others(kind: str) -> None:
    """transformers' dynamic embedding keeps the factors of the longest row that it has seen."""
    model, ids = network(kind), drawn(SWITCH + 20)
    session = RowSession(model)
    session.add([ids])
    (row,) = session.add([ids[: SWITCH + 2]])
    session.feed({row: [9]})
    torch.testing.assert_close(session.logits([row])[0], whole(model, [*ids[: SWITCH + 2], 9]), atol=1e-4, rtol=1e-4)


def test_longrope_writes_what_generate_writes_across_the_switch() -> None:
    model, prompt = network("longrope"), drawn(SWITCH - 4, seed=1)
    session = RowSession(model)
    (row,) = session.add([prompt])
    written = []
    for _ in range(16):
        written.append(int(session.logits([row])[0].argmax()))
        session.feed({row: [written[-1]]})
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    options["use_cache"] = False  # some transformers go on with stale keys
    assert model.generate(ids, **options)[0, len(prompt) :].tolist() == written


@pytest.mark.parametrize("kind", KINDS)
def test_such_models_get_a_cache_per_row_and_no_packed_engine(kind: str) -> None:
    model = hf.HfModel(ModelSpec(name="A", ref="x"), network(kind), tiny.wrapped(toys.byte_level()))
    assert isinstance(model.open(), RowSession)
    assert runner_of(network(kind)) == "its rotary embedding depends on the length of the longest row"


@pytest.mark.parametrize(("kind", "positions"), [("longrope", 96), ("dynamic", 4 * SWITCH)])
def test_dynamic_factors_reach_beyond_the_first_limit(kind: str, positions: int) -> None:
    model = hf.HfModel(ModelSpec(name="A", ref="x"), network(kind), tiny.wrapped(toys.byte_level()))
    assert model.max_positions == positions


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": SWITCH}
SCALED = YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}
TUNED = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
"""Ministral 3's: queries grow with their own position."""


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LlamaConfig(**SIZES, max_position_embeddings=96, rope_parameters=SCALED), id="llama"),
        pytest.param(
            Ministral3Config(**SIZES, head_dim=8, max_position_embeddings=96, rope_parameters=TUNED), id="ministral"
        ),
    ],
)
def test_yarn_is_as_one_forward_over_the_row_in_every_engine(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    long, short = drawn(2 * SWITCH + 6), drawn(9, seed=1)
    expected = torch.stack([whole(model, long), whole(model, short)])
    session = BatchSession(model)
    rows = session.add([long[:5], short[:2]])
    for end in range(5, len(long)):
        session.feed({rows[0]: long[end : end + 1]} | ({rows[1]: short[end - 3 : end - 2]} if end < 12 else {}))
    torch.testing.assert_close(session.logits(rows), expected, atol=1e-4, rtol=1e-4)
    runner, cache = runner_of(model), DenseCache(2)
    assert isinstance(runner, HeadRunner)
    for start, lengths in ((0, (5, 2)), (1, (len(long) - 5, len(short) - 2))):
        starts = (5 * start, 2 * start)
        ids = long[starts[0] :][: lengths[0]] + short[starts[1] :][: lengths[1]]
        _, positions = cache.begin((0, 1), starts, lengths)
        packed = runner.logits(torch.tensor(ids), positions, torch.tensor(lengths).cumsum(0) - 1, cache)
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("stated", "positions"), [(SWITCH, 4 * SWITCH), (4 * SWITCH, 4 * SWITCH), (500, 500)])
def test_yarn_reaches_as_far_as_its_factor_says(stated: int, positions: int) -> None:
    """Qwen2.5's page has users add yarn and leave the stated positions as they are."""
    config = LlamaConfig(**SIZES, max_position_embeddings=stated, rope_parameters=YARN)
    assert most_positions(config, stated) == positions


@pytest.mark.parametrize(
    ("kind", "lengths"), [("longrope", [(0,), (0,), (1,), (1,)]), ("dynamic", [(24,), (24,), (25,), (30,)])]
)
def test_lengths_share_factors_where_a_cache_may_be_kept(kind: str, lengths: list[tuple[int, ...]]) -> None:
    assert [factors_at(network(kind).config, length) for length in (3, SWITCH, SWITCH + 1, 30)] == lengths
