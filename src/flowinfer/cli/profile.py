"""flowinfer profile: where a step's time goes, against what the memory of this machine allows."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowinfer.cli.exec import data_paths
from flowinfer.cli.inputs import Expression, FlowFile, PromptsOption, SetOption, ZooOption, read_checked, settings
from flowinfer.errors import RunError, UsageError
from flowinfer.startup import STARTUP

if TYPE_CHECKING:
    from flowinfer.profiling.figures import Profile
    from flowinfer.results import Question
    from flowinfer.spec import Flow


def command(
    file: FlowFile = None,
    expression: Expression = None,
    steps: Annotated[int, typer.Option(help="Tokens that each row emits while measured.")] = 32,
    batch: Annotated[int, typer.Option(help="Rows at once.")] = 1,
    dataset: Annotated[
        str | None,
        typer.Option(help="gsm8k, ceval, mathematics or a .jsonl file; a few built-in questions without it."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Local file or folder of a data set.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the phases for chrome://tracing or ui.perfetto.dev.")
    ] = None,
    kernels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write torch.profiler's trace of everything, kernels included.")
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="Show only where the seconds until the first token go.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object; all times in seconds.")] = False,
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
) -> None:
    """Measure every step of a flow: each head, transfer, fusion, the whole, and the floor of the memory."""
    for name, value in (("--steps", steps), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{name} {value}: expected a whole number of at least 1")
    if start and (dataset is not None or trace is not None or kernels is not None):
        raise UsageError("--start asks one question and measures nothing else", help="leave the other options out")
    for name, path in (("--trace", trace), ("--kernels", kernels)):
        if path is not None:
            _refuse_unwritable(name, path)
    if data and dataset is None:
        raise UsageError("--data without --dataset", help="--dataset NAME|FILE.jsonl")
    flow = read_checked(file, expression, zoo, settings(set_, prompts))
    if start:
        _show_start(flow, as_json=json_)
        return
    questions = _questions(flow, dataset, data, batch)
    from flowinfer.profiling.run import Request, profile
    from flowinfer.profiling.spans import write_trace
    from flowinfer.tasks.base import question_text

    with _torch_trace(kernels):
        found = profile(flow, Request(questions, batch, steps, question_text))
    if trace is not None:
        write_trace(trace, found.spans, {step.step: step.title for step in found.profile.steps})
    if json_:
        print(json.dumps(_plain(found.profile), ensure_ascii=False))
        return
    from flowinfer.profiling.show import print_profile

    print_profile(found.profile)
    for path in (trace, kernels):
        if path is not None:
            print(f"written: {path}", file=sys.stderr)


def _show_start(flow: Flow, *, as_json: bool) -> None:
    """Ask one question; show what was waited for until its first token."""
    from flowinfer.cli.exec import read_ahead

    read_ahead(flow)
    STARTUP.done("command line")
    with STARTUP.waiting_for("import", "torch"):
        from flowinfer.runs.ask import ask
    error = ask(flow, "What is 17 * 23?", quiet=as_json).trace.error
    if error is not None:
        raise RunError(f"the question failed: {error}")
    if as_json:
        print(json.dumps(STARTUP.to_json(), ensure_ascii=False))
        return
    from flowinfer.profiling.show import print_start

    print_start(STARTUP)


def _refuse_unwritable(option: str, path: Path) -> None:
    """Find out before anything is measured whether a file can be written."""
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no such folder '{path.parent}'")
    try:
        path.open("ab").close()
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be written: {error.strerror}") from error


def _questions(flow: Flow, dataset: str | None, data: list[str] | None, batch: int) -> tuple[Question, ...]:
    from flowinfer.tasks.base import language_note, load_for

    if dataset is None:
        from flowinfer.profiling.run import built_in_questions

        questions, label, data_note = built_in_questions(), "", None
    else:
        found = load_for([flow], dataset, data=data_paths(data), limit=batch)
        questions, label, data_note = found.questions, found.label, found.note
    for note in filter(None, (data_note, language_note(flow, questions, label))):
        print(f"note: {note}", file=sys.stderr)
    return questions


@contextmanager
def _torch_trace(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    from torch.profiler import profile as torch_profile

    with torch_profile() as recorded:
        yield
    recorded.export_chrome_trace(str(path))


def _plain(profile: Profile) -> dict[str, Any]:
    """Return a profile as plain data, with what is computed from its figures."""
    document = dataclasses.asdict(profile)
    for plain, step in zip(document["steps"], profile.steps, strict=True):
        plain["step_bytes"] = step.step_bytes
        plain["side_by_side_seconds"] = step.side_by_side
        plain["parts_times_floor"] = step.times_floor(step.parts.mean)
        plain["whole_times_floor"] = step.times_floor(step.whole.seconds_per_step)
    return document
