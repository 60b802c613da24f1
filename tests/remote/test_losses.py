"""Groups that may go on without a head (`min=`): until it is lost the text is the whole group's, then the others'."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.errors import HeadLost
from flowinfer.fusion.advance import new_context
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.language.check import check
from flowinfer.planning.plan import Mixture, Plan, compile
from flowinfer.remote import client
from flowinfer.remote.client import RemoteModel
from flowinfer.spec import ModelSpec
from tests.engine import plans
from tests.engine.plans import Listener, group, last_step, member, one_step, run
from tests.remote.conftest import holding

TEXTS = plans.QUESTIONS[:4]
TOKENS = 10


class Leaving:
    """A head that answers so many questions about its rows, and is gone then; until it comes back where it was."""

    def __init__(
        self, model: HfModel, answers: int, *, comes_back_after: int = 1 << 30, is_direct: bool = False
    ) -> None:
        self._model, self._answers, self._port, self._is_direct = model, answers, 0, is_direct
        self._refused, self._patience = 0, comes_back_after
        self._begin()
        spec = ModelSpec(name=model.name, ref=model.name, backend="remote", base_url=f"127.0.0.1:{self._port}")
        self.model = RemoteModel(spec)
        ask, connect = self.model._ask, self.model._connect
        self.model._ask = lambda question: self._counted(question, ask)  # type: ignore[method-assign]
        self.model._connect = lambda: self._maybe(connect)  # type: ignore[method-assign]

    def _begin(self) -> None:
        self.server = holding(self._model, is_direct=self._is_direct)
        _, self._port = self.server.listen("127.0.0.1", self._port)
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()

    def _counted(self, question: Any, ask: Callable[[Any], Any]) -> Any:
        if question.ask == "work":
            self._answers -= 1
            if self._answers == 0:
                self.end()
        return ask(question)

    def _maybe(self, connect: Callable[[], Any]) -> Any:
        self._refused += 1
        if self._refused > self._patience and not self._thread.is_alive():
            self._begin()
        return connect()

    def end(self) -> None:
        self.server.close()
        self._thread.join()

    def close(self) -> None:
        self.model.close()
        self.end()


Leave = Callable[..., RemoteModel]


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Iterator[Leave]:
    """Yield what makes a head that leaves; nobody waits for it to come back."""
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.0)
    made: list[Leaving] = []

    def make(model: HfModel, answers: int, **options: Any) -> RemoteModel:
        made.append(Leaving(model, answers, **options))
        return made[-1].model

    yield make
    for one in made:
        one.close()


def weighted(least: int | None = 2, **options: Any) -> Plan:
    sources = (member("A", weight=0.5), member("B", weight=0.3), member("C", weight=0.2))
    return one_step(Mixture("g", "mean", {}, sources, 1.0, least), max_tokens=TOKENS, **options)


def rest(**options: Any) -> Plan:
    return one_step(group(member("A", weight=0.5), member("C", weight=0.2)), max_tokens=TOKENS, **options)


class Others:
    """A and C alone, behind any text that all three have begun."""

    def __init__(self, models: dict[str, HfModel], **options: Any) -> None:
        step, self._models = rest(**options).steps[0], [models["A"], models["C"]]
        self._kind = step.decoding.context
        self._everybody = Mixer(weighted(**options).steps[0], [models[name] for name in "ABC"]).vocabulary
        self._mixer = Mixer(step, self._models)

    @torch.inference_mode()
    def wish(self, text: str, pieces: Sequence[bytes]) -> bytes | None:
        """Return what they write behind a prompt and pieces."""
        slots, logits, state = [self._everybody.slot_of_key[piece] for piece in pieces], [], BOUNDARY
        for slot in slots:
            state = self._everybody.guard.advance(state, slot)
        for k, model in zip((0, 2), self._models, strict=True):
            context = new_context(self._kind, model.tokenizer, model.vocabulary().tokens, lstrip_first=False)
            for piece, slot in zip(pieces, slots, strict=True):
                context.append(piece, self._everybody.ids(k, slot))
            session = model.open()
            logits.append(session.logits(session.add([[*model.prompt(text).ids, *context.ids]])))
        vocabulary = self._mixer.vocabulary
        allowed = vocabulary.guard.mask(torch.tensor([state]))
        slot = int(self._mixer.fused(logits).masked_fill(~allowed, -1.0).argmax())
        return None if slot == vocabulary.eos_slot else vocabulary.keys[slot]


def pieces_of(heard: Listener, question_id: str) -> list[bytes | None]:
    return [event.piece for event in heard.events[question_id]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"context": "canonical"}, marks=pytest.mark.slow),
        pytest.param({"speculate": "auto"}, marks=pytest.mark.slow),
        pytest.param({"topk": "dense"}, marks=pytest.mark.slow),  # whole distributions, beside the connection
    ],
    ids=str,
)
def test_the_text_goes_on_as_the_others_would_write_it_behind_what_all_wrote(
    models: dict[str, HfModel], leave: Leave, options: dict[str, Any]
) -> None:
    whole, heard = Listener(), Listener()
    run(weighted(**options), models, TEXTS, observer=whole, batch=2)
    far = leave(models["B"], 6, is_direct="topk" in options)
    assert far.is_direct == ("topk" in options)
    found = run(weighted(**options), models | {"B": far}, TEXTS, observer=heard, batch=2)
    starts, others = set(), Others(models, **options)
    for index, text in enumerate(TEXTS):
        key = f"q{index}"
        head = last_step(found[key]).heads[1]
        written = pieces_of(heard, key)
        at = len(written) if head.lost_at is None else head.lost_at
        starts.add(at)
        assert written[:at] == pieces_of(whole, key)[:at]
        for place in range(at, len(written)):
            before = [piece for piece in written[:place] if piece is not None]
            assert written[place] == others.wish(text, before), (key, place)
    assert 0 in starts and starts & set(range(1, TOKENS))  # some began without it, some went on without it
    assert len([notice for notice in heard.notices if "goes on without it" in notice]) >= 1


def test_what_a_lost_head_wished_is_neither_told_nor_counted(models: dict[str, HfModel], leave: Leave) -> None:
    heard = Listener()
    found = run(weighted(), models | {"B": leave(models["B"], 4)}, TEXTS[:1], observer=heard)
    head = last_step(found["q0"]).heads[1]
    assert head.lost_at and head.agreement is not None and 0 <= head.agreement <= 1
    voices = [len(event.heads) for event in heard.events["q0"]]
    assert voices == [3] * head.lost_at + [2] * (len(voices) - head.lost_at)


@pytest.mark.parametrize(
    ("plan", "is_allowed"),
    [
        (weighted(None), False),
        (weighted(3), False),
        (one_step(group(member("A"), group(member("B"), member("C"))), max_tokens=4), False),
        (
            one_step(Mixture("g", "mean", {}, (member("A"), group(member("B"), member("C"))), 1.0, 1), max_tokens=4),
            True,
        ),
        (one_step(group(member("A"), Mixture("h", "mean", {}, (member("B"), member("C")), 1.0, 1))), True),
        (one_step(Mixture("g", "geometric", {}, (member("A"), member("B")), 1.0, 1), max_tokens=4), True),
    ],
    ids=["no min", "all are needed", "nested without", "a whole branch", "within a branch", "another fuser"],
)
def test_a_group_goes_on_where_each_group_around_the_head_allows_it(
    models: dict[str, HfModel], leave: Leave, plan: Plan, is_allowed: bool
) -> None:
    far = models | {"B": leave(models["B"], 4)}
    if not is_allowed:
        with pytest.raises(HeadLost, match="head 'B' at"):
            run(plan, far, TEXTS[:2])
        return
    for trace in run(plan, far, TEXTS[:2]).values():
        assert all(head.lost_at is not None for head in last_step(trace).heads if head.model == "B")


def test_a_head_that_is_back_writes_with_rows_that_begin_then(models: dict[str, HfModel], leave: Leave) -> None:
    far = leave(models["B"], 6, comes_back_after=1)
    found = run(weighted(), models | {"B": far}, TEXTS, batch=2)
    lost = [last_step(found[f"q{k}"]).heads[1].lost_at for k in range(len(TEXTS))]
    assert any(lost) and lost[-1] is None


def test_a_member_of_a_quorum_that_is_lost_fails_no_question(models: dict[str, HfModel], leave: Leave) -> None:
    text = 'model A = "a"\nmodel B = "b" { device="127.0.0.1:1" }\n(A & B)[min=1, max_tokens=4, speculate=off]'
    far = leave(models["B"], 4)
    found = run(compile(check(text)), models | {"B": far}, TEXTS, batch=2)
    assert not any(trace.error for trace in found.values())
    lost = [str(taken) for trace in found.values() for taken in trace.selections if taken.lost]
    assert lost and all("2 lost: head 'B' at 127.0.0.1:" in one for one in lost)
