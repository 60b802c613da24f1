"""Reading a given text: the probabilities of its tokens are those that decoding would have had."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import pytest

from flowinfer.backends.hf import HfModel
from flowinfer.engine.loops.given import Given, read
from flowinfer.engine.loops.heads import Heads
from flowinfer.errors import RunError
from flowinfer.fusion.advance import CanonicalContext
from flowinfer.planning.plan import Plan, members
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import last_step, member, mix, one_step, run
from tests.fusion import toys


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    """Return heads of several tokenizers; the tokens of Y and Z are the bytes."""
    bytes_only = toys.byte_level(259)
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "Y": tiny.model("qwen2", "Y", seed=5, tokenizer=bytes_only),
        "Z": tiny.model("llama", "Z", seed=6, tokenizer=bytes_only),
    }


def logs(plan: Plan, models: Mapping[str, HfModel], text: str, *, writes: bool = False) -> list[tuple[bytes, float]]:
    """Return the tokens of a text with the logarithms of their probabilities."""
    step = plan.steps[0]
    found = read(step, [models[one.model] for one in members(step.source)], Given(text, 2, writes))
    return [(one.piece or b"", 0.0 if one.probability < 0 else math.log(one.probability)) for one in found.tokens]


def test_the_logs_of_a_greedy_text_sum_up_to_those_of_the_runs_record(models: dict[str, HfModel]) -> None:
    for source in (member("Y"), mix("Y", "Z")):
        plan = one_step(source, max_tokens=12)
        (trace,) = run(plan, models, ["so she said"]).values()
        result = last_step(trace)
        assert (len(result.text.encode()), result.finish_reason) == (12, "length")
        assert result.confidence is not None
        told = logs(plan, models, "so she said" + trace.answer)
        assert sum(log for _, log in told[-12:]) == pytest.approx(12 * math.log(result.confidence), abs=1e-4)


@pytest.mark.parametrize("names", ["A", "B", "AB", "BA"])
def test_each_log_is_that_of_a_whole_forward_behind_the_text_before_it(models: dict[str, HfModel], names: str) -> None:
    """More tokens than are read in one forward, and characters of several of them."""
    text = "hello 小明有3个苹果 and then she said, the answer is 42é" + " hello x + 1 the" * 6
    plan = one_step(mix(*names))
    told = logs(plan, models, text)
    assert b"".join(piece for piece, _ in told).decode() == text and len(told) > 34
    heads = Heads(plan.steps[0], [models[name] for name in names], observer=plans.Listener())
    leader = models[names[0]]
    ids = leader.tokenizer.encode(text, add_special_tokens=False).ids
    slots = heads.vocabulary.slots(0, ids)
    assert len(told) == len(slots) and told[0][1] == 0
    begun = [models[name].prompt(told[0][0].decode()).ids for name in names]  # they have no chat templates
    behind = [CanonicalContext(models[name].tokenizer, models[name].vocabulary().tokens) for name in names]
    for at, (before, slot) in enumerate(pairwise(slots), 1):
        logits = []
        for k, name in enumerate(names):
            if at > 1:
                behind[k].append(heads.vocabulary.keys[before], heads.vocabulary.ids(k, before))
            session = models[name].open()
            logits.append(session.logits(session.add([[*begun[k], *behind[k].ids]])))
        assert told[at][1] == pytest.approx(math.log(heads.mixer.fused(logits)[0, slot]), abs=1e-4)


def test_the_token_written_behind_a_text_is_the_greedy_one(models: dict[str, HfModel]) -> None:
    plan = one_step(mix("A", "B"), max_tokens=1)
    (trace,) = run(plan, models, ["hello"]).values()
    assert logs(plan, models, "hello", writes=True)[-1][0].decode() == trace.answer


def test_a_text_that_a_head_cannot_hold_fails_with_its_length() -> None:
    small = {"A": tiny.model("qwen2", "A", max_positions=24)}
    with pytest.raises(RunError, match="the prompt has at least 25 tokens for 'A', which reads at most 24"):
        logs(one_step(member("A")), small, "小明有3个苹果" * 20)
