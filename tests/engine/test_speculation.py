"""Lossless speculation: whatever is drafted, the text is that of plain decoding (fusion.md, laws S1 to S6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Completion, Observer, Row, decode
from flowinfer.engine.loops.acceptance import MOST, DraftLength, DraftOdds, Payoff
from flowinfer.engine.loops.drafting import make_drafter
from flowinfer.engine.loops.drafts import Script, longest_suffix
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.planning.merge import merge
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import Plan, Step, held_models, members
from flowinfer.results import StepResult
from flowinfer.runs.cache import step_key
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.engine import plans
from tests.engine.oracle import decode_plainly
from tests.engine.plans import answers, chain, group, member, mix, one_step, run
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


def plain(step: Step, models: Mapping[str, Any], asked: Sequence[Row]) -> list[StepResult]:
    return decode_plainly(step, heads_of(step, models), asked)


def drafted(
    step: Step, models: Mapping[str, Any], asked: Sequence[Row], guess: Guess, **options: Any
) -> list[StepResult]:
    made = {"batch": 4, "observer": Observer(), "drafter": partial(Guesser, guess)} | options
    return results(list(decode(RoundDecoder(step, heads_of(step, models), **made), asked)))


def said(found: Sequence[StepResult]) -> list[tuple[Any, ...]]:
    """Return all of results that must not depend on drafts."""
    return [
        (
            *(one.text, one.tokens, one.finish_reason, one.near_ties, one.prompts),
            *((head.fed_tokens, head.prompt_tokens, head.agreement) for head in one.heads),
        )
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


@pytest.mark.parametrize("context", CONTEXTS)
def test_rounds_without_a_drafter_are_a_plain_decoder_over_any_sessions(
    models: dict[str, HfModel], context: str
) -> None:
    step = one_step(mix("A", "B"), context=context).steps[0]
    asked, opened = rows(step), []

    def open_sessions() -> list[Any]:
        opened.append([models[name].open() for name in "AB"])
        return opened[-1]

    made = {"batch": 3, "observer": Observer(), "open_sessions": open_sessions}
    found = results(list(decode(RoundDecoder(step, heads_of(step, models), **made), asked)))  # type: ignore[arg-type]
    assert said(found) == said(plain(step, models, asked))
    assert len(opened) == 1


@pytest.mark.parametrize("fuse", FUSERS)
def test_every_fuser_verifies_with_itself(models: dict[str, HfModel], fuse: str) -> None:
    step = one_step(mix("A", "B", "C", fuse=fuse), max_tokens=16).steps[0]
    asked = rows(step)
    guess = mixed(slots_of(step, models, asked), 3)
    assert said(drafted(step, models, asked, guess)) == said(plain(step, models, asked))


@pytest.mark.parametrize("batch", [3, 7])
@pytest.mark.parametrize("context", CONTEXTS)
def test_batches_of_any_size_emit_the_same(models: dict[str, HfModel], batch: int, context: str) -> None:
    """Rows accept different counts, end at different rounds, and others take their places."""
    step = one_step(mix("A", "B"), context=context, max_tokens=20).steps[0]
    asked = rows(step, plans.QUESTIONS)
    guess = mixed(slots_of(step, models, asked), 4)
    assert said(drafted(step, models, asked, guess, batch=batch)) == said(plain(step, models, asked))


@pytest.mark.parametrize(
    "options",
    [
        {"stop": ("e", "，")},
        {"prefill": "The answer "},
        {"max_tokens": 1},
        {"max_tokens": 2},
        {"utf8": "off"},
        {"topk": "certified"},
        {"eos": "max"},
        {"strict": True, "near_tie_eps": 0.2},
        {"strict": True, "near_tie_eps": 0.2, "context": "canonical"},
    ],
    ids=str,
)
def test_every_option_means_the_same_in_rounds(models: dict[str, HfModel], options: dict[str, Any]) -> None:
    step = one_step(mix("A", "B"), **{"max_tokens": 12, **options}).steps[0]
    asked = rows(step)
    wanted, drafts = said(plain(step, models, asked)), drafts_of(slots_of(step, models, asked))
    for name in ("half right", "ending in EOS", "cutting a character"):
        assert said(drafted(step, models, asked, drafts[name])) == wanted, name


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_head_whose_positions_run_out_ends_the_row_at_the_same_token(context: str) -> None:
    heads = {
        "A": tiny.model("qwen2", "A", max_positions=40),
        "B": tiny.model("llama", "B", seed=1, max_positions=48),
    }
    step = one_step(mix("A", "B"), context=context, max_tokens=64, utf8="off").steps[0]
    asked = rows(step, ["hello", "Once upon a time"])
    wanted = plain(step, heads, asked)
    assert "context" in {one.finish_reason for one in wanted}
    drafts = drafts_of(slots_of(step, heads, asked))
    for name in ("half right", "longer than T"):
        assert said(drafted(step, heads, asked, drafts[name])) == said(wanted), name


def test_answers_that_begin_with_a_dummy_prefix_are_drafted_too(models: dict[str, HfModel]) -> None:
    step = one_step(mix("A", "B"), lstrip_first=True).steps[0]
    asked = rows(step)
    guess = mixed(slots_of(step, models, asked), 5)
    assert said(drafted(step, models, asked, guess)) == said(plain(step, models, asked))


def test_observers_hear_every_token_as_without_drafts(models: dict[str, HfModel]) -> None:
    step = one_step(mix("A", "B"), max_tokens=12).steps[0]
    asked = rows(step)
    guess = mixed(slots_of(step, models, asked), 6)
    heard, wanted = plans.Listener(), plans.Listener()
    drafted(step, models, asked, guess, observer=heard)
    list(decode(RoundDecoder(step, heads_of(step, models), batch=4, observer=wanted), asked))
    for question, events in wanted.events.items():
        assert [(e.index, e.piece) for e in heard.events[question]] == [(e.index, e.piece) for e in events]
        for ours, theirs in zip(heard.events[question], events, strict=True):
            assert ours.probability == pytest.approx(theirs.probability, rel=1e-4)
            assert [wish.piece for wish in ours.heads] == [wish.piece for wish in theirs.heads]


@given(st.data())
@settings(max_examples=6)
def test_any_draft_leaves_the_text_as_it_is(models: dict[str, HfModel], data: st.DataObject) -> None:
    """S1 with drafts made of right and wrong keys in any order, in any batch."""
    context = data.draw(st.sampled_from(CONTEXTS))
    fuse = data.draw(st.sampled_from(("mean", "geometric", "vote")))
    step = one_step(mix("A", "B", fuse=fuse), context=context, max_tokens=12).steps[0]
    asked = rows(step, TEXTS[:3])
    emitted = slots_of(step, models, asked)
    wishes = data.draw(st.lists(st.lists(st.none() | st.integers(0, 300), max_size=6), min_size=1, max_size=8))

    def guess(heads: Heads, row: LiveRow, limit: int) -> list[int]:
        wish, right = wishes[row.num_tokens % len(wishes)], emitted[row.row.question_id][row.num_tokens :]
        pairs = zip(wish, [*right, *range(6)], strict=False)
        return [own if wrong is None else wrong for wrong, own in pairs]

    found = drafted(step, models, asked, guess, batch=data.draw(st.integers(1, 3)))
    assert said(found) == said(plain(step, models, asked))


def test_full_acceptance_emits_one_key_more_than_was_drafted(models: dict[str, HfModel]) -> None:
    """S2: the first token comes with the prompt, every round of g keys emits g + 1."""
    step = one_step(mix("A", "C"), max_tokens=1 + 4 * 6, utf8="off").steps[0]
    asked = rows(step, ["hello"])
    (found,) = drafted(step, models, asked, perfect(slots_of(step, models, asked), length=5))
    assert found.finish_reason == "length"
    assert (found.rounds, found.drafted_tokens, found.accepted_tokens) == (4, 20, 20)


def test_there_are_never_more_rounds_than_plain_steps(models: dict[str, HfModel]) -> None:
    """S3, with drafts of every kind; without drafts the counts are equal."""
    step = one_step(mix("A", "B"), max_tokens=20).steps[0]
    asked = rows(step)
    emitted = slots_of(step, models, asked)
    for name, guess in drafts_of(emitted).items():
        for found in drafted(step, models, asked, guess):
            steps = found.tokens - (found.finish_reason != "eos")
            assert found.rounds is not None and found.rounds <= steps
            assert name != "empty" or found.rounds == steps


@pytest.mark.parametrize("names", ["A", "AB"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_an_identical_earlier_text_gives_four_keys_a_round(
    models: dict[str, HfModel], names: str, context: str
) -> None:
    """S4: what the row is going to write is the text of the stage before; random heads of equal weight would cut it
    into keys at random, so one leads."""
    source = group(*(member(name, weight=weight) for name, weight in zip(names, (0.95, 0.05), strict=False)))
    step = one_step(source, max_tokens=48, context=context, speculate="upstream").steps[0]
    (written,) = plain(step, models, rows(step, ["hello"]))
    asked = rows(step, ["hello"], [written.text])
    made = {"batch": 1, "observer": Observer(), "drafter": make_drafter(step, None)}
    (found,) = results(list(decode(RoundDecoder(step, heads_of(step, models), **made), asked)))  # type: ignore[arg-type]
    assert said([found]) == said([written])
    assert found.rounds is not None and found.tokens / found.rounds >= 4


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_rejection_in_one_row_leaves_the_others_caches_as_they_were(models: dict[str, HfModel], context: str) -> None:
    """S5: bytes that each session holds are those of the text, whatever was rolled back beside it."""
    step = one_step(mix("A", "B"), max_tokens=16, context=context).steps[0]
    asked = rows(step, TEXTS[:2])
    emitted = slots_of(step, models, asked)
    right, wrong = perfect(emitted, length=3), mixed(emitted, 7, error=1.0)
    watched = {name: plans.Watched(models[name]) for name in "AB"}

    def guess(heads: Heads, row: LiveRow, limit: int) -> Sequence[int]:
        return (right if row.row.question_id == "q0" else wrong)(heads, row, limit)

    found = drafted(step, watched, asked, guess)
    assert said(found) == said(plain(step, models, asked))
    assert found[0].accepted_tokens == found[0].drafted_tokens > 0
    assert found[1].accepted_tokens < found[1].drafted_tokens
    for model in watched.values():
        assert model.sessions[0].rollbacks > 0
        assert all(text.startswith(before) for before, text in pairwise(model.sessions[0].texts[0]))


@pytest.mark.parametrize("context", CONTEXTS)
def test_sampled_texts_are_those_of_plain_sampling(models: dict[str, HfModel], context: str) -> None:
    """S6: a token depends on its place in the row's stream alone, so a draft is accepted with its own probability."""
    step = one_step(mix("A", "B"), temperature=0.9, top_p=0.9, max_tokens=16, context=context).steps[0]
    asked = rows(step)
    wanted = said(plain(step, models, asked))
    for guess in drafts_of(slots_of(step, models, asked)).values():
        assert said(drafted(step, models, asked, guess, batch=3)) == wanted


def test_sampled_tokens_behind_a_draft_follow_the_fused_distribution(models: dict[str, HfModel]) -> None:
    """S6: chi-square of texts of two tokens, the second always drafted, against plain sampling of another seed."""
    texts: list[Counter[str]] = []
    for seed in (1, 2):
        step = one_step(mix("A", "C"), temperature=0.5, max_tokens=2, seed=seed).steps[0]
        asked = rows(step, ["hello"] * 500)
        guess = (lambda heads, row, limit: [heads.vocabulary.slot_of_key[b"e"]]) if seed == 1 else never
        texts.append(Counter(one.text for one in drafted(step, models, asked, guess, batch=100)))
    common = [text for text, count in (texts[0] + texts[1]).items() if count >= 20]
    table = [[*(one[text] for text in common), 500 - sum(one[text] for text in common)] for one in texts]
    table = [list(column) for column in zip(*(pair for pair in zip(*table, strict=True) if any(pair)), strict=True)]
    assert len(common) >= 3
    assert chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("draft", ["alternate", "A"])
def test_a_head_that_drafts_for_itself_is_always_right(models: dict[str, HfModel], draft: str, context: str) -> None:
    """Where it is the only head, as long as its context is what it wrote."""
    plan = one_step(member("A"), speculate=draft, context=context, utf8="off", max_tokens=24)
    found = [trace.steps[0] for trace in run(plan, models, TEXTS[:3], batch=2).values()]
    assert [one.text for one in found] == answers(
        one_step(member("A"), utf8="off", max_tokens=24, context=context), models, TEXTS[:3]
    )
    if context == "native":
        assert all(one.accepted_tokens == one.drafted_tokens > 0 for one in found)
        assert all(one.rounds is not None and one.rounds <= 4 for one in found)


@pytest.mark.parametrize("draft", ["auto", "upstream", "ngram", "alternate", "C", "B"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_flow_writes_the_same_whatever_drafts(models: dict[str, HfModel], draft: str, context: str) -> None:
    """Serial and parallel stages, with a head of the group or a model outside of it as draft."""
    reading = group(*(member(name, "{question} {prev}", node=f"n_{name}", prev=("s1",), weight=0.5) for name in "AB"))

    def plan(value: str) -> Plan:
        made = chain((member("A", node="n1"), ()), (reading, ("s1",)), speculate=value, context=context, max_tokens=16)
        return replace(made, models={**made.models, "C": ModelSpec(name="C", ref="C")})

    assert answers(plan(draft), models, TEXTS[:3]) == answers(plan("off"), models, TEXTS[:3])


def test_a_draft_is_in_no_fingerprint_and_no_cache_key() -> None:
    off, named = (one_step(mix("A", "B"), speculate=draft) for draft in ("off", "C"))
    named = replace(named, models={**named.models, "C": ModelSpec(name="C", ref="C")})
    prompts = {"n0": "hello", "n1": "hello"}
    assert fingerprint(off) == fingerprint(named)
    assert step_key(off, off.steps[0], prompts, "q0") == step_key(named, named.steps[0], prompts, "q0")
    assert len(merge([off, named]).steps) == 1
    assert held_models(named, named.steps[0]) == ("A", "B", "C")


@pytest.mark.parametrize(
    ("text", "script", "place"),
    [
        (b"so the cat", b"the cat sat", 7),
        (b"abc", b"xxabcyy abc", 5),
        (b"abc", b"xyz", -1),
        (b"ab", b"ab", -1),
        (b"the cat", b"a cat and the cat sat", 17),
    ],
)
def test_a_draft_goes_on_after_the_longest_match(text: bytes, script: bytes, place: int) -> None:
    assert longest_suffix(text, script, least=3) == place


def test_among_equal_matches_the_next_one_is_taken() -> None:
    assert longest_suffix(b"abc", b"abc1 abc2 abc3", least=3, near=4) == 8


def test_a_script_goes_on_inside_a_key() -> None:
    script = Script([0, 1, 2], [b"ab", b"cde", b"f", b"d", b"e"])
    assert script.after(2, 9, lambda rest: []) == [1, 2]
    assert script.after(3, 9, lambda rest: [{b"d": 3, b"e": 4}[bytes([byte])] for byte in rest]) == [3, 4, 2]
    assert script.after(0, 1, lambda rest: []) == [0]
    assert script.after(6, 9, lambda rest: []) == []


def test_drafts_grow_when_accepted_shrink_when_rejected_and_pause_when_useless() -> None:
    pace = DraftLength(length=4)
    pace.learn(4, 4)
    assert pace.limit() == 8
    pace.learn(8, 3)
    assert pace.limit() == 4
    for _ in range(12):
        pace.learn(pace.limit(), 0)
    assert pace.limit() == 0
    assert max(pace.limit() for _ in range(200)) > 0
    for _ in range(10):
        pace.learn(1, 1)
    assert pace.length == MOST


def widths(payoff: Payoff, seconds: Callable[[int], float], wish: DraftOdds, *, num_rows: int = 4) -> list[int]:
    """Return the widths of 200 rounds that cost what a function of their width says."""
    found = []
    for _ in range(200):
        width = payoff.width([wish] * num_rows) if payoff.is_open(num_rows) else 0
        payoff.learn(num_rows, width, seconds(width))
        found.append(width)
    return found


def test_drafts_that_cost_more_than_they_save_are_given_up() -> None:
    found = widths(Payoff(), lambda width: 1.0 + width, DraftOdds(16, 0.5))
    assert not any(found[:4])
    assert 0 < sum(width > 0 for width in found) <= 6


def test_drafts_that_save_time_go_on_at_full_length() -> None:
    found = widths(Payoff(), lambda width: 1.0 + 0.1 * (width > 0), DraftOdds(16, 0.9))
    assert set(found[10:]) == {16}


def test_drafts_are_cut_to_the_width_that_pays() -> None:
    found = widths(Payoff(), lambda width: 1.0 + 0.2 * width, DraftOdds(16, 0.6))
    assert 0 < Counter(found[10:]).most_common(1)[0][0] < 8
