"""Which transformers models can be packed: those whose packed forward equals their own; the others say why not."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from flowinfer.backends.row_session import RowSession
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.network.probing import NotPackable
from flowinfer.engine.network.runner import HeadRunner, runner_of

_COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
CONFIGS: dict[str, Any] = {
    "Qwen2": Qwen2Config(**_COMMON),
    "Qwen3": Qwen3Config(**_COMMON, head_dim=16),
    "Llama": LlamaConfig(**_COMMON),
    "Mistral": MistralConfig(**_COMMON, sliding_window=6),
    "Mixtral": MixtralConfig(**_COMMON, num_local_experts=4),
    "Phi3": Phi3Config(**_COMMON),
    "Gemma2": Gemma2Config(**_COMMON, head_dim=16, sliding_window=6, attn_implementation="eager"),
    "Gemma3": Gemma3TextConfig(**_COMMON, head_dim=16, sliding_window=6),
    "GPT-2": GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None),
}


def network(config: Any) -> Any:
    """Return a random float32 model of a config."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_give_transformers_own_logits(name: str) -> None:
    """Prompts and chunks of unequal lengths, beyond the window, with a rollback and a row that leaves."""
    own = network(CONFIGS[name])
    reference, session = RowSession(own), PackedSession(HeadRunner(copy.deepcopy(own)), 3, 128)
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 300, (count,), generator=generator).tolist()

    prompts = [ids(9), ids(1), ids(70)]
    rows, others = session.add(prompts), reference.add(prompts)
    torch.testing.assert_close(session.logits(rows), reference.logits(others), atol=2e-4, rtol=1e-3)
    for lengths in ((1, 1, 1), (3, 0, 1), (2, 4, 1)):
        chunks = [ids(length) for length in lengths]
        session.feed(dict(zip(rows, chunks, strict=True)))
        reference.feed(dict(zip(others, chunks, strict=True)))
        torch.testing.assert_close(session.logits(rows), reference.logits(others), atol=2e-4, rtol=1e-3)
    for one, handles in ((session, rows), (reference, others)):
        one.rollback(handles[2], 1)
        one.remove([handles[0]])
    tail = {1: [5], 2: [7, 8]}
    session.feed({rows[k]: own_ids for k, own_ids in tail.items()})
    reference.feed({others[k]: own_ids for k, own_ids in tail.items()})
    torch.testing.assert_close(session.logits(rows[1:]), reference.logits(others[1:]), atol=2e-4, rtol=1e-3)


def test_threads_that_share_a_model_get_the_logits_that_each_gets_alone() -> None:
    runner = HeadRunner(network(CONFIGS["GPT-2"]))

    def written(first: int) -> torch.Tensor:
        session = PackedSession(runner, 1, 128)
        rows, found = session.add([[first, first + 1]]), []
        for _ in range(20):
            found.append(session.logits(rows))
            session.feed({rows[0]: [int(found[-1].argmax())]})
        return torch.cat(found)

    alone = [written(first) for first in (3, 50, 170)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(written, (3, 50, 170)))
    assert all(map(torch.equal, together, alone))


def test_verified_segments_give_the_logits_of_feeding_them_one_by_one() -> None:
    own = network(CONFIGS["Qwen2"])
    session, plain = (PackedSession(HeadRunner(copy.deepcopy(own)), 2, 128) for _ in range(2))
    rows, others = session.add([[1, 2, 3], [4]]), plain.add([[1, 2, 3], [4]])
    got = session.verify({rows[1]: [[5], [6, 7]], rows[0]: [[8, 9]]})
    expected = []
    for row, segment in ((others[1], [5]), (others[1], [6, 7]), (others[0], [8, 9])):
        plain.feed({row: segment})
        expected.append(plain.logits([row])[0])
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4), "attention interface"),
        (GptOssConfig(**_COMMON, head_dim=16, num_local_experts=4), "s_aux"),
        (
            LlamaConfig(**_COMMON, rope_scaling={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "longest row",
        ),
    ],
)
def test_what_cannot_be_packed_says_why(config: Any, reason: str) -> None:
    found = runner_of(network(config))
    assert isinstance(found, str)
    assert reason in found


def test_a_wrong_packed_forward_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "flowinfer.engine.caches.dense._visible",
        lambda positions, length, window: torch.ones(len(positions), length, dtype=torch.bool),
    )
    with pytest.raises(NotPackable, match="differs from transformers' own"):
        HeadRunner(network(CONFIGS["Llama"]))


def test_merged_layers_keep_serving_transformers_itself() -> None:
    own, merged = network(CONFIGS["Qwen2"]), network(CONFIGS["Qwen2"])
    HeadRunner(merged)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, own(ids).logits, atol=1e-5, rtol=1e-4)


class _UpFirst(LlamaMLP):
    """A feed-forward module that calls its layers in another order than most."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(states)
        return self.down_proj(self.act_fn(self.gate_proj(states)) * up)


def test_a_model_whose_layers_cannot_be_merged_is_left_as_it_was() -> None:
    own = network(CONFIGS["Llama"])
    for layer in own.model.layers:
        layer.mlp.__class__ = _UpFirst
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = own(input_ids=ids).logits
        reason = runner_of(own)
        assert isinstance(reason, str) and "a packed forward fails" in reason
        torch.testing.assert_close(own(input_ids=ids).logits, before)
