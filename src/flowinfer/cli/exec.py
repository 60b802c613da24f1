"""flowinfer exec: run a flow on a prompt or over a data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flowinfer.cli.elsewhere import answer, check_server, server_of
from flowinfer.cli.inputs import (
    Expression,
    FlowFile,
    NiceOption,
    PromptsOption,
    SetOption,
    ThreadsOption,
    ZooOption,
    pairs,
    read_checked,
    read_stdin,
    settings,
    whole_number,
)
from flowinfer.errors import UsageError
from flowinfer.output.shell import command as command_line
from flowinfer.output.shell import options as shell_options
from flowinfer.output.words import counted
from flowinfer.runs.jsonlog import decoded
from flowinfer.startup import STARTUP

if TYPE_CHECKING:
    from flowinfer.cli.asked import Asked
    from flowinfer.runs.experiment import Request
    from flowinfer.runs.remote import Server
    from flowinfer.runs.summary import Results
    from flowinfer.spec import Flow
    from flowinfer.tasks.base import Dataset

AnswerIndexOption = Annotated[
    Literal["0", "1", "none"] | None,
    typer.Option(
        metavar="0|1|none",
        help="What answers that are an option's index count from, or that none is; told from the data if not given.",
    ),
]


DataOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PATH", help="Local file or folder of a data set; NAME:dev=PATH of its examples."),
]
FewShotOption = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="N worked examples above each question, of the set's dev split.")
]

ReplicasOption = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Copies of the plan, each a process with GPUs, or CPU cores, of its own."),
]

ClusterOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ADDRESS",
        help="Run the copies on the hosts of a Ray cluster, as many as have room if --replicas does not say;"
        " with --resume also 'here'.",
    ),
]


def command(
    file: FlowFile = None,
    expression: Expression = None,
    dataset: Annotated[
        str | None, typer.Option(help="A name (`flowinfer datasets` lists them), or the path of a .jsonl file.")
    ] = None,
    data: DataOption = None,
    few_shot: FewShotOption = None,
    prompt: Annotated[str | None, typer.Option(help="Ask one question; without it, standard input is read.")] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE|-",
            help="Ask each line: a question, or JSON {id?, prompt or messages}; answers are JSON lines in this order.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="With --input: file of answers, gone on with where it has some."),
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show which head wanted which token.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions.")] = None,
    sample: Annotated[int | None, typer.Option(help="N questions at random (the paper's protocol).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of --sample; 42 if not given.")] = None,
    ids: Annotated[str | None, typer.Option(metavar="ID,ID", help="Only these questions.")] = None,
    answer_index: AnswerIndexOption = None,
    batch: Annotated[
        str | None, typer.Option(metavar="auto|N", help="Rows at once; 1 is the paper's protocol.")
    ] = None,
    replicas: ReplicasOption = None,
    cluster: ClusterOption = None,
    engine: Annotated[
        Literal["auto", "packed", "reference"] | None,
        typer.Option(
            help="Decoding loops: auto = packed where it can run; packed = on a CPU in half precision too;"
            " reference = rounds over the models' own sessions, no drafts. In float32 all write one text."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Let a running server (flowinfer serve) answer the data set's questions; with --resume also 'here'."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --url: the flow's name there, if not its file's.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="With --url: variable that holds the server's key.")
    ] = None,
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
    by: Annotated[
        Literal["text", "likelihood"] | None,
        typer.Option(
            help="How the flow answers: it writes a text, or gives the likeliest letter of a question's choices."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(metavar="[RUN]", help="Go on with a run as it was begun: its name, or nothing for the latest."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write cached steps.")] = False,
    allow_cached_latency: Annotated[
        bool, typer.Option("--allow-cached-latency", help="Count the seconds of cached steps as well.")
    ] = False,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit 5 if the accuracy is below this share (0 to 1).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the data, print the plan and stop.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: ThreadsOption = None,
    nice: NiceOption = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on standard error; results are printed.")
    ] = False,
) -> None:
    """Run a flow: over a data set, or on one prompt whose answer is streamed."""
    given: dict[str, Any] = {
        "zoo": zoo,
        "sets": settings(set_ if by is None else [*(set_ or []), f"by={by}"], prompts),
        "dataset": dataset,
        "data": None if data is None else {name: str(path.resolve()) for name, path in data_paths(data).items()},
        "limit": limit,
        "sample": sample,
        "seed": seed,
        "ids": None if ids is None else tuple(part.strip() for part in ids.split(",") if part.strip()),
        "answer_index": answer_index,
        "few_shot": few_shot,
        "batch": None if batch is None else batch_size(batch),
        "replicas": ("auto" if cluster else None) if replicas is None else batch_size(replicas, "--replicas"),
        "cluster": cluster,
        "engine": engine,
        "use_cache": False if no_cache else None,
        "url": url,
        "model": model,
        "api_key_env": api_key_env,
    }
    if dataset is not None or resume is not None:
        if prompt is not None or trace:
            raise UsageError("--prompt and --trace ask one question; --dataset asks many", help="leave one of them out")
        if fail_under is not None and not 0 <= fail_under <= 1:
            raise UsageError(f"--fail-under {fail_under}: an accuracy is between 0 and 1")
    if by == "likelihood" and url is not None:
        raise UsageError(
            "--by is not for --url: a server's flows decode as they say", help="serve it with by=likelihood"
        )
    if file == "-" and prompt is None and dataset is None:
        raise UsageError("standard input cannot be both the flow and the question", help="give one with --prompt")
    if input_ is not None:
        others = (dataset, resume, prompt, url, trace or None, "file is -" if file == input_ == "-" else None)
        if any(other is not None for other in others):
            cure = "leave --dataset, --prompt, --trace, --resume and --url out, and read the flow from a file"
            raise UsageError("--input asks the lines of a file", help=cure)
        _refuse_data_options(data, few_shot, limit, sample, ids, fail_under, None)
        if dry_run or any(one is not None for one in (engine, replicas, cluster)):
            raise UsageError(
                "--dry-run, --engine, --replicas and --cluster are not for --input",
                help="`flowinfer plan` prints the plan",
            )
        flow = read_checked(file, expression, zoo, given["sets"])
        answer(flow, input_, output, given["batch"], says_steps=json_, quiet=quiet)
        return
    has_copies = replicas is not None or cluster is not None
    if has_copies and ((dataset is None and resume is None) or url not in (None, "here")):
        cure = "--dataset NAME, and no --url"
        raise UsageError("--replicas and --cluster answer a data set's questions", help=cure)
    if output is not None:
        raise UsageError("-o is the file of answers of --input", help="--input FILE|-; --out names the folder of runs")
    check_server(url, model, api_key_env, has_data=dataset is not None, resumes=resume is not None)
    options = given
    if resume is None:
        flow = read_checked(file, expression, zoo, given["sets"])
    else:
        resume, flow, options = _begun(resume, out, file, expression, given)
    if options["dataset"] is None:
        _refuse_data_options(data, few_shot, limit, sample, ids, fail_under, resume)
        if dry_run:
            _show_plan(flow, as_json=json_, out=out)
        else:
            read_ahead(flow)
            ask_one(flow, prompt, trace=trace, as_json=json_, quiet=quiet)
        return
    asked = _asked(flow, file, options)
    questions = _load(flow, asked)
    if dry_run:
        for note in filter(None, (questions.note,)):
            print(f"note: {note}", file=sys.stderr)
        _show_plan(flow, as_json=json_, out=out)
        return
    server = server_of(asked.url, asked.model, asked.api_key_env)
    if server is None:
        read_ahead(flow)
    request = _request(flow, asked, out, resume, server, allow_cached_latency=allow_cached_latency)
    results = _evaluate(flow, questions, request, quiet=quiet or (json_ and not sys.stderr.isatty()))
    _show_results(results, fail_under, as_json=json_)


def read_ahead(flow: Flow) -> None:
    """Let files of models come into memory, and kernels compile, while Python imports what runs them."""
    from flowinfer import checkpoint
    from flowinfer.engine.network import beside
    from flowinfer.machine import model_folder

    found = [model_folder(spec.ref, spec.revision) for spec in flow.models.values() if spec.backend == "hf"]
    checkpoint.read_ahead(filter(None, found))
    beside.begin(flow.models.values())


def _load(flow: Flow, asked: Asked) -> Dataset:
    from flowinfer.tasks.base import load_for

    chosen = {name: getattr(asked, name) for name in ("limit", "sample", "seed", "ids", "few_shot")}
    chosen |= {"data": {name: Path(path) for name, path in asked.data.items()}}
    return load_for([flow], asked.dataset, answer_index=index_base(asked.answer_index), **chosen)


def _request(
    flow: Flow, asked: Asked, out: Path, resume: str | None, server: Server | None, *, allow_cached_latency: bool
) -> Request:
    from flowinfer.runs.experiment import Request

    return Request(
        out=out,
        batch=asked.batch,
        replicas=asked.replicas,
        cluster=asked.cluster,
        engine=asked.engine,
        resume=resume,
        use_cache=asked.use_cache,
        allow_cached_latency=allow_cached_latency,
        server=server,
        settings={
            **{name: getattr(asked, name) for name in ("sample", "seed", "limit", "answer_index", "few_shot")},
            "zoo_why": flow.zoo_why,
            "asked": asked.model_dump(mode="json"),
        },
    )


def _show_results(results: Results, fail_under: float | None, *, as_json: bool) -> None:
    """Print a run's results; exit where a question failed, or too few were right."""
    if as_json:
        print(json.dumps(_plain(results), ensure_ascii=False))
    else:
        from flowinfer.runs.tables import print_results

        print_results(results)
    if results.failed:
        raise typer.Exit(4)
    if fail_under is not None and (results.accuracy is None or results.accuracy < fail_under):
        said = "no accuracy: no question has a verdict" if results.accuracy is None else f"accuracy {results.accuracy}"
        print(f"{said} is below {fail_under}" if results.n else said, file=sys.stderr)
        raise typer.Exit(5)


def _show_plan(flow: Flow, *, as_json: bool, out: Path) -> None:
    from flowinfer.cli.plan import show_plan

    show_plan(flow, as_json=as_json, out=out)


def _begun(
    resume: str, out: Path, file: str | None, expression: str | None, given: dict[str, Any]
) -> tuple[str, Flow, dict[str, Any]]:
    """Return a run's path, its flow and its options; what is given beside counts, and is compared when it goes on."""
    from flowinfer.cli.asked import asked_of, chosen
    from flowinfer.language.check import check
    from flowinfer.runs.finding import find_run

    path = find_run(resume, out)
    has_flow = file is not None or expression is not None
    try:
        before = asked_of(path)
    except UsageError:
        if not has_flow or given["dataset"] is None:
            raise
        return str(path), read_checked(file, expression, given["zoo"], given["sets"]), given
    options = chosen(given, before)
    if has_flow:
        return str(path), read_checked(file, expression, options["zoo"], options["sets"]), options
    text = decoded((path / "pipeline.flow").read_bytes())
    flow = check(text, file=before.file, zoo=options["zoo"], overrides=options["sets"], base=Path(before.base))
    return str(path), flow, options


def _asked(flow: Flow, file: str | None, options: dict[str, Any]) -> Asked:
    """Return the whole of what a run is asked for, so that it can go on from anywhere."""
    from flowinfer.cli.asked import Asked, zoo_of

    base = str((Path(file).parent if file is not None and file != "-" else Path()).resolve())
    defaults = {
        "sets": {},
        "data": {},
        "few_shot": 0,
        "seed": 42,
        "batch": "auto",
        "replicas": 1,
        "engine": "auto",
        "use_cache": True,
    }
    found = {name: defaults.get(name) if value is None else value for name, value in options.items()}
    named = Path(str(found["dataset"]))
    found["dataset"] = str(named.resolve()) if named.exists() else found["dataset"]
    return Asked.model_validate(found | {"file": f"{flow.name}.flow", "base": base, "zoo": zoo_of(flow, base)})


def _evaluate(flow: Flow, dataset: Dataset, request: Request, *, quiet: bool) -> Results:
    from flowinfer.runs.experiment import evaluate
    from flowinfer.runs.live import LiveProgress
    from flowinfer.tasks.base import language_note

    name, out = "", request.out or "runs"

    def again() -> str:
        return command_line("exec", options=shell_options(out, "runs", "--resume", name))

    note = language_note(flow, dataset.questions, dataset.label)
    with LiveProgress(len(dataset.questions), is_quiet=quiet) as live:

        def started(plan: object, run: object, records: object) -> None:
            nonlocal name
            path = run.path if run is not None else Path()  # type: ignore[attr-defined]  # a Run
            name = path.name if path.parent in (Path(), request.out) else str(path)
            live.notice_start(flow, dataset.label, name, note)
            if dataset.note:
                live.notice(dataset.note)
            live.planned(len(plan.steps))  # type: ignore[attr-defined]  # a Plan
            live.resumed(records)  # type: ignore[arg-type]  # a sequence of records

        try:
            results = evaluate(flow, dataset, request, observer=live, on_record=live.answered, on_start=started)
        except KeyboardInterrupt:
            cure = f"go on with: {again()}" if name else "nothing was begun"
            print(f"\ninterrupted; {cure}", file=sys.stderr)
            raise typer.Exit(130) from None
    if live.first_failure is not None:
        failed, reason = live.first_failure.question.id, live.first_failure.trace.error
        print(f"{counted(results.failed, 'question')} failed, '{failed}' because: {reason}", file=sys.stderr)
        print(f"  = help: {again()} asks them again", file=sys.stderr)
    return results


def ask_one(flow: Flow, prompt: str | None, *, trace: bool, as_json: bool, quiet: bool) -> None:
    """Answer one question, streaming it; None = read it from standard input."""
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError("no question", help="--prompt TEXT, --dataset NAME, or a question on standard input")
        prompt = read_stdin().strip()
    if not prompt.strip():
        raise UsageError("the question is empty", help="--prompt TEXT")
    from flowinfer.results import Question

    STARTUP.done("command line")
    with STARTUP.waiting_for("import", "torch"):
        from flowinfer.runs.ask import ask
    from flowinfer.tasks.base import language_note

    is_told, before = not quiet and not (as_json and not sys.stderr.isatty()), list[str]()
    if is_told:
        print(flow.words, file=sys.stderr)
        asked = Question(id="prompt", question=prompt, reference="")
        before += filter(None, (flow.zoo_note, language_note(flow, [asked])))
        for note in before:
            print(f"note: {note}", file=sys.stderr)

    def write(text: str) -> None:
        print(text, end="", flush=True)

    streams = None if as_json or trace else write
    answer = ask(flow, prompt, on_text=streams, shows_trace=trace, quiet=quiet or as_json)
    if answer.trace.error is not None:
        print(f"error: {answer.trace.error}", file=sys.stderr)
        raise typer.Exit(4)
    told = json.dumps(answer.to_json() | {"start": STARTUP.to_json()}, ensure_ascii=False) if as_json else ""
    print(told or (answer.text if trace else ""), flush=True)
    for note in answer.notes if is_told else ():
        if note not in before:
            print(f"note: {note}", file=sys.stderr)


def data_paths(given: list[str] | None) -> dict[str, Path]:
    """Return what `--data` says, by data set.

    Raises:
        UsageError: a name is unknown.
    """
    from flowinfer.registry import tasks

    paths = {name: Path(path).expanduser() for name, path in pairs("--data", given).items()}
    for name in paths:
        if name.removesuffix(":dev") not in tasks():
            raise UsageError(f"--data {name}=...: no data set of that name", help=f"known: {', '.join(tasks())}")
    return paths


def index_base(text: str | None) -> Literal[0, 1, "none"] | None:
    """Return what `--answer-index` says."""
    return None if text is None else "none" if text == "none" else 0 if text == "0" else 1


def batch_size(text: str, option: str = "--batch") -> int | Literal["auto"]:
    """Return what `--batch` says, or another option that takes a number or `auto`.

    Raises:
        UsageError: it is neither 'auto' nor a number that can be.
    """
    if text == "auto":
        return "auto"
    return whole_number(option, text, or_else="'auto' or ")


def _refuse_data_options(*given: object) -> None:
    names = ("--data", "--few-shot", "--limit", "--sample", "--ids", "--fail-under", "--resume")
    named = [name for name, value in zip(names, given, strict=True) if value is not None]
    if named:
        raise UsageError(f"{', '.join(named)} without --dataset", help="--dataset NAME|FILE.jsonl")


def _plain(results: Results) -> dict[str, object]:
    data = results.model_dump(mode="json", exclude={"steps", "subjects"})
    return data | {"interval": list(results.interval), "start": STARTUP.to_json()}
