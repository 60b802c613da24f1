"""Laws of decoding: copies, groups of one, permutations, nesting, weights and ends, on tiny random models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.fusion import shared
from flowinfer.fusion.utf8 import trim
from flowinfer.planning.plan import Member
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import answers, group, last_step, member, mix, one_step, run
from tests.fusion import toys

FUSERS = ("mean", "geometric", "power", "unite", "gated", "drop", "entropy", "vote", "sharpen")
CONTEXTS = ("native", "canonical")


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "C": tiny.model("gpt2", "C", seed=2, tokenizer=toys.byte_level(330)),
        "W": tiny.model("mistral", "W", seed=3),
        "A2": tiny.model("qwen2", "A2", seed=4),
    }


def twins(model: HfModel) -> list[int]:
    """Return the ids whose bytes another id is preferred for: bytes of the fallback that have a piece of their own."""
    tokens = model.vocabulary().tokens
    return [i for i in model.vocabulary().text_ids() if tokens.id_of[tokens.pieces[i] or b""] != i]


def generated(model: HfModel, text: str, max_tokens: int, without: Sequence[int] = ()) -> str:
    """Return what transformers' own generate writes, with the ids suppressed that write nothing."""
    vocabulary = model.vocabulary()
    writing = {*vocabulary.text_ids(), *vocabulary.eos_ids} - set(without)
    ids = torch.tensor([model.prompt(text).ids])
    whole = model._model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        suppress_tokens=[i for i in range(vocabulary.num_columns) if i not in writing],
        eos_token_id=sorted(vocabulary.eos_ids),
        pad_token_id=0,
    )
    written = [i for i in whole[0, ids.shape[1] :].tolist() if i not in vocabulary.eos_ids]
    data = b"".join(vocabulary.tokens.pieces[i] or b"" for i in written)
    return trim(data).decode(errors="replace")


@pytest.mark.parametrize("name", ["A", "B", "C", "W"])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.3, 0.5)], ids=lambda shares: f"{len(shares)} copies")
def test_copies_of_a_model_write_what_its_own_generate_writes(
    models: dict[str, HfModel], name: str, shares: tuple[float, ...]
) -> None:
    copies = group(*(member(name, node=f"n{k}", weight=share) for k, share in enumerate(shares)))
    plan = one_step(copies, utf8="off", eos="max")
    texts = plans.QUESTIONS[1:4]
    assert answers(plan, models, texts) == [generated(models[name], text, 16) for text in texts]


@pytest.mark.parametrize("name", ["A", "B", "C", "W"])
def test_copies_of_a_model_in_a_forced_union_write_the_same_bytes(
    models: dict[str, HfModel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are then sorted bytes instead of ids; second tokens of a byte, whose mass would add, are silenced."""
    monkeypatch.setattr(shared, "_are_equal", lambda heads: False)
    doubled = twins(models[name])
    assert bool(doubled) == (name in "BW")

    def silence(logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(1, torch.tensor(doubled, dtype=torch.int64), -1e9)

    copies = group(*(member(name, node=f"n{k}", weight=share) for k, share in enumerate((0.2, 0.8))))
    plan, texts = one_step(copies, utf8="off", eos="max"), plans.QUESTIONS[1:4]
    written = answers(plan, {name: plans.Watched(models[name], logits=silence)}, texts)
    assert written == [generated(models[name], text, 16, doubled) for text in texts]


@pytest.mark.parametrize("name", ["A", "B", "C", "W"])
def test_one_head_writes_what_its_own_generate_writes(models: dict[str, HfModel], name: str) -> None:
    plan, texts = one_step(member(name), utf8="off", eos="max", max_tokens=24), plans.QUESTIONS[:4]
    assert answers(plan, models, texts) == [generated(models[name], text, 24) for text in texts]


@pytest.mark.parametrize(
    ("fuse", "context", "name"),
    [
        *((fuse, "native", name) for fuse in FUSERS if fuse != "sharpen" for name in "AB"),
        *(("mean", "canonical", name) for name in "ABCW"),
    ],
)
def test_group_of_one_equals_the_model(models: dict[str, HfModel], fuse: str, context: str, name: str) -> None:
    """Not so for sharpening, which moves mass inside one model's distribution too."""
    utf8 = "off" if fuse == "unite" else "strict"  # its ten candidates may all be forbidden
    plan, alone = (one_step(source, context=context, utf8=utf8) for source in (mix(name, fuse=fuse), member(name)))
    assert answers(plan, models, plans.QUESTIONS[:3]) == answers(alone, models, plans.QUESTIONS[:3])


@pytest.mark.parametrize(
    ("fuse", "context"), [*((fuse, "native") for fuse in FUSERS), ("mean", "canonical"), ("unite", "canonical")]
)
def test_permuted_branches_write_the_same_with_the_same_bits(
    models: dict[str, HfModel], fuse: str, context: str
) -> None:
    shares = {"A": 0.5, "B": 0.2, "C": 0.3}
    options: dict[str, Any] = {"primary": "B"} if fuse == "gated" else {}
    seen = []
    for order in ("ABC", "CAB", "BCA"):
        sources = [member(name, weight=shares[name]) for name in order]
        listener = plans.Listener()
        run(
            one_step(group(*sources, fuse=fuse, **options), context=context, max_tokens=8),
            models,
            plans.QUESTIONS[:2],
            observer=listener,
        )
        seen.append(
            [[(event.piece, event.probability) for event in listener.events[q]] for q in sorted(listener.events)]
        )
    assert all(one == seen[0] for one in seen)


def test_permuted_branches_of_one_model_with_different_prompts_keep_their_bits(models: dict[str, HfModel]) -> None:
    """Node ids follow the order of the text, so they must not decide the order of the sum."""
    templates = ("{question}", "Q: {question}", "{question} the answer")
    seen = []
    for order in permutations(templates):
        listener = plans.Listener()
        sources = [member("A", template, node=f"n{k}", weight=1 / 3) for k, template in enumerate(order)]
        run(one_step(group(*sources)), models, plans.QUESTIONS[:2], observer=listener)
        seen.append([[event.probability for event in listener.events[q]] for q in sorted(listener.events)])
    assert all(one == seen[0] for one in seen)


def test_nested_groups_multiply_their_shares(models: dict[str, HfModel]) -> None:
    inner = group(member("B", weight=0.25), member("C", weight=0.75), weight=0.6)
    nested = group(member("A", weight=0.4), inner)
    flat = group(member("A", weight=0.4), member("B", weight=0.15), member("C", weight=0.45))
    assert answers(one_step(nested), models) == answers(one_step(flat), models)


def test_nested_groups_may_have_fusers_of_their_own(models: dict[str, HfModel]) -> None:
    inner = group(member("B"), member("C"), fuse="geometric", weight=0.5)
    listener = plans.Listener()
    run(one_step(group(member("A", weight=0.5), inner)), models, plans.QUESTIONS[:2], observer=listener)
    assert all(len(event.heads) == 3 for event in listener.events["q0"])


def test_scaled_weights_write_the_same(models: dict[str, HfModel]) -> None:
    small = group(member("A", weight=0.1), member("B", weight=0.3))
    large = group(member("A", weight=100.0), member("B", weight=300.0))
    assert answers(one_step(small), models) == answers(one_step(large), models)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("winner", ["A", "C"])
def test_all_weight_on_one_head_writes_what_it_writes_alone(
    models: dict[str, HfModel], winner: str, context: str
) -> None:
    """Byte-level heads: no byte has a second token, so the shared vocabulary keeps every choice."""
    sources = [member(name, weight=float(name == winner)) for name in "ABC"]
    alone = answers(one_step(member(winner), context=context), models)
    assert answers(one_step(group(*sources), context=context), models) == alone


def test_weights_decide_between_heads_that_disagree(models: dict[str, HfModel]) -> None:
    texts = {
        weight: answers(one_step(group(member("A", weight=weight), member("C", weight=1 - weight))), models)
        for weight in (0.01, 0.99)
    }
    alone = {name: answers(one_step(member(name)), models) for name in "AC"}
    first = {key: [text[:1] for text in value] for key, value in (texts | alone).items()}
    assert first[0.99] == first["A"]
    assert first[0.01] == first["C"]


def test_halves_of_a_head_equal_the_head(models: dict[str, HfModel]) -> None:
    whole = group(member("A", weight=0.5), member("B", weight=0.5))
    halves = group(member("A", node="n1", weight=0.25), member("A", node="n2", weight=0.25), member("B", weight=0.5))
    assert answers(one_step(halves), models) == answers(one_step(whole), models)


@pytest.mark.parametrize("names", ["AB", "AC", "ABC"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_certified_choice_writes_what_the_dense_one_writes(
    models: dict[str, HfModel], names: str, context: str
) -> None:
    dense, certified = (
        answers(one_step(mix(*names), topk=topk, context=context), models) for topk in ("dense", "certified")
    )
    assert dense == certified


def test_gate_above_1_writes_what_the_mean_writes(models: dict[str, HfModel]) -> None:
    gated = mix("A", "B", fuse="gated", tau=1.5, primary="A")
    assert answers(one_step(gated), models) == answers(one_step(mix("A", "B")), models)


def test_gate_at_0_writes_what_its_primary_writes(models: dict[str, HfModel]) -> None:
    gated = mix("A", "C", fuse="gated", tau=0.0, primary="C")
    assert answers(one_step(gated), models) == answers(one_step(member("C")), models)


@pytest.mark.parametrize("junk", [1e4, float("inf"), float("nan")])
def test_padded_logit_columns_never_win(models: dict[str, HfModel], junk: float) -> None:
    def spoil(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[:, -3:] = junk
        return logits

    spoiled = {**models, "A": plans.Watched(models["A"], logits=spoil)}
    for source in (member("A"), mix("A", "B")):
        assert answers(one_step(source), spoiled) == answers(one_step(source), models)


def leaning(model: HfModel, ids: list[int], probs: list[float]) -> plans.Watched:
    """Return a model that always gives these ids these probabilities and all others next to none."""

    def lean(logits: torch.Tensor) -> torch.Tensor:
        made = torch.full_like(logits, -40.0)
        made[:, ids] = torch.tensor(probs).log()
        return made

    return plans.Watched(model, logits=lean)


def test_pooled_votes_end_the_row_though_no_end_token_leads(models: dict[str, HfModel]) -> None:
    """Three heads with 0.45 on an end token of their own and 0.55 on a letter of their own."""
    heads: dict[str, Any] = {}
    for letter, name in zip(b"xyz", "ABC", strict=True):
        vocabulary = models[name].vocabulary()
        letter_id = vocabulary.tokens.id_of[bytes([letter])]
        heads[name] = leaning(models[name], [min(vocabulary.eos_ids), letter_id], [0.45, 0.55])
    trace = run(one_step(mix(*"ABC")), heads, ["hello"])["q0"]
    assert (trace.answer, trace.finish_reason) == ("", "eos")
    assert run(one_step(member("A")), heads, ["hello"])["q0"].answer == "x" * 16


def test_an_end_is_heard_as_a_token_without_bytes_and_not_counted(models: dict[str, HfModel]) -> None:
    ends = leaning(models["A"], [2], [1.0])
    listener = plans.Listener()
    trace = run(one_step(member("A")), {"A": ends}, ["hello"], observer=listener)["q0"]
    assert [event.piece for event in listener.events["q0"]] == [None]
    assert last_step(trace).tokens == 0


@pytest.mark.parametrize("eos", ["sum", "max"])
def test_several_end_tokens_of_a_head_are_pooled_as_asked(models: dict[str, HfModel], eos: str) -> None:
    letter = models["A"].vocabulary().tokens.id_of[b"x"]
    heads = {"A": leaning(models["A"], [0, 2, letter], [0.3, 0.3, 0.4])}
    reason = run(one_step(member("A"), eos=eos), heads, ["hello"])["q0"].finish_reason
    assert reason == ("eos" if eos == "sum" else "length")


def test_user_stop_token_ends_the_row(models: dict[str, HfModel]) -> None:
    heads = {"A": leaning(models["A"], [1], [1.0])}
    trace = run(one_step(member("A"), stop_tokens=("<|im_start|>",)), heads, ["hello"])["q0"]
    assert (trace.answer, trace.finish_reason) == ("", "eos")


@pytest.mark.parametrize("names", ["A", "AC", "ABC", "AW", "AA2"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_bytes_of_every_heads_ids_are_the_text_at_every_step(
    models: dict[str, HfModel], names: str, context: str
) -> None:
    chosen = ["A", "A2"] if names == "AA2" else list(names)
    watched = {name: plans.Watched(models[name]) for name in chosen}
    listener = plans.Listener()
    traces = run(one_step(mix(*chosen), context=context), watched, plans.QUESTIONS[:4], batch=3, observer=listener)
    starters = [question for question, _ in listener.order]
    for head in watched.values():
        (session,) = head.sessions
        for question, texts in zip(starters, session.texts.values(), strict=True):
            emitted = listener.texts(question)
            assert texts == emitted[: len(texts)]
            assert len(emitted) - len(texts) == (traces[question].finish_reason != "eos")


@pytest.mark.parametrize("context", CONTEXTS)
def test_first_tokens_may_be_joined_to_a_dummy_prefix(models: dict[str, HfModel], context: str) -> None:
    watched = {name: plans.Watched(models[name]) for name in "ABC"}
    listener = plans.Listener()
    plan = one_step(mix("A", "B", "C"), context=context, lstrip_first=True)
    run(plan, watched, plans.QUESTIONS[:4], batch=3, observer=listener)
    starters = [question for question, _ in listener.order]
    joined = [head for head in watched.values() if head.vocabulary().tokens.has_dummy_prefix]
    assert 0 < len(joined) < 3
    for head in watched.values():
        (session,) = head.sessions
        prefix = b" " if head in joined else b""
        for question, texts in zip(starters, session.texts.values(), strict=True):
            assert texts == [prefix + text for text in listener.texts(question)[: len(texts)]]


def test_prompt_ids_never_change(models: dict[str, HfModel]) -> None:
    watched = {name: plans.Watched(models[name]) for name in "AB"}
    run(one_step(mix("A", "B"), context="canonical"), watched, ["hello"])
    for head in watched.values():
        (session,) = head.sessions
        assert session.prompts == {0: list(head.prompt("hello").ids)}


@pytest.mark.parametrize("context", CONTEXTS)
def test_only_new_ids_are_fed(models: dict[str, HfModel], context: str) -> None:
    """One prefill a row, and then about one id a token: nothing is read twice."""
    watched = {name: plans.Watched(models[name]) for name in "AB"}
    trace = run(one_step(mix("A", "B"), context=context, max_tokens=40), watched, ["hello"])["q0"]
    result = last_step(trace)
    for head, times in zip(("A", "B"), result.heads, strict=True):
        (session,) = watched[head].sessions
        assert times.fed_tokens == session.fed
        assert session.num_forwards <= result.tokens + 1
        assert times.prompt_tokens == len(session.prompts[0])
    assert watched["A"].sessions[0].fed <= 6 * result.tokens


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("names", ["AW", "W"])
def test_sliding_window_heads_work_in_a_group(models: dict[str, HfModel], names: str, context: str) -> None:
    source = mix(*names)
    plan, texts = one_step(source, context=context), plans.QUESTIONS[2:5]
    batched = answers(plan, models, texts, batch=2)
    assert batched == answers(plan, models, texts, batch=1)
    assert any(batched)


def test_text_is_valid_utf8_with_the_guard_and_may_break_without(models: dict[str, HfModel]) -> None:
    strict = answers(one_step(mix("A", "B", "C"), max_tokens=40), models)
    loose = answers(one_step(mix("A", "B", "C"), max_tokens=40, utf8="off"), models)
    assert not any("\ufffd" in text for text in strict)
    assert any("\ufffd" in text for text in loose)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5])
def test_an_emoji_cut_by_max_tokens_is_left_out(models: dict[str, HfModel], max_tokens: int) -> None:
    tokens = models["A"].vocabulary().tokens
    emoji = [tokens.id_of[bytes([byte])] for byte in "😀".encode()]

    class Typist:
        def __init__(self) -> None:
            self.at = 0

        def __call__(self, logits: torch.Tensor) -> torch.Tensor:
            made = torch.full_like(logits, -40.0)
            made[:, emoji[self.at % 4]] = 0.0
            self.at += 1
            return made

    heads = {"A": plans.Watched(models["A"], logits=Typist())}
    trace = run(one_step(member("A"), max_tokens=max_tokens), heads, ["hello"])["q0"]
    assert trace.answer == "😀" * (max_tokens // 4)
    assert last_step(trace).tokens == max_tokens


def test_heads_without_words_in_common_still_agree_on_bytes(models: dict[str, HfModel]) -> None:
    """The share of tokens that were a head's own favourite lies between 0 and 1, and one head alone always agrees."""
    pair = last_step(run(one_step(mix("A", "B")), models, ["hello"])["q0"])
    assert all(head.agreement is not None and 0 <= head.agreement <= 1 for head in pair.heads)
    alone = last_step(run(one_step(member("A"), utf8="off"), models, ["hello"])["q0"])
    assert alone.heads[0].agreement == 1.0


def test_group_takes_members_in_any_nesting_of_one(models: dict[str, HfModel]) -> None:
    nested: Member | Any = member("A")
    for _ in range(3):
        nested = group(nested)
    assert answers(one_step(nested), models) == answers(one_step(member("A")), models)
