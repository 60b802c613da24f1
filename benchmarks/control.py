"""What steps that may not run gain and cost: one table over fresh items of the lab, with intervals and paired tests.

    python benchmarks/control.py --out FOLDER

Three sets of test items (seed 19) are answered by each flow. What is fitted (thresholds, the best series, routes) is
fitted on dev items. A killed run goes on when it is started again. Costs of a question: model calls; ids that models
read in prompts; ids that they were fed behind them, one by one; seconds, measured alone, paths taking turns, over those
of the first flow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import flowinfer
import typed
from flowinfer.results import Record
from flowinfer.runs.stats import CONFIDENCE, Paired, holm, paired, paired_interval, wilson
from flowinfer.runs.store import read_records
from flowinfer.sweeps.outcome import Sweep, SweepRow
from reporting import Report, options, setup_of

_ROOT = Path(__file__).parents[1]
_SETS = ("gsm8k", "ceval", "mathematics")
_SEED = 19
_CHEAPER = 0.9
"""What is to be left of a cost for a flow to count as cheaper."""
_SINGLE = "Qwen"
_SERIES = ("Qwen -> (Ds | Yi)", "Ds -> (Qwen | Yi)", "Yi -> (Qwen | Ds)")
_FUSED = "(Qwen | Ds)"
_VOTE, _DEBATE = "(Qwen & Ds & Yi)", "(Qwen & Ds & Yi)*3[until=agree]"
_REFINE = "Yi -> (Qwen)*3[until=unchanged]"
_ALL, _ENOUGH = "Qwen[samples=16, temperature=0.8]", "Qwen[samples=16, temperature=0.8, enough=0.95]"
_MEAN, _SAFE, _BYTE = "(Qwen | Ds | Yi)", "(Qwen | Ds | Yi)[fuse=safe]", "(Qwen | Ds | Yi)[fuse=byte]"
_FITTED = (_SINGLE, "Ds", "Yi", _FUSED, *_SERIES)
"""Flows that dev items choose among."""


@dataclass(frozen=True)
class Flow:
    """What one flow did with the test items."""

    name: str
    right: Mapping[str, Mapping[str, bool]]
    """By data set and question."""
    costs: tuple[float | None, ...] = (None, None, None, None)
    """Calls, ids read, ids fed, seconds: means of a question."""
    tokens: float = 0.0
    """Written, all heads of a step counted once: mean of a question."""
    fused: float = 0.0
    """Those of them that all heads chose, where a fuser counts them."""

    @property
    def together(self) -> dict[str, bool]:
        """Return the verdicts of all data sets."""
        return {f"{name}/{i}": right for name, own in self.right.items() for i, right in own.items()}


@dataclass(frozen=True)
class Fit:
    """What dev items chose."""

    series: str
    shares: Mapping[str, float]
    """How often each flow was right."""
    chosen: Mapping[str, str]
    """What is asked of a cascade -> the cascade with its threshold."""
    routed: Mapping[str, tuple[str, ...]]
    """Routes -> the flows that they pick among."""
    routes: Mapping[str, str]
    notes: tuple[str, ...]


def make_items(folder: Path, num_test: int, num_dev: int) -> dict[str, Path]:
    """Make the items that are not there yet; return the files of the test items, and `dev` of all dev items."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = {name: folder / f"{name}-test-{num_test}.jsonl" for name in _SETS}
    dev = folder / f"dev-{num_dev}.jsonl"
    for name, file in tests.items():
        if not file.exists():
            _make(name, "test", num_test, file)
    if not dev.exists():
        rows = []
        for name in _SETS:
            _make(name, "dev", num_dev, folder / "one.jsonl")
            lines = (folder / "one.jsonl").read_text(encoding="utf-8").splitlines()
            rows += [row | {"id": f"{name}-{row['id']}"} for row in map(json.loads, lines)]
        dev.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {**tests, "dev": dev}


def _make(kind: str, split: str, num: int, file: Path) -> None:
    asked = ["make", kind, "--split", split, "--n", str(num), "--seed", str(_SEED), "-o", str(file.resolve())]
    subprocess.run([sys.executable, "-m", "lab", *asked], cwd=_ROOT, check=True)


def swept(folder: Path, flows: Sequence[str], data: Mapping[str, Path], latency: int = 0) -> Sweep:
    """Run flows over data sets, or go on with it: every set of flows has a folder of its own."""
    digest = hashlib.sha256(json.dumps([flows, *map(str, data.values())]).encode()).hexdigest()[:8]
    files, out = folder / f"{digest}-flows", folder / f"{digest}-sweeps"
    files.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(flows):
        (files / f"f{number:02}.flow").write_text(f"{text}\n", encoding="utf-8")
    named = {name: path for name, path in data.items() if name in _SETS}
    return flowinfer.sweep(
        flows=[files],
        datasets=[name if name in named else str(path) for name, path in data.items()],
        data=named,
        zoo="lab",
        batch=128,
        latency=latency,
        out=out,
        resume="latest" if any(out.glob("*/sweep.json")) else None,
        quiet=False,
    )


def cascades(series: str) -> tuple[str, str]:
    """Return cascades of more and more models: one that ends in the best series, one that ends in a vote."""
    return (
        f"({_SINGLE} / {_FUSED} / {series})[accept=confidence, at=auto]",
        f"({_SINGLE} / {_FUSED} / {_VOTE})[accept=confidence, at=auto]",
    )


def fit(folder: Path, dev: Path) -> Fit:
    """Choose a series, the cascades' thresholds and the routes, all on dev items."""
    tried = swept(folder, _FITTED, {"dev": dev})
    shares = {flow: row.mean or 0.0 for flow, row in zip(_FITTED, tried.rows, strict=True)}
    series = max(_SERIES, key=shares.__getitem__)
    whole, voted = cascades(series)
    tries = swept(folder, (whole, voted), {"dev": dev})
    runs = {flow: _run_of(row) for flow, row in zip((whole, voted), tries.rows, strict=True)}
    asked = {
        "cascade, as often right as the series": (whole, ("--min-accuracy", str(shares[series]))),
        "cascade, most often right": (whole, ()),
        "cascade that ends in a vote": (voted, ()),
    }
    chosen: dict[str, str] = {}
    notes = []
    for name, (auto, limits) in asked.items():
        file = folder / "auto.flow"
        file.write_text(f"{auto}\n", encoding="utf-8")
        done = _flowinfer("tune", str(file), "--on", str(runs[auto]), "--zoo", "lab", *limits)
        flow = done.stdout.strip()
        if done.returncode:
            notes.append(f"{name}: not fitted, {done.stderr.strip().splitlines()[-1]}")
        elif flow in chosen.values():
            notes.append(f"{name}: the same threshold")
        else:
            chosen[name] = flow
            notes.append(f"{name}: `{flow}`")
    routed = {"route of the models": (_SINGLE, "Ds", "Yi"), "route of the flows": (_SINGLE, _FUSED, series)}
    routes = {name: _route(folder, dev, members) for name, members in routed.items()}
    return Fit(series, shares, chosen, routed, routes, tuple(notes))


def _route(folder: Path, dev: Path, members: Sequence[str]) -> str:
    """Learn routes among flows; return the flow that picks by them."""
    learned = swept(folder, members, {"dev": dev})
    table = (learned.folder / "routes.json").resolve()
    done = _flowinfer("route", str(learned.folder), "--anyway", "-o", str(table))
    if done.returncode:
        raise SystemExit(done.stderr)
    return f"({' / '.join(members)})[pick={json.dumps(str(table), ensure_ascii=False)}]"


def _flowinfer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command; print on standard error what it says."""
    done = subprocess.run([sys.executable, "-m", "flowinfer", *arguments], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    return done


def _run_of(row: SweepRow) -> Path:
    results = row.cells[0].results
    assert results is not None and results.run is not None, "it ran"
    return Path(results.run)


def read(row: SweepRow, datasets: Sequence[str], name: str) -> Flow:
    """Read what a flow of a sweep did."""
    records: dict[str, list[Record]] = {}
    for dataset, cell in zip(datasets, row.cells, strict=True):
        assert cell.results is not None and cell.results.run is not None, cell.error
        records[dataset] = list(read_records(Path(cell.results.run)))
    right = {
        dataset: {one.question.id: bool(one.score and one.score.correct) for one in found}
        for dataset, found in records.items()
    }
    steps = [one.trace.steps for found in records.values() for one in found]
    tokens = fmean(sum(step.tokens for step in own) for own in steps)
    fused = fmean(sum(step.fused_tokens or 0 for step in own) for own in steps)
    heads = [[head for step in own for head in step.heads] for own in steps]
    costs = (
        fmean(map(len, heads)),
        fmean(sum(head.prompt_tokens for head in own) for own in heads),
        fmean(sum(head.fed_tokens for head in own) for own in heads),
        row.seconds,
    )
    return Flow(name, right, costs, tokens, fused)


def share(right: Mapping[str, bool]) -> str:
    """Return an accuracy with its interval, in percent."""
    interval = wilson(sum(right.values()), len(right))
    return f"{100 * sum(right.values()) / len(right):.1f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def gain(counts: Paired, p: float) -> str:
    """Return a difference in points with its interval and its p."""
    interval = paired_interval(counts)
    return f"{100 * counts.difference:+.1f} [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}] p {p:.2g}"


def ratios(first: Flow, second: Flow) -> list[float | None]:
    """Return the first's costs over the second's."""
    return [one / other if one and other else None for one, other in zip(first.costs, second.costs, strict=True)]


def verdict(first: Flow, second: Flow, counts: Paired, p: float) -> str:
    """Return a sentence on two flows, no stronger than the numbers; p is corrected for all comparisons."""
    calls, _, fed, seconds = ratios(first, second)
    cost = "" if fed is None else f"; it takes {calls:.2f} times the calls, {fed:.2f} times the fed ids"
    cost += "" if seconds is None else f", {seconds:.2f} times the seconds alone"
    is_dearer = fed is not None and min(fed, seconds or fed) > _CHEAPER
    if p >= 1 - CONFIDENCE:
        said = f"no difference shown (at most {max(0.0, -100 * paired_interval(counts).low):.1f} points fewer, 95 %)"
    else:
        said = f"right {'more' if counts.difference > 0 else 'less'} often ({100 * counts.difference:+.1f} points)"
    if is_dearer and (p >= 1 - CONFIDENCE or counts.difference < 0):
        said += ", and hardly cheaper, if at all: does not pay here"
    return f"{first.name} against {second.name}: {said}{cost}."


def compared(report: Report, flows: Sequence[Flow], pairs: Sequence[tuple[Flow, Flow]]) -> None:
    """Add the flows, the comparisons and a sentence on each comparison."""
    base = flows[0].costs[-1]
    for flow in flows:
        seconds = flow.costs[-1] / base if flow.costs[-1] and base else None
        cells = [share(flow.right[name]) for name in _SETS]
        report.add(flow.name, *cells, share(flow.together), *flow.costs[:-1], seconds)
    found = [paired(one.together, other.together) for one, other in pairs]
    corrected = holm([counts.p_value for counts in found])
    for (one, other), counts, p in zip(pairs, found, corrected, strict=True):
        single = [paired(one.right[name], other.right[name]) for name in _SETS]
        cells = [gain(own, own.p_value) for own in single]
        report.add(f"{one.name} - {other.name}", *cells, gain(counts, p), *ratios(one, other))
        report.note(verdict(one, other, counts, p))


def oracle(name: str, flows: Sequence[Flow]) -> Flow:
    """Return what choosing the right flow for every question would give."""
    first = flows[0].right
    right = {name: {i: any(flow.right[name][i] for flow in flows) for i in own} for name, own in first.items()}
    return Flow(name, right)


def main() -> None:
    """Answer, fit, compare; print the table."""
    parser = options(__doc__ or "")
    parser.add_argument("--out", type=Path, required=True, help="folder of items and sweeps, to go on with")
    parser.add_argument("--questions", type=typed.number, default=300, help="test items of each data set")
    parser.add_argument("--dev", type=int, default=100, help="dev items of each data set")
    parser.add_argument("--latency", type=int, default=10, help="questions of each path and set that are timed alone")
    arguments = parser.parse_args()
    measure(arguments).finish(arguments)


def measure(arguments: argparse.Namespace) -> Report:
    """Return the filled table."""
    items = make_items(arguments.out / "items", arguments.questions, arguments.dev)
    dev = items.pop("dev")
    chosen = fit(arguments.out / "dev", dev)
    plain = (_SINGLE, "Ds", "Yi", _FUSED, chosen.series, _VOTE, _DEBATE, _REFINE, _ALL, _ENOUGH, _MEAN, _SAFE, _BYTE)
    texts = {flow: flow for flow in plain} | {**chosen.chosen, **chosen.routes}
    sweep = swept(arguments.out / "test", tuple(texts.values()), items, arguments.latency)
    flows = {name: read(row, sweep.datasets, name) for name, row in zip(texts, sweep.rows, strict=True)}
    pairs = [
        *((name, other) for name in chosen.chosen for other in (_SINGLE, _FUSED, chosen.series)),
        *((name, _VOTE) for name in chosen.chosen if name.endswith("vote")),
        (_ENOUGH, _ALL),
        (_ENOUGH, _SINGLE),
        (_DEBATE, _VOTE),
        (_REFINE, _SINGLE),
        (_REFINE, "Yi"),
    ]
    for name, members in chosen.routed.items():
        ideal = f"oracle of the {name}"
        flows[ideal] = oracle(ideal, [flows[member] for member in members])
        pairs += [(name, max(members, key=chosen.shares.__getitem__)), (name, ideal)]
    pairs += [(_SAFE, _MEAN), (_BYTE, _MEAN)]
    command = {"command": "`python benchmarks/control.py --out FOLDER`"}
    setup = command | setup_of(
        "cpu", "float32", test=f"{arguments.questions} items a set", dev=f"{arguments.dev} a set"
    )
    columns = ["flow", *_SETS, "all", "calls", "ids read", "ids fed", f"seconds / {_SINGLE}'s"]
    report = Report(
        "What it gains and costs, on the lab zoo", setup | {"seed": _SEED, "timed alone": arguments.latency}, columns
    )
    report.note("a flow's row: accuracy in % with Wilson's 95 % interval; costs of a question, means over all items")
    report.note(
        "`A - B`: points, Newcombe's 95 % interval for pairs, p of McNemar's exact test, over `all` corrected for all"
        " comparisons (Holm); then A's costs over B's"
    )
    for note in chosen.notes:
        report.note(note)
    safe, mean = flows[_SAFE], flows[_MEAN]
    share_fused = 100 * safe.fused / safe.tokens
    report.note(f"{_SAFE} fused {share_fused:.0f} % of its {safe.tokens:.1f} tokens; {_MEAN} writes {mean.tokens:.1f}")
    compared(report, list(flows.values()), [(flows[one], flows[other]) for one, other in pairs])
    return report


if __name__ == "__main__":
    main()
