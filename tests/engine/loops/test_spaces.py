"""Groups whose heads disagree about white space where answers begin."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowinfer.backends.base import Prompt, network_of
from flowinfer.backends.hf import HfModel
from flowinfer.backends.known import KnownNetwork
from flowinfer.engine.adoption import renamed
from flowinfer.engine.base import Observer, Row, TokenEvent, decode
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.packing import reason_against
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.spaces import begins_with_space, joined_heads
from flowinfer.engine.loops.stream import STARTED_AT_ONCE
from flowinfer.engine.models import ModelPool
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.language.check import check
from flowinfer.planning.plan import Plan, compile, members
from flowinfer.results import StepResult
from flowinfer.spec import Decoding
from flowinfer.zoo import load_zoo
from tests.engine import plans
from tests.engine.loops.test_decoder import Models, packed_decoder, results
from tests.engine.oracle import decode_plainly
from tests.engine.plans import Listener, group, member, one_step, run
from tests.engine.test_cuda import CPU, zoo
from tests.engine.test_laws import leaning
from tests.fusion import toys

WORDS = toys.hand_made([b"\n", b"e", b":", None])
QUESTIONS = ("hello", "Once upon a time there was a little girl", "x + 1", "and then")


def disagreeing(**decoding: Any) -> Plan:
    """Return a plan of a group in which B begins behind a word, and A and C behind a line break."""
    heads = (member(name, end, node=f"n{name}", weight=1 / 3) for name, end in zip("ABC", ENDS, strict=True))
    return one_step(group(*heads), **decoding)


def asked(plan: Plan, questions: Sequence[str] = QUESTIONS) -> list[Row]:
    """Return a row per question, each head's prompt as its template has it."""
    own = [
        {one.node: one.template.replace("{question}", q) for one in members(plan.steps[0].source)} for q in questions
    ]
    return [Row(f"q{k}", "s1", prompts) for k, prompts in enumerate(own)]


ENDS = ("{question}\n", "{question}", "{question}\n")


@pytest.mark.parametrize(
    ("text", "last", "has_prefix", "found"),
    [
        ("...assistant\n", 0, False, False),
        ("...assistant\n", 0, True, False),
        ("Answer:", 2, False, True),
        ("the answer is 7", 1, False, True),
        ("[/INST]", 1, True, True),
        ("</s>", 3, False, False),
        ("[/INST]", 3, True, True),
        ("答案：", 1, False, None),
        ("<answer>", 1, False, None),
    ],
)
def test_a_prompt_shows_whether_a_word_behind_it_begins_with_a_space(
    text: str, last: int, has_prefix: bool, found: bool | None
) -> None:
    tokens = replace(WORDS, has_dummy_prefix=has_prefix)
    assert begins_with_space(Prompt(text, (last,)), tokens) is found


@pytest.mark.parametrize(
    ("texts", "option", "joined"),
    [
        (("a\n", "b:"), "auto", (False, True)),
        (("a\n", "b\n"), "auto", (False, False)),
        (("a:", "b:"), "auto", (False, False)),
        (("a\n", "答"), "auto", (False, False)),
        (("a\n", "b:"), False, (False, False)),
        (("a\n", "b:"), True, (False, False)),
    ],
)
def test_only_heads_that_disagree_are_joined(texts: tuple[str, ...], option: Any, joined: tuple[bool, ...]) -> None:
    prompts = [Prompt(text, (0,)) for text in texts]
    assert joined_heads(Decoding(lstrip_first=option), prompts, [WORDS, WORDS]) == joined


def said(found: dict[str, StepResult]) -> dict[str, tuple[Any, ...]]:
    return {key: (one.text, one.tokens, one.finish_reason, one.lstripped) for key, one in found.items()}


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_rounds_write_what_the_plain_loop_writes_and_no_space_before_it(models: Models, context: str) -> None:
    plan = disagreeing(context=context)
    rows = asked(plan)
    own = [models[name] for name in "ABC"]
    plain = decode_plainly(plan.steps[0], own, rows)
    found = results(decode(RoundDecoder(plan.steps[0], own, batch=3, observer=Observer()), rows))
    assert [found[f"q{k}"].text for k in range(len(rows))] == [one.text for one in plain]
    assert all(one.lstripped == 1 for one in found.values())


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}, {"stop": ("e",)}, {"max_tokens": 1}])
def test_a_devices_loop_goes_on_behind_the_first_token_and_writes_what_rounds_write(
    models: Models, options: dict[str, Any]
) -> None:
    plan = disagreeing(**options)
    rows = asked(plan)
    own = [models[name] for name in "ABC"]
    rounds = results(decode(RoundDecoder(plan.steps[0], own, batch=2, observer=Observer()), rows))
    heard = Listener()
    packed = results(decode(packed_decoder(plan, models, batch=2, observer=heard), rows))
    assert said(packed) == said(rounds)
    for key, one in packed.items():
        pieces = [event.piece for event in heard.events[key] if event.piece is not None]
        assert b"".join(pieces).decode(errors="replace").startswith(one.text)
        assert len(pieces) == one.tokens


@pytest.mark.parametrize(
    ("num_pages", "placement", "options"),
    [(200, None, {}), (9, None, {}), (40, (0, 1, 0), {"temperature": 0.9, "top_p": 0.9})],
)
def test_many_long_rows_begin_over_the_loops_own_pages(
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    num_pages: int,
    placement: tuple[int, ...] | None,
    options: dict[str, Any],
) -> None:
    """More than are begun at once, prompts of several pages, most of which rows share, and too few pages for all."""
    plan, own = disagreeing(max_tokens=6, **options), [models[name] for name in "ABC"]
    asked_here = [f"{2 * QUESTIONS[1]} {k}" * (1 + k % 3) for k in range(STARTED_AT_ONCE + 4)]
    rows = asked(plan, [*asked_here, *QUESTIONS])
    plain = decode_plainly(plan.steps[0], own, rows)
    monkeypatch.setattr(HfModel, "open", refused)
    decoder = packed_decoder(plan, models, batch=len(rows), num_pages=num_pages, placement=placement)
    found = results(decode(decoder, rows))
    assert [found[row.question_id].text for row in rows] == [one.text for one in plain]
    assert all(one.lstripped == 1 for one in found.values())
    assert set(decoder.free_pages.values()) == {num_pages}


def test_a_chain_begins_with_other_heads(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, own = disagreeing(max_tokens=6), [models[name] for name in "ABC"]
    rows = asked(plan)
    plain = decode_plainly(plan.steps[0], own, rows)
    networks = [copy.deepcopy(model.transformers_model) for model in own]
    runners = [HeadRunner(network, cuts) for network, cuts in zip(networks, ((1,), (1,), ()), strict=True)]
    monkeypatch.setattr(HfModel, "open", refused)
    decoder = packed_decoder(plan, models, batch=3, placement=(0, 1, 1, 0, 2), runners=runners)
    found = results(decode(decoder, rows))
    assert [found[row.question_id].text for row in rows] == [one.text for one in plain]


def test_a_row_whose_first_token_fails_ends_alone_and_gives_back_its_pages(models: Models) -> None:
    class Deaf(Observer):
        wants_tokens = True

        def emitted(self, question_id: str, step: str, event: TokenEvent) -> None:
            if question_id == "q1":
                raise ValueError("not this one")

    plan = disagreeing(max_tokens=6)
    rows = asked(plan)
    expected = said(results(decode(packed_decoder(plan, models, batch=4), rows)))
    decoder = packed_decoder(plan, models, batch=4, observer=Deaf())
    found = {done.row.question_id: done for done in decode(decoder, rows)}
    assert "not this one" in str(found["q1"].error)
    del found["q1"], expected["q1"]
    assert said(results(found.values())) == expected
    assert set(decoder.free_pages.values()) == {40}


def test_heads_that_are_known_from_their_files_begin_without_transformers_networks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To build these takes longer than all else that a first answer waits for."""
    raw = f'model Raw = "{load_zoo("lab").models["Qwen"].ref}" {{ chat=off, dtype=float32, device=cpu }}'
    flow = f'{raw}\n(Raw[prompt="Question: {{question}}\\nAnswer:"] | Ds)'
    plan = compile(check(flow, zoo=zoo(tmp_path / "cpu", CPU), overrides={"max_tokens": "3"}))
    pool = ModelPool()
    own = {one.model: pool.get(plan, one.model, Observer()) for one in members(plan.steps[0].source)}
    assert all(isinstance(network_of(model), KnownNetwork) for model in own.values())  # type: ignore[arg-type]
    monkeypatch.setattr(KnownNetwork, "whole", refused)
    found = results(decode(packed_decoder(plan, own, batch=2), asked(plan, QUESTIONS[:2])))  # type: ignore[arg-type]
    assert [one.lstripped for one in found.values()] == [1, 1]
    assert all(one.tokens for one in found.values())


def refused(*_: object) -> None:
    raise AssertionError("nothing is asked of transformers' own network")


def test_a_device_decodes_disagreeing_groups_whole(models: Models) -> None:
    heads = Heads(disagreeing().steps[0], [models[name] for name in "ABC"], observer=Observer())
    assert reason_against(heads) is None


def spaced(models: Models) -> dict[str, Any]:
    """Return A, which wants `x`, and B, which wants ` x` a little more than `y`."""
    of_a, of_b = (models[name].vocabulary().tokens.id_of for name in "AB")
    spaced_x = next(key for key in of_b if len(key) == 2 and key[:1] == b" " and key[1:] in of_b and key[1:] in of_a)
    bare, other = spaced_x[1:], b"y" if spaced_x[1:] != b"y" else b"z"
    return {
        "A": leaning(models["A"], [of_a[bare], of_a[other]], [0.45, 0.55]),
        "B": leaning(models["B"], [of_b[spaced_x], of_b[other]], [0.9, 0.1]),
        "bare": bare.decode(),
    }


def pair(**decoding: Any) -> Plan:
    return one_step(
        group(member("A", "{question}\n", node="nA", weight=0.5), member("B", node="nB", weight=0.5)), **decoding
    )


def test_a_head_that_begins_with_a_space_loses_no_vote(models: Models) -> None:
    heads = spaced(models)
    bare = heads.pop("bare")
    told = Listener()
    assert run(pair(max_tokens=1), heads, ["hello"], observer=told)["q0"].answer == bare
    assert run(pair(max_tokens=1, lstrip_first=False), heads, ["hello"])["q0"].answer == f" {bare}"
    assert [note for note in told.notices if "'B' begins answers with a space behind 'hello', 'A' with none" in note]


def test_a_head_that_would_begin_with_a_space_alone_reads_it_before_it_votes(models: Models) -> None:
    """Where digits are tokens of their own, an answer behind `Answer:` begins with a space and then a digit."""
    of_a, of_b = (models[name].vocabulary().tokens.id_of for name in "AB")
    wants = leaning(models["A"], [of_a[b"x"], of_a[b"y"]], [0.45, 0.55])
    space = models["B"].vocabulary().tokens.id_of[b" "]

    def first_a_space(logits: torch.Tensor) -> torch.Tensor:
        made = torch.full_like(logits, -40.0)
        made[:, of_b[b"x"] if any(space in s.ids.get(0, ())[-1:] for s in b.sessions) else space] = 0.0
        return made

    b = plans.Watched(models["B"], logits=first_a_space)
    trace = run(pair(max_tokens=1), {"A": wants, "B": b}, ["hello"])["q0"]
    assert trace.answer == "x"
    assert trace.steps[0].prompts["nB"].endswith("hello ")


def test_stored_results_of_groups_that_may_disagree_are_not_taken_from_before(models: Models) -> None:
    made = run(pair(), {name: models[name] for name in "AB"}, ["hello"])["q0"].steps[0]
    old = made.model_copy(update={"lstripped": None})
    step, nodes = pair().steps[0], ["nA", "nB"]
    assert made.lstripped == 1 and renamed(made, nodes, step) is not None
    assert renamed(old, nodes, step) is None
    assert renamed(old, nodes, pair(lstrip_first=False).steps[0]) is not None
    alike = old.model_copy(update={"prompts": {node: "assistant\n" for node in nodes}})
    assert renamed(alike, nodes, step) is not None


def test_the_default_is_known_to_caches_as_the_former_default_was() -> None:
    assert Decoding().decisive()["lstrip_first"] is False
    assert Decoding(lstrip_first=True).decisive()["lstrip_first"] is True
    assert Decoding(lstrip_first=False).decisive() != Decoding().decisive()


def test_groups_that_agree_write_bit_for_bit_what_they_wrote(models: Models) -> None:
    own = [models[name] for name in "ABC"]
    texts = []
    for option in ("auto", False):
        plan = one_step(plans.mix("A", "B", "C"), lstrip_first=option)
        found = decode(RoundDecoder(plan.steps[0], own, batch=3, observer=Observer()), asked(plan))
        texts.append({key: one.text for key, one in results(found).items()})
    assert texts[0] == texts[1]
