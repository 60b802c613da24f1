"""Heads whose chat templates open a thought, beside heads whose templates do not."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from flowinfer.backends.hf import HfModel
from flowinfer.engine.loops.thinking import strip_thinking
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import last_step, member, mix, one_step, run
from tests.fusion import replicas, toys

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


def scripted(model: HfModel, ids: list[int]) -> plans.Watched:
    """Return a model that writes these ids one after another."""
    script = iter(ids)

    def write(logits: torch.Tensor) -> torch.Tensor:
        made = torch.full_like(logits, -40.0)
        made[:, next(script)] = 0.0
        return made

    return plans.Watched(model, logits=write)


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_final_channel_of_gpt_oss_reaches_the_next_stage(context: str) -> None:
    """Its answer begins with another channel, and <|end|> behind that one ends no answer."""
    model = tiny.model("gpt2", "H", tokenizer=replicas.gpt_oss(), chat=replicas.HARMONY, eos="<|return|>")
    thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    ids = replicas.gpt_oss().encode(f"{thought}<|channel|>final<|message|>42<|return|>", add_special_tokens=False).ids
    head = scripted(model, ids)
    (trace,) = run(one_step(member("H"), context=context, max_tokens=40), {"H": head}, ["hello"]).values()
    assert last_step(trace).text == f"{thought}<|channel|>final<|message|>42"
    assert strip_thinking(last_step(trace).text) == "42"
    assert last_step(trace).finish_reason == "eos"
    (session,) = head.sessions
    (fed,) = session.ids.values()
    specials = model.vocabulary().tokens.specials.values()
    assert [i for i in fed if i in specials] == [i for i in ids[:-1] if i in specials]


def test_group_of_gpt_oss_and_a_plain_model_begins_with_the_final_channel(models: dict[str, HfModel]) -> None:
    oss = tiny.model("gpt2", "H", tokenizer=replicas.gpt_oss(), chat=replicas.HARMONY, eos="<|return|>")
    with_channels, plain = prompts({**models, "H": oss}, "H", "P")
    assert with_channels.endswith("<|start|>assistant<|channel|>final<|message|>")
    assert plain.endswith("assistant\n")


def bracketed(open_at_the_end: str = "") -> HfModel:
    """Return a model that thinks between control tokens, as Magistral does."""
    tokenizer = Tokenizer.from_str(toys.byte_level().to_str())
    tokenizer.add_special_tokens(["[THINK]", "[/THINK]"])
    return tiny.model("gpt2", "M", tokenizer=tokenizer, chat=tiny.CHAT.replace("assistant\n", open_at_the_end))


def test_a_thought_between_control_tokens_is_written_and_does_not_reach_the_next_stage() -> None:
    model = bracketed()
    ids = model.tokenizer.encode("[THINK]hm[/THINK]\n42<|im_end|>", add_special_tokens=False).ids
    (trace,) = run(one_step(member("M"), max_tokens=40), {"M": scripted(model, ids)}, ["hello"]).values()
    assert (last_step(trace).text, last_step(trace).finish_reason) == ("[THINK]hm[/THINK]\n42", "eos")
    assert strip_thinking(last_step(trace).text) == "42"


def test_a_thought_is_closed_by_the_mark_that_belongs_to_its_opening_one(models: dict[str, HfModel]) -> None:
    opened, _ = prompts({**models, "M": bracketed("assistant\n[THINK]")}, "M", "P")
    assert opened.endswith("assistant\n[THINK]\n[/THINK]\n\n")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[THINK]a[/THINK]42", "42"),
        ("<seed:think>a</seed:think>42", "42"),
        ("see [THINK]hm", "see"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>A", "A"),
        ("<|channel|>analysis<|message|>hm", ""),
        ("the token <|channel|> is one of gpt-oss", "the token <|channel|> is one of gpt-oss"),
    ],
)
def test_thoughts_and_channels_before_the_final_one_are_left_out(text: str, left: str) -> None:
    assert strip_thinking(text) == left
