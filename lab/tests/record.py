"""Record what the shipped models answer to fixed items: python -m lab.tests.record (after new weights)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.results import Record
from flowinfer.runs.experiment import Request, evaluate
from lab import networks
from lab.items import KINDS, Kind
from lab.measure import dataset

RECORDED = Path(__file__).parent / "recorded.json"
NUM, SEED = 30, 42


def answers(name: str, kind: Kind, models: ModelPool) -> list[Record]:
    """Return what a shipped model answers to the fixed items, in their order."""
    records: list[Record] = []
    flow = check(name, zoo="lab", overrides={"max_tokens": "160"})
    request = Request(out=None, use_cache=False)
    evaluate(flow, dataset(kind, "test", NUM, SEED), request, on_record=records.append, models=models)
    return sorted(records, key=lambda record: int(record.question.id))


def record(models: ModelPool) -> Iterator[tuple[str, list[list[object]]]]:
    """Yield a name for each model and kind, and for each item what was written and whether it was right."""
    for name in networks.NAMES:
        for kind in KINDS:
            found = answers(name, kind, models)
            yield f"{name}/{kind}", [[one.trace.steps[-1].text, bool(one.score and one.score.correct)] for one in found]


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(dict(record(ModelPool())), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
