"""Every path of the paper over a zoo and its items, beside an independent program's accuracies.

    python benchmarks/paths.py FOLDER [-o TABLE.md]

FOLDER holds zoo.toml, gsm8k.jsonl, ceval.jsonl, mathematics.jsonl and expected.json ({path: {data set: percent}}).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.tasks.base import load_questions
from flowinfer.zoo import load_zoo

DATASETS = ("gsm8k", "ceval", "mathematics")


def flow_text(path: str) -> str:
    """Return a path's flow: `PI Qwen | Ds | Yi` -> `(Qwen | Ds | Yi)`, a single name as it is."""
    kind, _, rest = path.partition(" ")
    if not rest:
        return kind
    return f"({rest})" if kind == "PI" else rest


def main() -> None:
    """Run all paths and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    expected = json.loads((arguments.folder / "expected.json").read_text(encoding="utf-8"))
    zoo, pool = load_zoo(str(arguments.folder / "zoo.toml")), ModelPool()
    items = {name: load_questions(name, data={name: arguments.folder / f"{name}.jsonl"}) for name in DATASETS}
    start, rows, differences = time.perf_counter(), [], []
    for path, wanted in expected.items():
        flow = check(flow_text(path), zoo=zoo, overrides={"max_tokens": "64"})
        cells = []
        for name in DATASETS:
            results = evaluate(flow, items[name], Request(out=None), models=pool)
            ours = 100 * (results.accuracy or 0.0)
            differences.append(ours - wanted[name])
            cells.append(f"{ours:.0f} / {wanted[name]:.0f}")
        rows.append(f"| {path} | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    largest = max(abs(d) for d in differences)
    summary = (
        f"{len(expected)} paths x {len(DATASETS)} data sets in {time.perf_counter() - start:.0f} s; largest difference"
        f" {largest:.0f} points, difference of the means {statistics.fmean(differences):+.2f} points"
    )
    table = "\n".join(
        [
            "| path | " + " | ".join(DATASETS) + " (ours / expected, %) |",
            "|---|---|---|---|",
            *rows,
            "",
            summary,
        ]
    )
    print(summary)
    if arguments.output:
        arguments.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
