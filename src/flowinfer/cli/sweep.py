"""flowinfer sweep: many wirings over many data sets, each shared step run once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowinfer.cli.exec import (
    AnswerIndexOption,
    ClusterOption,
    DataOption,
    FewShotOption,
    ReplicasOption,
    batch_size,
    data_paths,
    index_base,
)
from flowinfer.cli.inputs import (
    NiceOption,
    PromptsOption,
    SetOption,
    ThreadsOption,
    ZooOption,
    pairs,
    settings,
    warn,
    whole_number,
)
from flowinfer.errors import UsageError
from flowinfer.output import shell

if TYPE_CHECKING:
    from flowinfer.sweeps.outcome import Sweep
    from flowinfer.sweeps.request import SweepRequest


def command(
    models: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Models of the zoo, to be wired in the paper's ways.")
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Of single, si, pi, s2p, p2s; all if not given.")
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Names that `flowinfer datasets` lists, or paths of .jsonl files."),
    ] = None,
    flows: Annotated[
        list[str] | None, typer.Option(metavar="DIR|FILE", help="Flow files, or a folder of them; may be repeated.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(metavar="N,N", help="How many models a path wires; up to three if not given.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Run every value: max_tokens, fuser, weights, prompts, context, a param."),
    ] = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
    data: DataOption = None,
    few_shot: FewShotOption = None,
    sample: Annotated[int | None, typer.Option(help="N questions at random (the paper's protocol).")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of --sample; 42 if not given.")] = None,
    answer_index: AnswerIndexOption = None,
    zoo: ZooOption = None,
    independent: Annotated[
        bool, typer.Option("--independent", help="Every path alone in batch 1, sharing nothing: the paper's protocol.")
    ] = False,
    latency: Annotated[
        int | None, typer.Option(metavar="N", help="Time N questions of every path alone, paths taking turns.")
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="auto|N", help="Rows at once.")] = None,
    replicas: ReplicasOption = None,
    cluster: ClusterOption = None,
    max_paths: Annotated[int | None, typer.Option(help="Refuse to run more paths; 200 if not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of sweep folders.")] = Path("sweeps"),
    resume: Annotated[
        str | None,
        typer.Option(metavar="[SWEEP]", help="Go on with a sweep: its name, or nothing for the latest."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Take no steps of earlier runs; share within the sweep only.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: ThreadsOption = None,
    nice: NiceOption = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on standard error; results are printed.")
    ] = False,
) -> None:
    """Run every wiring of some models, or a set of flows, over data sets; steps that paths share run once."""
    from flowinfer.sweeps.request import SweepRequest

    said = {name: value for name, value in locals().items() if name in SweepRequest.model_fields}
    said |= {"params": settings(set_, prompts), "independent": independent or None}
    said |= {"use_cache": False if no_cache else None}
    said |= {"replicas": said.get("replicas") or ("auto" if cluster else None)}
    given = {name: _READ.get(name, _same)(value) for name, value in said.items() if value is not None}
    request = _request(given, resume, out)
    if dry_run:
        from flowinfer.sweeps.estimate import estimate, print_estimate

        estimated = estimate(request, out)
        print(json.dumps(asdict(estimated), ensure_ascii=False)) if json_ else print_estimate(estimated)
        return
    sweep = _run(request, out, resume, is_quiet=quiet or (json_ and not sys.stderr.isatty()))
    if json_:
        print(json.dumps(_plain(sweep), ensure_ascii=False))
    else:
        from flowinfer.sweeps.table import print_sweep

        print_sweep(sweep)
    if sweep.failures:
        for line in sweep.failures:
            print(f"failed: {line}", file=sys.stderr)
        print(f"  = help: {shell.option('--resume', sweep.folder.name)} runs them again", file=sys.stderr)
        raise typer.Exit(4)


def _run(request: SweepRequest, out: Path, resume: str | None, *, is_quiet: bool) -> Sweep:
    from flowinfer.sweeps.folder import SweepFolder
    from flowinfer.sweeps.progress import SweepProgress
    from flowinfer.sweeps.run import run_sweep

    begun: list[SweepFolder] = []
    with SweepProgress(is_quiet=is_quiet) as progress:
        try:
            return run_sweep(
                request, out=out, resume=resume, progress=progress, on_folder=begun.append, on_warnings=warn
            )
        except KeyboardInterrupt:
            name = begun[0].path.name if begun else ""
            again = shell.command("sweep", options=shell.options(out, "sweeps", "--resume", name))
            cure = f"go on with: {again}" if name else "nothing was begun"
            print(f"\ninterrupted; {cure}", file=sys.stderr)
            raise typer.Exit(130) from None


def _request(given: dict[str, Any], resume: str | None, out: Path) -> SweepRequest:
    """Return what was asked for; a sweep that goes on keeps what it was started with."""
    from flowinfer.sweeps.request import going_on, make_request

    if resume is None:
        return make_request(**given)
    from flowinfer.sweeps.folder import find_sweep, request_of

    path = find_sweep(resume, out)
    return going_on(request_of(path), path.name, given)


def _plain(sweep: Sweep) -> dict[str, Any]:
    labels = dict(zip(sweep.datasets, sweep.labels, strict=True))
    return sweep.to_json() | {"folder": str(sweep.folder), "zoo": sweep.zoo, "datasets": labels}


def _depths(text: str) -> tuple[int, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--depth '{text}': expected whole numbers", help="--depth 3, or --depth 2,3")
    return tuple(whole_number("--depth", name) for name in names)


def _grid(given: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        ((name, values),) = pairs("--grid", [text]).items()
        if name in found:
            raise UsageError(f"--grid {name} is given twice", help=f"--grid {name}=A,B in one")
        found[name] = tuple(value.strip() for value in values.split(","))
        if not all(found[name]):
            raise UsageError(f"--grid '{text}': an empty value", help=f"--grid {name}=A,B")
    return found


_READ: Mapping[str, Callable[[Any], object]] = {  # texts of the command line
    "depth": _depths,
    "flows": lambda given: [name for text in given for name in text.split(",")],
    "grid": _grid,
    "data": data_paths,
    "answer_index": index_base,
    "batch": batch_size,
    "replicas": lambda given: batch_size(given, "--replicas"),
}
"""How options are read whose texts the request does not read itself."""


def _same(value: object) -> object:
    return value
