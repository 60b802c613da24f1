"""`flowinfer.sweep`: the Python interface of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from flowinfer.errors import in_python_words
from flowinfer.sweeps.outcome import Sweep
from flowinfer.sweeps.request import SweepRequest, make_request


@in_python_words()
def sweep(
    models: Sequence[str] | str = (),
    *,
    strategies: Sequence[str] | str = ("single", "SI", "PI", "S2P", "P2S"),
    datasets: Sequence[str] | str,
    flows: Sequence[str | Path] = (),
    sample: int | None = None,
    limit: int | None = None,
    seed: int = 42,
    answer_index: Literal[0, 1, "none"] | None = None,
    few_shot: int = 0,
    zoo: str | None = None,
    depth: int | Sequence[int] = (),
    params: Mapping[str, object] | None = None,
    grid: Mapping[str, Sequence[object]] | None = None,
    data: Mapping[str, str | Path] | None = None,
    independent: bool = False,
    latency: int = 0,
    batch: int | Literal["auto"] = "auto",
    replicas: int | Literal["auto"] = 1,
    use_cache: bool = True,
    max_paths: int = 200,
    out: str | Path = "sweeps",
    resume: str | None = None,
    quiet: bool = True,
) -> Sweep:
    """Run the paper's wirings of models, and flow files, over data sets; steps that they share run once.

    Args:
        models: names of the zoo, as a list or as in `Qwen,Yi`, to be wired in the paper's ways.
        strategies: which of the ways.
        datasets: names that `flowinfer datasets` lists, or paths of .jsonl files.
        flows: flow files, or folders of them, beside or instead of models.
        sample, limit, seed: which questions; see `flowinfer sweep --help`.
        answer_index: what answers count from that are indices of options; told from the data if not given.
        few_shot: worked examples above each question, of the data set's dev split.
        zoo: name or path of a zoo.
        depth: how many of the models a path wires.
        params, grid: options for all paths; lists of values of which every combination is run.
        data: local files of data sets by name; `NAME:dev` of their examples.
        independent: every path alone in batch 1, as in the paper.
        latency: how many questions of each path to time alone.
        batch: most rows at once.
        replicas: copies of all plans, each in a process of its own where there are several.
        use_cache: take finished steps of earlier runs.
        max_paths: refuse more.
        out: where the sweep's folder goes.
        resume: go on with a sweep: its path, name or `latest`, with the same arguments.
        quiet: no progress on standard error.
    """
    given = {name: value for name, value in locals().items() if name in SweepRequest.model_fields and value is not None}
    from flowinfer.sweeps.progress import SweepProgress
    from flowinfer.sweeps.run import run_sweep

    with SweepProgress(is_quiet=quiet) as progress:
        return run_sweep(make_request(**given), out=Path(out), resume=resume, progress=progress)
