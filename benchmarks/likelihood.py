"""Multiple choice by likelihood on real language: single models against fused groups of them, with intervals.

    python benchmarks/likelihood.py --zoo ZOO.toml --models Smol,Gemma --data FOLDER --questions 300
    python benchmarks/likelihood.py --zoo ZOO.toml --models Smol,Gemma --cloze test.jsonl --questions 300

Every flow runs as `exec --by likelihood` does; what a model says behind a prompt is read once for all of them. A prompt
is the question with its choices and `答案：`, without examples. With --cloze it is the beginning of a text (the field
`question` of that file), cut before the last word of a sentence. The word has to be told from three others of the same
text; all four are tokens of both models.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import typed
from flowinfer.engine.base import Observer
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.planning.plan import Plan, compile
from flowinfer.results import Question, Record
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.runs.stats import paired, paired_interval, wilson
from flowinfer.tasks.base import Dataset, load_questions
from reporting import Report, options, setup_of

_PROMPT = 'prompt asked = "{question}\\n答案："\n'
_TEXT = 'prompt asked = "{question}"\n'
_ENDING = re.compile(r"(?<=[a-z,] )([a-z]{3,})\.(?= )")
"""A sentence's last word."""
_WORD = re.compile(r"(?<= )[a-z]{3,}(?=[ ,.?])")


class ReadOnce(ModelPool):
    """Models that read each prompt once, whatever flow asks them."""

    def __init__(self) -> None:
        super().__init__()
        self._models: dict[str, _ReadOnce] = {}

    def get(self, plan: Plan, name: str, observer: Observer) -> Any:
        """Return the model of that name."""
        if name not in self._models:
            self._models[name] = _ReadOnce(super().get(plan, name, observer))
        return self._models[name]


class _ReadOnce:
    """A model whose sessions keep what stands behind prompts; letters ask for nothing else."""

    transformers_model = None

    def __init__(self, model: Any) -> None:
        self._model = model
        self.seconds = 0.0
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def open(self) -> _Session:
        """Return a session."""
        return _Session(self)

    def read(self, prompt: Sequence[int]) -> Tensor:
        """Return the logits behind a prompt: (V_k,)."""
        key = tuple(prompt)
        if key not in self._known:
            start = time.perf_counter()
            session = self._model.open()
            self._known[key] = session.logits(session.add([prompt]))[0].clone()
            self.seconds += time.perf_counter() - start
        return self._known[key]


class _Session:
    def __init__(self, model: _ReadOnce) -> None:
        self._model = model
        self._rows: dict[int, Tensor] = {}
        self._next = 0

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        handles = list(range(self._next, self._next + len(prompts)))
        self._next += len(prompts)
        self._rows |= {handle: self._model.read(prompt) for handle, prompt in zip(handles, prompts, strict=True)}
        return handles

    def logits(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([self._rows[row] for row in rows])

    def remove(self, rows: Sequence[int]) -> None:
        for row in rows:
            del self._rows[row]


@dataclass(frozen=True)
class Gap:
    """A text without its next word."""

    text: str
    words: tuple[str, ...]
    """Four, a space before each."""
    right: str


def gaps(file: Path, num: int, seed: int, models: Sequence[_ReadOnce]) -> list[Gap]:
    """Cut texts of a file before words that are tokens of all models; one gap a text."""
    rng = random.Random(seed)
    known = [set(model.vocabulary().tokens.pieces) for model in models]
    found: list[Gap] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["question"]
        words = [
            word for word in dict.fromkeys(_WORD.findall(text)) if all(f" {word}".encode() in own for own in known)
        ]
        ends = [match for match in _ENDING.finditer(text) if match[1] in words]
        if ends and len(words) > 3:
            end = rng.choice(ends)
            asked = [end[1], *rng.sample([word for word in words if word != end[1]], 3)]
            found.append(Gap(text[: end.start() - 1], tuple(f" {word}" for word in rng.sample(asked, 4)), f" {end[1]}"))
    return rng.sample(found, min(num, len(found)))


def flows_of(first: str, second: str) -> list[str]:
    """Return the singles, and groups of them."""
    one, other = f"{first}[prompt=asked]", f"{second}[prompt=asked]"
    return [
        f"{first}[prompt=asked, by=likelihood]",
        f"{second}[prompt=asked, by=likelihood]",
        f"({one} | {other})[by=likelihood]",
        f"({one}:0.3 | {other}:0.7)[by=likelihood]",
        f"({one}:0.7 | {other}:0.3)[by=likelihood]",
        f"({one} | {other})[fuse=geometric, by=likelihood]",
        f"({one} | {other})[fuse=byte, by=likelihood]",
    ]


def by_letter(text: str, zoo: str, dataset: Dataset, pool: ModelPool) -> dict[str, bool]:
    """Return which questions were answered right."""
    found: dict[str, Record] = {}

    def keep(record: Record) -> None:
        found[record.question.id] = record

    flow = check(_PROMPT + text, zoo=zoo)
    evaluate(flow, dataset, Request(out=None, batch=8, use_cache=False), on_record=keep, models=pool)
    return {name: bool(record.score and record.score.correct) for name, record in found.items()}


def by_word(text: str, zoo: str, asked: Sequence[Gap], pool: ModelPool) -> dict[str, bool]:
    """Return which gaps were filled right."""
    words = sorted({word for gap in asked for word in gap.words})
    items = [Question(id=str(number), question=gap.text, reference="") for number, gap in enumerate(asked)]
    plan = compile(check(_TEXT + text, zoo=zoo))
    right = {}
    for trace in execute(plan, items, batch=8, candidates=words, models=pool):
        gap, found = asked[int(trace.question_id)], trace.steps[-1].likelihoods or {}
        right[trace.question_id] = max(gap.words, key=found.__getitem__) == gap.right
    return right


def asked(
    arguments: argparse.Namespace, first: str, second: str, pool: ReadOnce
) -> tuple[list[str], Callable[[str], dict[str, bool]], str, int]:
    """Return the flows, what answers all questions with one, the questions' name and number."""
    zoo, flows = arguments.zoo, flows_of(first, second)
    if arguments.cloze is not None:
        plan = compile(check(f"({first} | {second})", zoo=zoo))
        heads = [pool.get(plan, name, Observer()) for name in (first, second)]
        found = gaps(arguments.cloze, arguments.questions, arguments.seed, heads)
        flows = [flow for flow in flows if "byte" not in flow]  # bytes inside a word ask for what is not read once
        return flows, lambda text: by_word(text, zoo, found, pool), f"words of {arguments.cloze.name}", len(found)
    data = {} if arguments.data is None else {"ceval": arguments.data}
    chosen = {"sample": arguments.questions, "seed": arguments.seed, "use_items": arguments.data is None}
    dataset = load_questions("ceval", data=data, **chosen)
    return flows, lambda text: by_letter(text, zoo, dataset, pool), dataset.label, len(dataset.questions)


def main() -> None:
    """Print the table."""
    parser = options(__doc__ or "")
    parser.add_argument("--zoo", default="lab")
    parser.add_argument("--models", default="Qwen,Yi")
    parser.add_argument("--data", type=Path, help="folder of C-Eval; the zoo's own items if not given")
    parser.add_argument("--cloze", type=Path, help="a .jsonl file, whose texts have words to be filled in")
    parser.add_argument("--questions", type=typed.number, default=300)
    arguments = parser.parse_args()
    first, second = arguments.models.split(",")
    torch.manual_seed(arguments.seed)
    pool = ReadOnce()
    flows, answer, label, num = asked(arguments, first, second, pool)
    report = Report(
        "Multiple choice by likelihood",
        setup_of("cpu", "float32", data=label, questions=num, seed=arguments.seed),
        ["flow", "right", "accuracy", "interval", "against the better single", "seconds"],
    )
    singles: list[dict[str, bool]] = []
    for text in flows:
        start = time.perf_counter()
        right = answer(text)
        seconds = time.perf_counter() - start
        interval, against = wilson(sum(right.values()), len(right)), ""
        if len(singles) < 2:
            singles.append(right)
        else:
            best = max(singles, key=lambda one: sum(one.values()))
            counts = paired(right, best)
            spread = paired_interval(counts)
            between = f"[{100 * spread.low:+.1f}, {100 * spread.high:+.1f}]"
            against = f"{100 * counts.difference:+.1f} {between}, p = {counts.p_value:.2f}"
        shown = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        share = 100 * sum(right.values()) / len(right)
        name = text.replace("[prompt=asked]", "").replace("prompt=asked, ", "").replace("[by=likelihood]", "")
        report.add(name.replace(", by=likelihood", ""), sum(right.values()), f"{share:.1f} %", shown, against, seconds)
    report.note("a model's forward is counted where its prompt is read first: in its own row")
    report.finish(arguments)


if __name__ == "__main__":
    main()
