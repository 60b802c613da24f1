"""Random faults at random calls of runs and sweeps: no record is lost or doubled, no other text changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import flowinfer
from flowinfer.engine import caching, scheduler
from flowinfer.engine.loops import heads
from flowinfer.runs import experiment
from flowinfer.runs.store import read_records
from tests.backends import tiny
from tests.engine import plans
from tests.engine.faults import ERRORS, Fault, run
from tests.engine.loops.test_stages import PLANS, told
from tests.fuzz.rounds import rounds

MODELS = {"A": tiny.model("qwen2", "A"), "B": tiny.model("llama", "B", seed=1), "C": tiny.model("llama", "C", seed=2)}
SEAMS = ("prompt", "admitted", "emitted", "finished", "key", "order", "text", "vote")


@pytest.mark.slow
def test_faults_of_questions_and_of_batches_leave_all_other_texts_as_they_are() -> None:
    """One fault that passes, or one that always meets the same question, in plans and engines of all kinds."""
    for seed, rng in rounds():
        plan = PLANS[rng.choice(sorted(PLANS))]
        asked = plans.questions([f"[{k}] {text}" for k, text in enumerate(plans.QUESTIONS)])
        asked = [one.model_copy(update={"id": f"[{k}]"}) for k, one in enumerate(asked)][: rng.randint(1, 7)]
        options: dict[str, Any] = {
            "engine": rng.choice(("rounds", "packed")),
            "batch": rng.randint(1, 5),
        }
        counting, mark = Fault(), f"[{rng.randrange(len(asked))}]"
        expected = told(run(plan, MODELS, asked, counting, **options))
        error = rng.choice(ERRORS)
        if rng.random() < 0.5:
            fault = Fault(rng.randint(1, counting.num_calls), error)
        else:
            fault = Fault(error=error, seam=rng.choice(SEAMS), mark=mark)
        traces = run(plan, MODELS, asked, fault, **options)
        failed = {name for name, trace in traces.items() if trace.error is not None}
        where = f"seed {seed}: {fault.seam or fault.at} {error!r} {options}"
        assert len(failed) <= 1 and (not fault.seam or failed <= {mark}), where
        assert all(str(error) in str(traces[name].error) for name in failed), where
        others = {name for name in expected if name not in failed}
        found = told(traces)
        assert {name: found[name] for name in others} == {name: expected[name] for name in others}, where


@pytest.mark.slow
def test_faults_in_sweeps_leave_all_other_records_as_they_are(
    tmp_path: Path, toy_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fault that passes, in rendering, tokenizing, completing, judging, voting or caching."""
    items = [{"id": f"q{k}", "question": f"What is {k} + 1?", "answer": str(k), "kind": "gsm8k"} for k in range(3)]
    (tmp_path / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")
    flows = tmp_path / "flows"
    flows.mkdir()
    for name, text in {"a": "Qwen -> (Yi | Ds)", "b": "(Qwen & Yi)", "c": "(Qwen | Yi) -> Ds"}.items():
        (flows / f"{name}.flow").write_text(f"defaults {{ max_tokens=3 }}\n{text}\n", encoding="utf-8")
    seams = ((experiment, "score"), (scheduler, "render_prompts"), (caching, "renamed"), (heads.Heads, "_prompts"))
    expected: dict[str, object] = {}
    num_calls = 0
    for seed, rng in rounds():
        fault = Fault(rng.randint(1, num_calls) if num_calls else 0, rng.choice(ERRORS))
        monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / f"cache{seed}"))
        with monkeypatch.context() as patch:
            for owner, name in seams:
                patch.setattr(owner, name, _through(fault, name, getattr(owner, name)))
            swept = flowinfer.sweep(
                flows=[str(flows)],
                datasets=[str(tmp_path / "items.jsonl")],
                zoo=str(toy_zoo),
                out=tmp_path / f"s{seed}",
            )
        found: dict[str, object] = {}
        failed: set[str] = set()
        for entry in sorted((swept.folder / "runs").iterdir()):
            records = list(read_records(entry))
            assert sorted(record.question.id for record in records) == ["q0", "q1", "q2"], f"seed {seed}: {fault.at}"
            for record in records:
                key = f"{entry.name.split('-', 1)[1]} {record.question.id}"
                found[key] = record.trace.answer
                failed |= {key} if record.trace.error is not None else set()
        expected, num_calls = expected or found, num_calls or fault.num_calls
        assert len({key.split()[-1] for key in failed}) <= 1, f"seed {seed}: {fault.at} {failed}"
        assert all(found[key] == expected[key] for key in found if key not in failed), f"seed {seed}: {fault.at}"


def _through(fault: Fault, seam: str, function: Any) -> Any:
    """Return a function, or a method, whose calls pass through a fault."""

    def call(*arguments: Any, **named: Any) -> Any:
        return fault.call(seam, function, *arguments, **named)

    return call
