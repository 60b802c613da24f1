"""flowinfer exec: run a flow on a prompt or over a data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowinfer.cli.inputs import Expression, FlowFile, PromptsOption, SetOption, ZooOption, pairs, read_checked
from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from flowinfer.spec import Flow
    from flowinfer.summary import Results
    from flowinfer.tasks.base import Dataset


def command(
    file: FlowFile = None,
    expression: Expression = None,
    dataset: Annotated[
        str | None, typer.Option(help="gsm8k, ceval, mathematics, or the path of a .jsonl file.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Local file or folder of a data set.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask one question; without it, standard input is read.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show which head wanted which token.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions.")] = None,
    sample: Annotated[int | None, typer.Option(help="N questions at random (the paper's protocol).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of --sample.")] = 42,
    ids: Annotated[str | None, typer.Option(metavar="ID,ID", help="Only these questions.")] = None,
    batch: Annotated[str, typer.Option(metavar="auto|N", help="Rows at once; 1 is the paper's protocol.")] = "auto",
    engine: Annotated[
        Literal["auto", "packed", "reference"],
        typer.Option(
            help="Decoding loops: auto = packed where it can run; reference = the loop that all others must equal."
        ),
    ] = "auto",
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(metavar="[RUN]", help="Go on with a run: its name, or nothing for the latest."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write cached steps.")] = False,
    allow_cached_latency: Annotated[
        bool, typer.Option("--allow-cached-latency", help="Count the seconds of cached steps as well.")
    ] = False,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit 5 if the accuracy is below this share (0 to 1).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
) -> None:
    """Run a flow: over a data set, or on one prompt whose answer is streamed."""
    if file == "-" and prompt is None and dataset is None:
        raise UsageError("standard input cannot be both the flow and the question", help="give one with --prompt")
    rows = batch_size(batch)
    flow = read_checked(file, expression, zoo, set_, prompts)
    if dry_run:
        from flowinfer.cli.plan import show_plan

        show_plan(flow, as_json=json_)
        return
    if dataset is None:
        _refuse_data_options(data, limit, sample, ids, fail_under, resume)
        _ask(flow, prompt, trace=trace, as_json=json_, quiet=quiet)
        return
    if prompt is not None or trace:
        raise UsageError("--prompt and --trace ask one question; --dataset asks many", help="leave one of them out")
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under {fail_under}: an accuracy is between 0 and 1")
    from flowinfer.plan import columns
    from flowinfer.tasks.base import load_questions

    questions = load_questions(
        dataset,
        data=data_paths(data),
        limit=limit,
        sample=sample,
        seed=seed,
        ids=[part.strip() for part in ids.split(",") if part.strip()] if ids else None,
        use_items=flow.zoo in ("toy", "lab"),
        columns=columns(flow),
    )
    from flowinfer.experiment import Request

    request = Request(
        out=out,
        batch=rows,
        engine=engine,
        resume=resume,
        use_cache=not no_cache,
        allow_cached_latency=allow_cached_latency,
        settings={"sample": sample, "seed": seed, "limit": limit, "zoo_why": _why(flow)},
    )
    results = _evaluate(flow, questions, request, quiet=quiet or (json_ and not sys.stderr.isatty()))
    if json_:
        print(json.dumps(_plain(results), ensure_ascii=False))
    else:
        from flowinfer.tables import print_results

        print_results(results)
    if results.failed:
        raise typer.Exit(4)
    if fail_under is not None and (results.accuracy or 0.0) < fail_under:
        print(f"accuracy {results.accuracy} is below {fail_under}", file=sys.stderr)
        raise typer.Exit(5)


def _evaluate(flow: Flow, dataset: Dataset, request: object, *, quiet: bool) -> Results:
    from flowinfer.experiment import Request, evaluate
    from flowinfer.live import LiveProgress
    from flowinfer.tasks.base import question_text

    assert isinstance(request, Request), "made by the command"
    name = ""
    is_lab = dataset.label.endswith(" (lab)")  # the lab's models learnt its own items in these words
    note = None if is_lab else _foreign(flow, [question_text(question) for question in dataset.questions])
    with LiveProgress(len(dataset.questions), is_quiet=quiet) as live:

        def started(plan: object, run: object, records: object) -> None:
            nonlocal name
            name = run.path.name if run is not None else ""  # type: ignore[attr-defined]  # a Run
            live.notice_start(flow, dataset.label, name, note)
            live.planned(len(plan.steps))  # type: ignore[attr-defined]  # a Plan
            live.resumed(records)  # type: ignore[arg-type]  # a sequence of records

        where = f"--out {request.out} " if str(request.out) != "runs" else ""
        try:
            results = evaluate(flow, dataset, request, observer=live, on_record=live.answered, on_start=started)
        except KeyboardInterrupt:
            cure = f"go on with the same command and {where}--resume {name}" if name else "nothing was begun"
            print(f"\ninterrupted; {cure}", file=sys.stderr)
            raise typer.Exit(130) from None
    if live.first_failure is not None:
        failed, reason = live.first_failure.question.id, live.first_failure.trace.error
        print(f"{results.failed} questions failed, '{failed}' because: {reason}", file=sys.stderr)
        print(f"  = help: the same command with {where}--resume {name} asks them again", file=sys.stderr)
    return results


def _ask(flow: Flow, prompt: str | None, *, trace: bool, as_json: bool, quiet: bool) -> None:
    """Answer one question, streaming it."""
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError("no question", help="--prompt TEXT, --dataset NAME, or a question on standard input")
        prompt = sys.stdin.read().strip()
    if not prompt.strip():
        raise UsageError("the question is empty", help="--prompt TEXT")
    from flowinfer.ask import ask

    if not quiet and not (as_json and not sys.stderr.isatty()):
        print(f"prompts '{flow.prompts}', zoo {flow.zoo} ({flow.zoo_why})", file=sys.stderr)
        for note in filter(None, (flow.zoo_note, _foreign(flow, [prompt]))):
            print(f"note: {note}", file=sys.stderr)
    answer = ask(flow, prompt, stream=None if as_json else sys.stdout, shows_trace=trace, quiet=quiet or as_json)
    if answer.trace.error is not None:
        print(f"error: {answer.trace.error}", file=sys.stderr)
        raise typer.Exit(4)
    if as_json:
        print(json.dumps(answer.to_json(), ensure_ascii=False))


def _foreign(flow: Flow, questions: list[str]) -> str | None:
    from flowinfer.prompts import foreign_note
    from flowinfer.spec import nodes

    return foreign_note(flow.prompts, (node.template for node in nodes(flow.root)), questions)


def data_paths(given: list[str] | None) -> dict[str, Path]:
    """Return what `--data` says, by data set.

    Raises:
        UsageError: a name is unknown.
    """
    from flowinfer.registry import tasks

    paths = {name: Path(path).expanduser() for name, path in pairs("--data", given).items()}
    for name in paths:
        if name not in tasks():
            raise UsageError(f"--data {name}=...: no data set of that name", help=f"known: {', '.join(tasks())}")
    return paths


def batch_size(text: str) -> int | Literal["auto"]:
    """Return what `--batch` says.

    Raises:
        UsageError: it is neither 'auto' nor a whole number.
    """
    if text == "auto":
        return "auto"
    if text.isdigit() and int(text) >= 1:
        return int(text)
    raise UsageError(f"--batch '{text}': expected 'auto' or a whole number of at least 1")


def _refuse_data_options(*given: object) -> None:
    names = ("--data", "--limit", "--sample", "--ids", "--fail-under", "--resume")
    named = [name for name, value in zip(names, given, strict=True) if value is not None]
    if named:
        raise UsageError(f"{', '.join(named)} without --dataset", help="--dataset gsm8k|ceval|mathematics|FILE.jsonl")


def _why(flow: Flow) -> str:
    return flow.zoo_why


def _plain(results: Results) -> dict[str, object]:
    data = results.model_dump(mode="json", exclude={"steps", "subjects"})
    return data | {"interval": list(results.interval)}
