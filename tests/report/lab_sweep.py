"""Make a sweep folder of the lab's models for looking at: `python -m tests.report.lab_sweep FOLDER --n 20`.

Follows the format that `flowinfer sweep` writes: sweep.json, index.jsonl, runs/, latency.jsonl, results.json.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

from flowinfer.check import check
from flowinfer.engine.models import ModelPool
from flowinfer.experiment import Request, evaluate
from flowinfer.lab.items import KINDS
from flowinfer.lab.measure import dataset
from flowinfer.paths import paths
from flowinfer.results import Record
from flowinfer.store import info, write_json
from flowinfer.tasks.base import Dataset

MODELS = ("Qwen", "Ds", "Yi")


def make(folder: Path, num: int, num_timed: int, seed: int = 42) -> Path:
    """Run the 27 paths over fresh test items of the three forms; time some questions of each at batch 1."""
    folder.mkdir(parents=True)
    begun = time.perf_counter()
    sets = [dataset(kind, "test", num, seed) for kind in KINDS]
    wirings = {f"p{index:02}": path for index, path in enumerate(paths(MODELS), start=1)}
    models = ModelPool()
    calls = 0
    with (folder / "index.jsonl").open("a", encoding="utf-8") as index:
        for key, path in wirings.items():
            flow = check(path.flow, zoo="lab", overrides={"max_tokens": "160"})
            for data in sets:
                made: list[Record] = []
                results = evaluate(flow, data, Request(out=folder / "runs"), on_record=made.append, models=models)
                calls += sum(step.cached_from is None for record in made for step in record.trace.steps)
                run = f"runs/{Path(str(results.run)).name}"
                line = {"path": key, "dataset": data.name, "run": run, "status": "done", "error": None}
                index.write(json.dumps(line) + "\n")
                index.flush()
                few = Dataset(data.name, data.label, data.questions[:num_timed], "", data.source)
                _time(folder / "latency.jsonl", key, few, flow, models)
            print(key, path.flow, results.accuracy, flush=True)
    models.close()
    host = info(Path(str(results.run))).data
    write_json(
        folder / "sweep.json",
        {
            "version": 1,
            "started": datetime.now(UTC).isoformat(),
            "settings": {"models": list(MODELS), "sample": num, "seed": seed, "latency": num_timed},
            "zoo": "lab",
            "zoo_why": "asked for",
            "paths": [
                {
                    "key": key,
                    "strategy": path.strategy,
                    "models": list(path.models),
                    "flow": path.flow,
                    "name": path.flow,
                    "settings": {"max_tokens": "160"},
                }
                for key, path in wirings.items()
            ],
            "datasets": [
                {"name": data.name, "label": data.label, "fingerprint": data.fingerprint, "n": len(data.questions)}
                for data in sets
            ],
            "host": host["host"],
        },
    )
    seconds = time.perf_counter() - begun
    write_json(
        folder / "results.json",
        {"version": 1, "calls_needed": calls, "calls_made": calls, "seconds": seconds, "paths": {}},
    )
    return folder


def _time(file: Path, key: str, data: Dataset, flow: object, models: ModelPool) -> None:
    made: list[Record] = []
    request = Request(out=None, batch=1, use_cache=False)
    evaluate(flow, data, request, on_record=made.append, models=models)  # type: ignore[arg-type]  # a Flow
    with file.open("a", encoding="utf-8") as log:
        for record in made:
            line = {
                "path": key,
                "dataset": data.name,
                "question_id": record.question.id,
                "seconds": record.trace.seconds,
                "record": record.model_dump(mode="json"),
            }
            log.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--timed", type=int, default=4)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.n, arguments.timed)
