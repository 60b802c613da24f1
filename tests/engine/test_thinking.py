"""Heads whose chat templates open a thought, beside heads whose templates do not."""

from __future__ import annotations

import pytest

from flowinfer.backends.hf import HfModel
from tests.backends import tiny
from tests.engine.plans import last_step, member, mix, one_step, run

THINKS = tiny.CHAT.replace("assistant\n", "assistant\n<think>\n")


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {
        "T": tiny.model("qwen2", "T", chat=THINKS),
        "U": tiny.model("qwen2", "U", seed=5, chat=THINKS),
        "P": tiny.model("llama", "P", seed=1, chat=tiny.CHAT),
    }


def prompts(models: dict[str, HfModel], *names: str, **decoding: str) -> list[str]:
    source = mix(*names) if len(names) > 1 else member(names[0], node="n0")
    (trace,) = run(one_step(source, max_tokens=4, **decoding), models, ["hello"]).values()
    shown = last_step(trace).prompts
    return [shown[f"n{k}"] for k in range(len(names))]


def test_a_thought_that_only_one_head_would_begin_with_is_closed_at_once(models: dict[str, HfModel]) -> None:
    thinker, plain = prompts(models, "T", "P")
    assert thinker.endswith("assistant\n<think>\n\n</think>\n\n")
    assert plain.endswith("assistant\n")


@pytest.mark.parametrize(("names", "decoding"), [(("T", "U"), {}), (("T",), {}), (("T", "P"), {"thinking": "free"})])
def test_heads_that_all_think_or_are_left_free_begin_where_their_templates_end(
    models: dict[str, HfModel], names: tuple[str, ...], decoding: dict[str, str]
) -> None:
    assert prompts(models, *names, **decoding)[0].endswith("assistant\n<think>\n")


def test_a_prefill_goes_before_closing(models: dict[str, HfModel]) -> None:
    assert prompts(models, "T", "P", prefill="So")[0].endswith("<think>\nSo")


def test_what_such_a_group_writes_reaches_the_next_stage(models: dict[str, HfModel]) -> None:
    (trace,) = run(one_step(mix("T", "P"), max_tokens=4), models, ["hello"]).values()
    assert last_step(trace).passed_on == last_step(trace).text
