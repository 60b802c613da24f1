"""Heads elsewhere write what they write here: groups, contexts, draws, drafts; and what goes between is little."""

from __future__ import annotations

from typing import Any

import pytest

from flowinfer.backends.base import is_elsewhere
from flowinfer.backends.hf import HfModel
from flowinfer.remote.client import RemoteModel, RemoteSession
from tests.engine import plans
from tests.engine.plans import answers, group, last_step, member, mix, one_step, run
from tests.remote.conftest import Serve

TEXTS = plans.QUESTIONS[:5]


def told(plan: Any, models: Any, **options: Any) -> dict[str, tuple[object, ...]]:
    """Return what both must agree on."""
    found = {key: last_step(trace) for key, trace in run(plan, models, TEXTS, **options).items()}
    return {
        key: (
            result.text,
            result.finish_reason,
            result.near_ties,
            [(head.fed_tokens, head.prompt_tokens, head.agreement) for head in result.heads],
        )
        for key, result in found.items()
    }


CASES = {
    "mean": (mix("A", "B", "C"), {}),
    "weights": (group(member("A", weight=0.7), member("C", weight=0.3)), {}),
    "nested": (group(member("A", weight=0.5), group(member("B"), member("C"), weight=0.5)), {}),
    "one vocabulary": (mix("A", "B"), {}),
    "alone": (member("A"), {}),
    "geometric": (mix("A", "C", fuse="geometric"), {}),
    "vote": (mix("A", "C", fuse="vote"), {}),
    "drawn": (mix("A", "C"), {"temperature": 1.2, "top_p": 0.8}),
    "canonical": (mix("A", "C"), {"context": "canonical"}),
    "drafts": (mix("A", "C"), {"speculate": "auto"}),
    "strict": (mix("A", "C"), {"strict": True, "near_tie_eps": 0.01}),
    "dense": (mix("A", "C"), {"topk": "dense"}),
    "largest end": (mix("A", "C"), {"eos": "max"}),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_elsewhere_write_what_they_write_here(models: dict[str, HfModel], serve: Serve, case: str) -> None:
    source, options = CASES[case]
    plan = one_step(source, max_tokens=8, **options)
    far = {name: serve(model) if name != "B" else model for name, model in models.items()}
    assert told(plan, far) == told(plan, models)


@pytest.mark.parametrize("case", ["mean", "geometric", "drawn"], ids=str)
def test_whole_distributions_that_go_beside_the_connection_give_the_same_text(
    models: dict[str, HfModel], serve: Serve, case: str
) -> None:
    source, options = CASES[case]
    plan = one_step(source, max_tokens=8, **options)
    far = serve(models["A"], is_direct=True)
    assert far.is_direct
    received = far.traffic.received
    assert told(plan, models | {"A": far}) == told(plan, models)
    assert far.traffic.received > received


@pytest.mark.parametrize("batch", ["auto", 5])
def test_more_rows_than_a_head_takes_are_decoded_in_parts(models: dict[str, HfModel], serve: Serve, batch: Any) -> None:
    """It says how many it takes; where more were asked for, the batch is halved until they fit."""
    plan = one_step(mix("A", "C"), max_tokens=4)
    far = models | {"A": serve(models["A"], rows=2)}
    assert answers(plan, far, TEXTS, batch=batch) == answers(plan, models, TEXTS)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[RemoteSession]:
    """Collect the sessions that are opened."""
    made: list[RemoteSession] = []
    begin = RemoteSession.__init__

    def note(session: RemoteSession, model: RemoteModel, number: int) -> None:
        begin(session, model, number)
        made.append(session)

    monkeypatch.setattr(RemoteSession, "__init__", note)
    return made


def test_greedy_groups_move_candidates_and_fetch_little(
    models: dict[str, HfModel], serve: Serve, sessions: list[RemoteSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random models are nearly flat, where few candidates settle nothing: with all columns but one they settle it."""
    plan = one_step(mix("A", "C"), max_tokens=8)
    far = serve(models["A"])
    assert is_elsewhere(far)
    for count, settles in ((4, False), (100_000, True)):
        monkeypatch.setattr("flowinfer.engine.loops.rounds.CANDIDATES", count)
        sessions.clear()
        assert told(plan, models | {"A": far}) == told(plan, models)
        answered, fetched = (sum(getattr(one, name) for one in sessions) for name in ("num_answered", "num_fetched"))
        assert answered and (fetched == 0) == settles


def test_what_is_drawn_asks_for_whole_distributions(
    models: dict[str, HfModel], serve: Serve, sessions: list[RemoteSession]
) -> None:
    run(one_step(mix("A", "C"), max_tokens=4, temperature=0.7), models | {"A": serve(models["A"])}, TEXTS)
    assert sessions and not any(one.num_answered for one in sessions)


def test_a_round_of_a_batch_is_one_message(
    models: dict[str, HfModel], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    far = serve(models["A"])
    ask = far._ask
    monkeypatch.setattr(far, "_ask", lambda question: asked.append(question.ask) or ask(question))
    found = run(one_step(member("A"), max_tokens=8), {"A": far}, TEXTS, batch=len(TEXTS))
    longest = max(last_step(trace).tokens for trace in found.values())
    assert asked.count("work") <= longest + 3  # prompts, their logits, then one a round
    counted = far.traffic
    assert counted.messages == len(asked) and 0 < counted.worked <= counted.waited
    assert min(counted.sent, counted.received) > 20 * counted.messages
