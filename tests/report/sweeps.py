"""Run and sweep folders without models: answers that a rule decides, written as the program writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path

from flowinfer.language.check import check
from flowinfer.language.routing import identity
from flowinfer.paper.paths import paths
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import Plan, compile, members
from flowinfer.results import HeadTimes, Question, Record, Score, StepResult, Trace
from flowinfer.runs.store import Run, write_json
from flowinfer.spec import Flow, written
from flowinfer.tasks.base import fingerprint as data_fingerprint

MODELS = ("Qwen", "Ds", "Yi")
TASKS = ("gsm8k", "ceval", "mathematics")
NOW = datetime(2026, 1, 2, tzinfo=UTC)

Rule = Callable[[str, str], bool]
"""(flow, question id) -> right; flows of one fused group get their models sorted."""


@dataclass(frozen=True)
class Spoken:
    """What a stage says."""

    right: str = "so it is 7 -> #### 7"
    wrong: str = "so it is 8 -> #### 8"


def by_hash(flow: str, question: str) -> bool:
    """Be right in about two of three."""
    return sha256(f"{flow} {question}".encode()).digest()[0] % 3 > 0


def questions(task: str, num: int, text: str = "How many?") -> list[Question]:
    """Return questions with short references."""
    return [Question(id=f"{task}-{i}", question=f"{text} {i}", reference="7", kind=task) for i in range(num)]


def record(question: Question, plan: Plan, is_right: bool, spoken: Spoken, seconds: float, batch: int = 1) -> Record:
    """Return an answered question whose every step says the same."""
    text = spoken.right if is_right else spoken.wrong
    steps = []
    for step in plan.steps:
        heads = [
            HeadTimes(
                node=member.node,
                model=member.model,
                prompt_tokens=5,
                fed_tokens=9,
                forward_seconds=seconds * (k + 1) / 10,
                transfer_seconds=seconds / 1000,
                agreement=0.5 + 0.1 * k,
            )
            for k, member in enumerate(members(step.source))
        ]
        prompts = {head.node: "prompt" for head in heads}
        steps.append(
            StepResult(
                step=step.id,
                text=text,
                passed_on=text,
                prompts=prompts,
                tokens=9,
                finish_reason="eos",
                seconds=seconds,
                fuse_seconds=seconds / 100,
                batch=batch,
                heads=tuple(heads),
            )
        )
    trace = Trace(
        question_id=question.id, answer=text, finish_reason="eos", seconds=seconds * len(steps), steps=tuple(steps)
    )
    found = "7" if is_right else "8"
    return Record(
        question=question, trace=trace, score=Score(correct=is_right, extracted=found, status="ok", rule="anchor")
    )


@cache
def _planned(text: str, max_tokens: str) -> tuple[Flow, Plan]:
    flow = check(text, zoo="lab", overrides={"max_tokens": max_tokens})
    return flow, compile(flow)


def write_run(
    root: Path,
    flow_text: str,
    asked: Sequence[Question],
    *,
    rule: Rule = by_hash,
    answered: int | None = None,
    batch: str = "1",
    spoken: Spoken | None = None,
    max_tokens: str = "64",
    label: str | None = None,
) -> Path:
    """Write a run folder; fewer answered than asked is an interrupted run."""
    flow, plan = _planned(flow_text, max_tokens)
    task = asked[0].kind
    settings = {
        "flow": flow.name,
        "plan_fingerprint": fingerprint(plan),
        "wiring": {"flow": written(flow.root), "identity": identity(flow.root, flow.prompts)},
        "dataset": task,
        "dataset_label": label or f"{task} (lab)",
        "data_fingerprint": data_fingerprint(asked),
        "question_ids": [question.id for question in asked],
        "n": len(asked),
        "zoo": "lab",
        "params": {},
        "batch": batch,
    }
    run = Run.create(root, flow, plan, settings, NOW)
    name = " | ".join(sorted(flow_text.strip("()").split(" | "))) if flow_text.startswith("(") else flow_text
    seconds = 0.1 * (1 + len(name) % 5)
    made = [
        record(question, plan, rule(name, question.id), spoken or Spoken(), seconds)
        for question in asked[: len(asked) if answered is None else answered]
    ]
    run.rewrite(made)
    if answered is None:
        run.finish({"wall_seconds": 1.0})
    run.close()
    return run.path


def write_sweep(
    folder: Path, num: int = 6, *, rule: Rule = by_hash, is_timed: bool = True, limit: int | None = None
) -> Path:
    """Write a sweep of the paper's 27 paths over the three tasks; `limit` stops after some pairs, as a kill does."""
    wirings = {f"p{index:02}": path for index, path in enumerate(paths(MODELS), start=1)}
    sets = {task: questions(task, num) for task in TASKS}
    write_json(
        folder_made(folder) / "sweep.json",
        {
            "version": 1,
            "started": NOW.isoformat(),
            "settings": {},
            "zoo": "lab",
            "zoo_why": "",
            "paths": [
                {
                    "key": key,
                    "strategy": path.strategy,
                    "models": list(path.models),
                    "flow": path.flow,
                    "name": path.flow,
                    "settings": {},
                }
                for key, path in wirings.items()
            ],
            "datasets": [
                {"name": task, "label": f"{task} (lab)", "fingerprint": data_fingerprint(asked), "n": num}
                for task, asked in sets.items()
            ],
            "host": {},
        },
    )
    pairs = [(key, path.flow, task) for key, path in wirings.items() for task in TASKS][:limit]
    for key, flow, task in pairs:
        run = write_run(folder / "runs", flow, sets[task], rule=rule, batch="auto")
        _append(folder / "index.jsonl", {"path": key, "dataset": task, "run": f"runs/{run.name}", "status": "done"})
        for row in lines(run) if is_timed else ():
            one = {key: row[key] for key in ("version", "question", "trace", "score")}
            line = {"path": key, "dataset": task, "question_id": row["doc_id"], "seconds": row["trace"]["seconds"]}
            _append(folder / "latency.jsonl", line | {"record": one})
    return folder


def lines(run: Path) -> Iterator[dict]:  # type: ignore[type-arg]  # whatever JSON holds
    """Yield a run's records as plain JSON, read without the program."""
    for line in (run / "samples.jsonl").read_text("utf-8").split("\n"):
        if line:
            yield json.loads(line)


def folder_made(folder: Path) -> Path:
    """Make a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _append(file: Path, line: dict[str, object]) -> None:
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps({"error": None} | line) + "\n")
