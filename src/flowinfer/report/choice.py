"""Which flow to use: the paths that no other beats in both accuracy and seconds, and the best under given limits."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from flowinfer.errors import DataError, FlowInferError, UnreadableFile, UsageError
from flowinfer.files import read_text
from flowinfer.language.check import check
from flowinfer.language.options import DECODING_KEYS, option_text
from flowinfer.language.pinning import pin
from flowinfer.output.words import counted
from flowinfer.planning.plain import to_json
from flowinfer.planning.plan import compile
from flowinfer.report.cells import Cells
from flowinfer.report.compare import counts
from flowinfer.report.evidence import Evidence, Wiring
from flowinfer.runs.store import info, read_json
from flowinfer.runs.summary import selections_of, taken_in

_NAMED = 3
"""Flows that are named where several are left out."""


@dataclass(frozen=True)
class Candidate:
    """A path that answered every question of every set."""

    wiring: Wiring
    setup: str
    """Settings that set it apart from other paths of its flow; "" where there are none."""
    accuracy: float
    """Mean over question sets."""
    interval: tuple[float, float]
    n: int
    """Questions of all sets."""
    seconds: float | None
    """Mean over question sets; None where one of them was not timed."""
    run: Path
    """One of its run folders."""
    calls: float | None = None
    """Model calls of a question, mean over question sets."""
    tokens: float | None = None
    """What all steps write for a question, mean over question sets."""
    taken: str = ""
    """How often each member was taken, over all sets, where steps may be skipped."""
    is_front: bool = False
    """Whether no other is both more accurate and faster."""


@dataclass(frozen=True)
class Choice:
    """What is recommended, among what."""

    winner: Candidate
    candidates: tuple[Candidate, ...]
    """All that meet the limits, the most accurate first."""
    num_beyond: int
    """Paths left out by the limits."""
    runner_up: Candidate | None
    p_value: float | None
    """McNemar's exact test of the winner against the runner-up, over all questions."""
    is_timed: bool
    num_left_out: int
    notes: tuple[str, ...]
    """What was not among the flows to choose from, as sentences."""


def choose(evidence: Evidence, *, max_seconds: float | None = None, min_accuracy: float | None = None) -> Choice:
    """Choose the most accurate path under limits; of equals the faster.

    Raises:
        UsageError: no path answered everything, limits on seconds without seconds, or none meets the limits.
    """
    groups = evidence.groups()
    found = [one for group in groups for one in _candidates(group)]
    left_out = _left_out(groups, {one.wiring.key for one in found})
    notes = _sentences(left_out)
    if not found:
        raise UsageError(
            _told("no path has an answer to every question of every data set", notes),
            help="finish the runs with --resume, or name runs over one data set",
        )
    is_timed = all(one.seconds is not None for one in found)
    if max_seconds is not None and not any(one.seconds is not None for one in found):
        raise UsageError(
            _told("--max-seconds needs seconds, and none were measured", notes),
            help="`flowinfer sweep --resume NAME --latency 5` times a sweep, `exec --batch 1 --no-cache` a run",
        )
    kept = [one for one in found if _meets(one, max_seconds, min_accuracy)]
    if not kept:
        best = max(found, key=_merit)
        raise UsageError(
            _told(f"none of {counted(len(found), 'path')} meets these limits", notes),
            help=f"the most accurate is {best.wiring.whole}: {100 * best.accuracy:.1f} %, {_seconds_text(best)}",
        )
    ordered = sorted(_with_front(kept), key=_merit, reverse=True)
    runner_up = ordered[1] if len(ordered) > 1 else None
    p_value = counts(evidence, ordered[0].wiring, runner_up.wiring).p_value if runner_up else None
    num_left_out = sum(map(len, left_out.values()))
    num_beyond = len(found) - len(kept)
    return Choice(ordered[0], tuple(ordered), num_beyond, runner_up, p_value, is_timed, num_left_out, notes)


def as_flow(choice: Choice) -> str:
    """Return the winner as the text of a .flow file that says where it comes from, with the settings that it ran with.

    Raises:
        DataError: its run folder is damaged.
    """
    winner = choice.winner
    low, high = (100 * end for end in winner.interval)
    lines = [
        f"# Recommended among {len(choice.candidates) + choice.num_beyond} paths: {100 * winner.accuracy:.1f} %"
        f" (95 % interval {low:.1f} - {high:.1f}, {winner.n} questions), {_seconds_text(winner)}.",
        *([f"# Settings: {winner.setup}"] if winner.setup else []),
    ]
    file = winner.run / "pipeline.flow"
    try:
        source = read_text(file)
    except UnreadableFile as error:
        raise DataError(f"{file}: missing or damaged", help="run the flow again") from error
    try:
        text = pin(source, _outside(winner.run, source))
    except FlowInferError:  # its imports, its tables or its zoo are elsewhere
        text = source
        lines.append(
            "# Its imports, routes or zoo are not here; settings that `--set` gave are in its run's plan.json."
        )
    return "\n".join(lines) + "\n" + text.rstrip("\n") + "\n"


def _outside(run: Path, source: str) -> dict[str, str]:
    """Return what a run's flow was given besides its text: params, and options that its plan has otherwise.

    Raises:
        FlowInferError: the text cannot be checked here.
    """
    said, plan = info(run).data, read_json(run / "plan.json")
    params = {name: option_text(value) for name, value in (said.get("params") or {}).items()}
    fresh = json.loads(json.dumps(to_json(compile(check(source, zoo=said.get("zoo"), overrides=params)))))
    found = dict(params)
    if plan["prompts"] != fresh["prompts"]:
        found["prompts"] = plan["prompts"]
    for key in DECODING_KEYS:
        had, has = ([step["decoding"].get(key) for step in one["steps"]] for one in (plan, fresh))
        if had != has and all(value == had[0] for value in had):
            found[key] = option_text(had[0][0] if isinstance(had[0], list) else had[0])  # `--set stop` is one text
    return found


def _candidates(group: Evidence) -> list[Candidate]:
    cells, found = Cells(group), []
    for wiring in group.wirings:
        over_all = cells.whole(wiring)[-1]
        if over_all.accuracy is not None:
            own = [cell for dataset in group.datasets if (cell := group.cell(wiring, dataset))]
            found.append(
                Candidate(
                    wiring,
                    group.setup,
                    over_all.accuracy,
                    (over_all.low, over_all.high),
                    over_all.n,
                    over_all.seconds,
                    own[0].run,
                    fmean(cell.calls or 0.0 for cell in own),
                    fmean(cell.tokens or 0.0 for cell in own),
                    taken_in(selections_of([record for cell in own for record in cell.records])),
                )
            )
    return found


def _left_out(groups: Sequence[Evidence], found: Collection[str]) -> dict[str, list[str]]:
    """Return the paths that are no candidates, by the sets that they should have answered and what helps."""
    left: dict[str, list[str]] = {}
    for group in groups:
        labels = ", ".join(sorted(dataset.label for dataset in group.datasets))
        for wiring in group.wirings:
            if wiring.key not in found:
                cells = [group.cell(wiring, dataset) for dataset in group.datasets]
                is_broken = any(cell is not None and not cell.is_whole for cell in cells)
                cure = "finish runs with --resume" if is_broken else "name runs over one data set"
                left.setdefault(f"{labels}; {cure}", []).append(wiring.whole.flow)
    return left


def _sentences(left_out: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return which paths are left out, and why."""
    told = []
    for why, paths in left_out.items():
        names = ", ".join(paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
        does = "is left out: it has not" if len(paths) == 1 else "are left out: none"
        told.append(f"{counted(len(paths), 'flow')} ({names}) {does} answered every question of {why}")
    return tuple(told)


def _told(problem: str, notes: Sequence[str]) -> str:
    """Return why there is no choice, and what was not among the flows to choose from."""
    return "; ".join((problem, *notes))


def _meets(one: Candidate, max_seconds: float | None, min_accuracy: float | None) -> bool:
    is_fast = max_seconds is None or (one.seconds is not None and one.seconds <= max_seconds)
    return is_fast and (min_accuracy is None or one.accuracy >= min_accuracy)


def _with_front(found: Sequence[Candidate]) -> list[Candidate]:
    """Mark the candidates that no other beats; without seconds only the most accurate are."""
    return [replace(one, is_front=not any(_beats(other, one) for other in found)) for one in found]


def _beats(other: Candidate, one: Candidate) -> bool:
    """Return whether a candidate is at least as good in both respects and better in one."""
    slow = float("inf")
    mine, theirs = (one.accuracy, one.seconds or slow), (other.accuracy, other.seconds or slow)
    return theirs[0] >= mine[0] and theirs[1] <= mine[1] and theirs != mine


def _merit(one: Candidate) -> tuple[float, float]:
    return one.accuracy, -(one.seconds if one.seconds is not None else float("inf"))


def _seconds_text(one: Candidate) -> str:
    return "seconds not measured" if one.seconds is None else f"{one.seconds:.2f} s a question"
