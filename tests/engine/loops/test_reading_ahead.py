"""A stage that waits for more rows on its GPU reads their prompts meanwhile, and writes what it writes otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flowinfer.engine import budget
from flowinfer.engine.loops.prompts import Reading
from flowinfer.engine.loops.stream import PackedStream
from flowinfer.planning.plan import Placement, Plan
from tests.engine import plans
from tests.engine.loops.test_decoder import Models
from tests.engine.loops.test_stages import PLANS, by_reference, serve, told
from tests.engine.plans import chain, member, run


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models that are placed on a GPU be decoded by the packed engine on the CPU."""
    monkeypatch.setattr(budget, "_free_bytes", lambda device: 1 << 30)
    serve(monkeypatch)


def on_one_gpu(plan: Plan) -> Plan:
    return replace(plan, placements={name: Placement("cuda:0", "auto", "") for name in plan.models})


@pytest.mark.parametrize(("kind", "batch"), [("SI", 32), ("answers", 3)])
def test_stages_that_share_a_gpu_write_what_step_after_step_writes(models: Models, kind: str, batch: int) -> None:
    plan = on_one_gpu(PLANS[kind])
    assert told(run(plan, models, batch=batch)) == by_reference(PLANS[kind], models)


def test_a_stage_that_waits_for_more_rows_reads_their_prompts_meanwhile(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, began = PackedStream._reading_of, list[int]()

    def note(stream: PackedStream, admitted: Any) -> Reading:
        if stream._heads.step.id == "s2" and not stream._lock.num_steps:
            began.append(len(admitted))
        return read(stream, admitted)

    monkeypatch.setattr(PackedStream, "_reading_of", note)
    steps = (member("A"), ()), (member("B", "{question} {f}", f=("s1",)), ("s1",))
    texts = [f"{k} {plans.QUESTIONS[k % 7]}" for k in range(24)]
    run(on_one_gpu(chain(*steps, max_tokens=24, stop=("e", "a", " "))), models, texts, batch=32)
    assert len(began) > 2
    assert min(began) == 2, "two of 32 are worth a forward"
