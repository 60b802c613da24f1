"""Lossless speculation: whatever is drafted, the text is that of plain decoding (fusion.md, laws S1 to S6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.drafts import Script, longest_suffix
from flowinfer.engine.heads import Heads
from flowinfer.engine.pace import MOST, Pace, Payoff
from flowinfer.engine.reference import ReferenceDecoder
from flowinfer.engine.rounds import RoundDecoder
from flowinfer.engine.rows import LiveRow
from flowinfer.plan import Step, members
from flowinfer.results import StepResult
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import mix, one_step
from tests.fusion import toys

FUSERS = ("mean", "geometric", "power", "unite", "gated", "drop", "entropy", "vote", "sharpen")
CONTEXTS = ("native", "canonical")
TEXTS = plans.QUESTIONS[:4]

Guess = Callable[[Heads, LiveRow, int], Sequence[int]]
"""(heads, row, limit) -> the draft."""


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "C": tiny.model("gpt2", "C", seed=2, tokenizer=toys.byte_level(330)),
        "W": tiny.model("mistral", "W", seed=3),
    }


class Guesser:
    """A drafter that calls a function, and notes the length of every draft."""

    def __init__(self, guess: Guess, heads: Heads) -> None:
        self.guess, self.heads = guess, heads

    def propose(self, rows: Sequence[LiveRow], limits: Sequence[int]) -> list[list[int]]:
        """Ask the function; drafts may be longer than allowed."""
        return [list(self.guess(self.heads, row, limit)) for row, limit in zip(rows, limits, strict=True)]

    def forget(self, rows: Sequence[LiveRow]) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""


def rows(step: Step, texts: Sequence[str] = TEXTS, sources: Sequence[str] = ()) -> list[Row]:
    return [
        Row(f"q{k}", step.id, {one.node: text for one in members(step.source)}, tuple(sources))
        for k, text in enumerate(texts)
    ]


def results(completions: Sequence[Completion]) -> list[StepResult]:
    found = {completion.row.question_id: completion.result for completion in completions}
    assert None not in found.values()
    return [found[name] for name in sorted(found) if found[name] is not None]  # type: ignore[misc]


def heads_of(step: Step, models: Mapping[str, Any]) -> list[Any]:
    return [models[one.model] for one in members(step.source)]


def plain(step: Step, models: Mapping[str, Any], asked: Sequence[Row], **options: Any) -> list[StepResult]:
    made = {"batch": 4, "observer": Observer()} | options
    return results(list(ReferenceDecoder(step, heads_of(step, models), **made).decode(asked)))


def drafted(
    step: Step, models: Mapping[str, Any], asked: Sequence[Row], guess: Guess, **options: Any
) -> list[StepResult]:
    made = {"batch": 4, "observer": Observer(), "drafter": partial(Guesser, guess)} | options
    return results(list(RoundDecoder(step, heads_of(step, models), **made).decode(asked)))


def said(found: Sequence[StepResult]) -> list[tuple[Any, ...]]:
    """Return all of results that must not depend on drafts."""
    return [
        (one.text, one.tokens, one.finish_reason, one.near_ties, one.prompts)
        + tuple((head.fed_tokens, head.prompt_tokens, head.agreement) for head in one.heads)
        for one in found
    ]


def slots_of(step: Step, models: Mapping[str, Any], asked: Sequence[Row]) -> dict[str, list[int]]:
    """Return the slots that plain decoding emits, by question."""
    emitted: dict[str, list[int]] = {}

    def note(heads: Heads, row: LiveRow, limit: int) -> list[int]:
        emitted[row.row.question_id] = row.slots
        return []

    drafted(step, models, asked, note)
    return emitted


def perfect(emitted: Mapping[str, Sequence[int]], length: int = MOST) -> Guess:
    return lambda heads, row, limit: emitted[row.row.question_id][row.num_tokens :][: min(limit, length)]


def too_long(emitted: Mapping[str, Sequence[int]]) -> Guess:
    return lambda heads, row, limit: [*emitted[row.row.question_id][row.num_tokens :], *range(200)]


def never(heads: Heads, row: LiveRow, limit: int) -> list[int]:
    return []


def ending(emitted: Mapping[str, Sequence[int]]) -> Guess:
    return lambda heads, row, limit: [*emitted[row.row.question_id][row.num_tokens :][:2], heads.vocabulary.eos_slot]


def cutting(heads: Heads, row: LiveRow, limit: int) -> list[int]:
    """Draft the first two bytes of a character of three."""
    return [heads.vocabulary.slot_of_key[bytes([byte])] for byte in "答".encode()[:2]]


def mixed(emitted: Mapping[str, Sequence[int]], seed: int, error: float = 0.3) -> Guess:
    """Draft what comes, with some wrong keys."""
    generator = torch.Generator().manual_seed(seed)

    def guess(heads: Heads, row: LiveRow, limit: int) -> list[int]:
        right = emitted[row.row.question_id][row.num_tokens :][: max(limit, 0)]
        wrong = torch.rand(len(right), generator=generator) < error
        random = torch.randint(heads.vocabulary.eos_slot, (len(right),), generator=generator)
        return torch.where(wrong, random, torch.tensor(right, dtype=torch.int64)).tolist()

    return guess


def drafts_of(emitted: Mapping[str, Sequence[int]]) -> dict[str, Guess]:
    return {
        "perfect": perfect(emitted),
        "random": mixed(emitted, 1, error=1.0),
        "half right": mixed(emitted, 2),
        "empty": never,
        "longer than T": too_long(emitted),
        "ending in EOS": ending(emitted),
        "cutting a character": cutting,
    }


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("names", ["A", "AB", "ABC", "AW"])
def test_drafts_do_not_change_the_text(models: dict[str, HfModel], names: str, context: str) -> None:
    """S1: native and canonical contexts, byte-level and SentencePiece vocabularies, one head and several."""
    step = one_step(mix(*names), context=context, max_tokens=20).steps[0]
    asked = rows(step)
    wanted = said(plain(step, models, asked))
    emitted = slots_of(step, models, asked)
    for name, guess in drafts_of(emitted).items():
        assert said(drafted(step, models, asked, guess)) == wanted, name


@pytest.mark.parametrize("fuse", FUSERS)
def test_every_fuser_verifies_with_itself(models: dict[str, HfModel], fuse: str) -> None:
    step = one_step(mix("A", "B", "C", fuse=fuse), max_tokens=16).steps[0]
    asked = rows(step)
    guess = mixed(slots_of(step, models, asked), 3)
    assert said(drafted(step, models, asked, guess)) == said(plain(step, models, asked))
