"""Every number of a report's tables equals what an independent reading of samples.jsonl gives."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from scipy.stats import binomtest

from flowinfer.report.build import build
from flowinfer.report.gather import gather
from flowinfer.report.write import write
from tests.report.sweeps import TASKS, lines

_Verdicts = Mapping[tuple[str, str], dict[str, float]]


@pytest.fixture(scope="module")
def truth(sweep: Path) -> _Verdicts:
    """Return (flow, task) -> question -> acc, straight from the files."""
    flows = {path["key"]: path["flow"] for path in json.loads((sweep / "sweep.json").read_text())["paths"]}
    found = {}
    for line in (sweep / "index.jsonl").read_text().split("\n"):
        if line:
            row = json.loads(line)
            found[flows[row["path"]], row["dataset"]] = {r["doc_id"]: r["acc"] for r in lines(sweep / row["run"])}
    return found


@pytest.fixture(scope="module")
def written(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of its tables, the paper's numbers beside."""
    folder = tmp_path_factory.mktemp("tables")
    write(build(gather([str(sweep)]), "paper"), folder, ("csv",))
    return folder


def _rows(written: Path, table: str) -> list[dict[str, str]]:
    with (written / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _accuracy(verdicts: dict[str, float]) -> float:
    return sum(verdicts.values()) / len(verdicts)


def test_all_paths_are_there_with_their_accuracy_interval_and_n(written: Path, truth: _Verdicts) -> None:
    rows = _rows(written, "paths")
    assert len(rows) == 27
    for row in rows:
        for task in TASKS:
            verdicts = truth[row["path"], task]
            right = int(sum(verdicts.values()))
            interval = binomtest(right, len(verdicts)).proportion_ci(0.95, method="wilson")
            named = f"{task} (lab)"
            assert float(row[f"{named}_accuracy"]) == pytest.approx(right / len(verdicts))
            assert float(row[f"{named}_low"]) == pytest.approx(interval.low, abs=1e-9)
            assert float(row[f"{named}_high"]) == pytest.approx(interval.high, abs=1e-9)
            assert int(row[f"{named}_n"]) == len(verdicts)
        mean = sum(_accuracy(truth[row["path"], task]) for task in TASKS) / 3
        assert float(row["mean_accuracy"]) == pytest.approx(mean)


def test_table_4_holds_singles_baseline_and_best_paths(written: Path, truth: _Verdicts, sweep: Path) -> None:
    strategies = {path["flow"]: path["strategy"] for path in json.loads((sweep / "sweep.json").read_text())["paths"]}
    rows = {row["task"]: row for row in _rows(written, "table-4-strategies")}
    for task in TASKS:
        row = rows[f"{task} (lab)"]
        singles = [_accuracy(truth[name, task]) for name in ("Qwen", "Ds", "Yi")]
        assert [float(row[f"{name}_accuracy"]) for name in ("Qwen", "Ds", "Yi")] == pytest.approx(singles)
        assert float(row["baseline_accuracy"]) == pytest.approx(sum(singles) / 3)
        for kind in ("SI", "PI", "S2P", "P2S"):
            best = max(_accuracy(truth[flow, task]) for flow, strategy in strategies.items() if strategy == kind)
            assert float(row[f"{kind}_accuracy"]) == pytest.approx(best)
            assert _accuracy(truth[row[f"{kind}_path"], task]) == pytest.approx(best)
    mean = sum(float(rows[f"{task} (lab)"]["SI_accuracy"]) for task in TASKS) / 3
    assert float(rows["mean"]["SI_accuracy"]) == pytest.approx(mean)


def test_tables_6_and_7_are_the_paths_in_the_papers_rows(written: Path, truth: _Verdicts) -> None:
    six = {row["path"]: row for row in _rows(written, "table-6-si-pi")}
    seven = {row["path"]: row for row in _rows(written, "table-7-s2p-p2s")}
    assert (len(six), len(seven)) == (6, 6)
    expected = {
        "SI gsm8k (lab)_accuracy": ("Yi -> Ds -> Qwen", "gsm8k", six["Yi-Ds-Qwen"]),
        "PI ceval (lab)_accuracy": ("(Yi | Ds | Qwen)", "ceval", six["Yi-Ds-Qwen"]),
        "S2P ceval (lab)_accuracy": ("Yi -> (Ds | Qwen)", "ceval", seven["Yi-[Ds-Qwen]"]),
        "P2S mathematics (lab)_accuracy": ("(Ds | Qwen) -> Yi", "mathematics", seven["Yi-[Ds-Qwen]"]),
    }
    for column, (flow, task, row) in expected.items():
        assert float(row[column]) == pytest.approx(_accuracy(truth[flow, task]))
    assert float(six["Qwen-Yi-Ds"]["SI gsm8k (lab)_paper_accuracy"]) == pytest.approx(0.76)


def test_volatility_is_over_paths_means(written: Path, truth: _Verdicts, sweep: Path) -> None:
    paths = json.loads((sweep / "sweep.json").read_text())["paths"]
    for row in _rows(written, "table-8-volatility"):
        flows = [path["flow"] for path in paths if path["strategy"] == row["strategy"]]
        means = [sum(_accuracy(truth[flow, task]) for task in TASKS) / 3 for flow in flows]
        middle = sum(means) / 6
        spread = math.sqrt(sum((mean - middle) ** 2 for mean in means) / 5)
        assert float(row["mean_accuracy"]) == pytest.approx(middle)
        assert float(row["sd_accuracy"]) == pytest.approx(spread, abs=1e-12)


def test_comparisons_are_exact_binomial_tests(written: Path, truth: _Verdicts) -> None:
    rows = [row for name in ("tests-single", "tests-reversal") for row in _rows(written, name)]
    assert len(rows) == 4 * (24 + 12)
    for row in rows:
        tasks = [task for task in TASKS if row["task"] in (f"{task} (lab)", "all sets")]
        mine = [v for task in tasks for v in truth[row["path"], task].values()]
        other = [v for task in tasks for v in truth[row["against"], task].values()]
        gained = sum(a > b for a, b in zip(mine, other, strict=True))
        lost = sum(a < b for a, b in zip(mine, other, strict=True))
        assert (int(row["gained"]), int(row["lost"]), int(row["n"])) == (gained, lost, len(mine))
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert float(row["p"]) == pytest.approx(expected)
        assert float(row["p_holm"]) >= float(row["p"]) - 1e-12


def test_gains_are_corrected_over_all_paths_from_which_the_best_were_chosen(written: Path, truth: _Verdicts) -> None:
    tests = {(row["task"], row["path"]): row for row in _rows(written, "tests-single")}
    rows = _rows(written, "table-4-gains")
    assert len(rows) == 12
    for row in rows:
        test, task = tests[row["task"], row["path"]], row["task"].split()[0]
        assert (row["p"], row["p_holm"], row["best_single"]) == (test["p"], test["p_holm"], test["against"])
        singles = sum(_accuracy(truth[name, task]) for name in ("Qwen", "Ds", "Yi")) / 3
        assert float(row["gain_over_mean"]) == pytest.approx(_accuracy(truth[row["path"], task]) - singles)


def test_seconds_are_the_timing_pass(written: Path, sweep: Path) -> None:
    seconds: dict[tuple[str, str], list[float]] = {}
    for line in (sweep / "latency.jsonl").read_text().split("\n"):
        if line:
            row = json.loads(line)
            seconds.setdefault((row["path"], row["dataset"]), []).append(row["seconds"])
    flows = {path["flow"]: path["key"] for path in json.loads((sweep / "sweep.json").read_text())["paths"]}
    for row in _rows(written, "paths"):
        own = seconds[flows[row["path"]], "ceval"]
        assert float(row["ceval (lab)_seconds"]) == pytest.approx(sum(own) / len(own))


def test_table_5_is_made_of_head_times(written: Path) -> None:
    """A head k of a step of s seconds takes s (k + 1) / 10; ten decoding steps for nine tokens and the end."""
    rows = {row["part"]: row for row in _rows(written, "table-5-step") if row["group"] == "(Ds | Qwen | Yi)"}
    measured = float(rows["measured"]["mean_ms"])
    assert float(rows["slowest branch"]["mean_ms"]) == pytest.approx(measured * 0.3)
    assert float(rows["heads one after another"]["mean_ms"]) == pytest.approx(measured * 0.6)
    assert float(rows["data transfer"]["mean_ms"]) == pytest.approx(measured * 0.003)
    assert float(rows["token aggregation"]["mean_ms"]) == pytest.approx(measured * 0.01)
    shares = [float(rows[part]["share"]) for part in ("slowest branch", "data transfer", "token aggregation")]
    assert sum(shares) == pytest.approx(1.0)
    assert int(rows["measured"]["n"]) == 6 * 18  # six orders, eighteen questions
