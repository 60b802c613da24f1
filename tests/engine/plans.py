"""Plans built by hand, pools of ready models, and models that are watched while they decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.base import Session
from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Observer, TokenEvent
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.planning.plan import Answer, Member, Mixture, Plan, Source, Step, members
from flowinfer.results import Question, StepResult, Trace
from flowinfer.spec import Decoding, ModelSpec

QUESTIONS = (
    "hello",
    "小明有3个苹果",
    "the answer is 42, she said, and then",
    "naïve café",
    "Once upon a time there was a little girl",
    "x + 1",
    "答案是",
)


def member(model: str, template: str = "{question}", *, weight: float = 1.0, node: str = "", **fields: Any) -> Member:
    """Return a member; its node is named after its model if not given."""
    return Member(node or f"n_{model}", model, "draft", template, fields, weight)


def group(*sources: Source, fuse: str = "mean", weight: float = 1.0, **options: Any) -> Mixture:
    """Return a mixture whose sources share equally unless they say otherwise."""
    return Mixture("g", fuse, options, sources, weight)


def mix(*models: str, **options: Any) -> Mixture:
    """Return an equal mixture of models by name."""
    return group(*(member(name, node=f"n{k}", weight=1 / len(models)) for k, name in enumerate(models)), **options)


def one_step(source: Source, **decoding: Any) -> Plan:
    """Return a plan of one step."""
    return chain((source, ()), **decoding)


def chain(
    *steps: tuple[Source, tuple[str, ...]], specs: Mapping[str, ModelSpec] | None = None, **decoding: Any
) -> Plan:
    """Return a plan of several steps, each given with the ids of the steps that it reads; the last one answers.

    Nothing drafts unless a test says so.
    """
    options = Decoding(**({"max_tokens": 16, "speculate": "off"} | decoding))
    made = tuple(Step(f"s{k}", f"step {k}", source, options, reads) for k, (source, reads) in enumerate(steps, 1))
    names = {one.model for step in made for one in members(step.source)}
    known = {name: (specs or {}).get(name) or ModelSpec(name=name, ref=name, think="keep") for name in sorted(names)}
    return Plan("test", made, Answer("text", (made[-1].id,)), known, "paper")


class Ready(ModelPool):
    """A pool of models that are loaded already."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        super().__init__()
        self.models = models

    def get(self, plan: Plan, name: str, observer: Observer) -> Any:
        """Return the model of that name."""
        return self.models[name]


def questions(texts: Sequence[str] = QUESTIONS) -> list[Question]:
    """Return questions named q0, q1, ..."""
    return [Question(id=f"q{k}", question=text, reference="") for k, text in enumerate(texts)]


def run(plan: Plan, models: Mapping[str, Any], texts: Sequence[str] = QUESTIONS, **options: Any) -> dict[str, Trace]:
    """Run a plan on ready models; return traces by question id."""
    options.setdefault("batch", 4)
    asked = questions(texts)
    traces = {trace.question_id: trace for trace in execute(plan, asked, models=Ready(models), **options)}
    assert len(traces) == len(asked)
    return traces


def answers(plan: Plan, models: Mapping[str, Any], texts: Sequence[str] = QUESTIONS, **options: Any) -> list[str]:
    """Run a plan on ready models; return the answers in the order of the questions."""
    traces = run(plan, models, texts, **options)
    return [traces[f"q{k}"].answer for k in range(len(texts))]


def last_step(trace: Trace) -> StepResult:
    """Return the result of a trace's last step."""
    return trace.steps[-1]


class Listener(Observer):
    """Keeps every token event, and what else was heard."""

    wants_tokens = True

    def __init__(self) -> None:
        self.events: dict[str, list[TokenEvent]] = {}
        self.halved: list[int] = []
        self.notices: list[str] = []
        self.order: list[tuple[str, str]] = []
        self.results: list[tuple[str, StepResult]] = []

    def admitted(self, question_id: str, step: str, *, opens_thinking: bool = False) -> None:
        """Note who began; a row that begins again starts from nothing."""
        self.order.append((question_id, step))
        self.events[question_id] = []

    def emitted(self, question_id: str, step: str, event: TokenEvent) -> None:
        """Keep the event."""
        self.events[question_id].append(event)

    def finished(self, question_id: str, result: StepResult) -> None:
        """Keep the result."""
        self.results.append((question_id, result))

    def batch_halved(self, batch: int) -> None:
        """Keep the new batch."""
        self.halved.append(batch)

    def notice(self, message: str) -> None:
        """Keep the message."""
        self.notices.append(message)

    def texts(self, question_id: str) -> list[bytes]:
        """Return the text of a row after each of its tokens."""
        whole, texts = b"", []
        for event in self.events[question_id]:
            if event.piece is not None:
                whole += event.piece
                texts.append(whole)
        return texts


class Watched:
    """A model whose sessions note the bytes of every row's ids after each feed, and may run out of memory."""

    transformers_model = None
    """Hidden, so that no engine decodes past its sessions."""

    def __init__(self, model: HfModel, *, most_rows: int = 10**6, logits: Any = None) -> None:
        self.model = model
        self.most_rows = most_rows
        self.change_logits = logits
        self.sessions: list[WatchedSession] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def open(self) -> Session:
        """Return a watched session."""
        self.sessions.append(WatchedSession(self, self.model.open()))
        return self.sessions[-1]


class WatchedSession:
    """A session that keeps the ids of its rows."""

    def __init__(self, owner: Watched, session: Session) -> None:
        self.owner = owner
        self.inner = session
        self.prompts: dict[int, list[int]] = {}
        self.ids: dict[int, list[int]] = {}
        self.texts: dict[int, list[bytes]] = {}
        self.live: set[int] = set()
        self.rollbacks = 0
        self.fed = 0
        self.num_forwards = 0
        self.most_live = 0

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefill, or run out of memory."""
        if len(self.live) + len(prompts) > self.owner.most_rows:
            raise torch.OutOfMemoryError("out of memory")
        self.num_forwards += 1
        rows = self.inner.add(prompts)
        for row, prompt in zip(rows, prompts, strict=True):
            self.prompts[row], self.ids[row], self.texts[row] = list(prompt), [], []
        self.live |= set(rows)
        self.most_live = max(self.most_live, len(self.live))
        return rows

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Feed, and note the bytes so far."""
        self.num_forwards += 1
        self.inner.feed(chunks)
        pieces = self.owner.vocabulary().tokens.pieces
        for row, chunk in chunks.items():
            self.ids[row] += chunk
            self.fed += len(chunk)
            self.texts[row].append(b"".join(pieces[i] or b"<control>" for i in self.ids[row]))

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Feed segments, and note the bytes behind them."""
        self.num_forwards += 1
        logits = self.inner.verify(segments)
        pieces = self.owner.vocabulary().tokens.pieces
        for row, own in segments.items():
            assert all(own), "no segment is empty"
            self.ids[row] += [i for segment in own for i in segment]
            self.fed += sum(map(len, own))
            self.texts[row].append(b"".join(pieces[i] or b"<control>" for i in self.ids[row]))
        return self.owner.change_logits(logits) if self.owner.change_logits else logits

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the logits, changed where a test says so."""
        logits = self.inner.logits(rows)
        return self.owner.change_logits(logits) if self.owner.change_logits else logits

    def rollback(self, row: int, count: int) -> None:
        """Forget generated ids, never prompt ids."""
        assert count <= len(self.ids[row])
        del self.ids[row][len(self.ids[row]) - count :]
        self.rollbacks += count
        self.inner.rollback(row, count)

    def remove(self, rows: Sequence[int]) -> None:
        """End rows."""
        self.live -= set(rows)
        self.inner.remove(rows)

    def length(self, row: int) -> int:
        """Return the number of ids in a row."""
        return self.inner.length(row)
