"""From command to first token: `flowinfer exec --prompt` against a bare import and a bare reading of the same files.

    python benchmarks/start.py [--tokenizers FOLDER] [--folder FOLDER] [--against SRC]

Makes model folders of the paper's shapes (random weights, several files each), then measures in fresh processes:
S = (import of torch and transformers, nothing else) + (a bare safetensors loop that reads the same files to the device,
one after another), and the real command for one 7B and for three heads: with its caches emptied (cold), again (warm),
and a third time, which also says where its seconds went. The files' pages are in memory all the time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import typed
from measure import Deadline, Missed
from reporting import Report, options, ratio, setup_of
from shapes import STD, Shape, config_of, shapes

_ROOT = Path(__file__).resolve().parent.parent
_FLOWS = {"one 7B": "Qwen", "three heads": "(Qwen | Ds | Yi)"}
_RUNS = ("cold", "warm", "third")
_QUESTION = "What is 17 * 23?"
_SHARD_BYTES = 4 << 30
_IMPORTS = "import sys, time, torch, transformers; print(time.time() - float(sys.argv[1]))"
_OWN = """
import flowinfer.cli.exec, flowinfer.engine.loops.lockstep, flowinfer.engine.network.llama_gpu, flowinfer.runs.ask
from importlib.util import find_spec
if find_spec("triton"):
    import triton.compiler, triton.experimental.gluon.nvidia.hopper, flowinfer.engine.loops.triton_fusing
    import flowinfer.engine.network.triton_gemm, flowinfer.engine.network.triton_rows
    import flowinfer.engine.loops.triton_feeding
print(0)
"""
"""Lets Python compile modules, as installers do."""
_READS = """
import sys, time, torch
from safetensors import safe_open
device, *files = sys.argv[1:]
begin, kept = time.time(), []
for file in files:
    with safe_open(file, framework="pt", device=device) as opened:
        kept += [opened.get_tensor(name) for name in opened.keys()]
if device != "cpu":
    torch.cuda.synchronize()
print(time.time() - begin)
"""


@dataclass(frozen=True)
class Run:
    """One run of the command."""

    first_seconds: float
    """From its start until the first byte of its answer."""
    whole_seconds: float
    output: str


def main() -> None:
    """Make the folders, measure, print."""
    parser = options(__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument(
        "--tokenizers", type=typed.folder, default=_ROOT / "src/flowinfer/zoos/lab", help="qwen, ds, yi in it"
    )
    parser.add_argument("--folder", type=Path, help="where the models are made, or lie from an earlier call")
    parser.add_argument("--against", type=typed.folder, help="another version's sources, measured beside these")
    parser.add_argument("--flows", type=typed.among(*_FLOWS), default=",".join(_FLOWS), help="of: " + ", ".join(_FLOWS))
    parser.add_argument("--layers", type=typed.number, help="fewer than the real shapes have")
    parser.add_argument("--runs", type=typed.among(*_RUNS), default=",".join(_RUNS), help="of: " + ", ".join(_RUNS))
    arguments = parser.parse_args()
    sources = {"this": _ROOT / "src"} | ({"other": arguments.against} if arguments.against else {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary, "models")
        begin = time.perf_counter()
        make_models(folder, arguments)
        made = f"{time.perf_counter() - begin:.0f} s"
        setup = setup_of(arguments.device, arguments.dtype, size=arguments.size, **{"folders made in": made})
        columns = ["flow", "version", "run", "first token, s", "first token / S", "whole command, s", "S, s"]
        table = Report("Start: command to first token", setup, columns)
        parts = Report(
            "Where a cold and a third start's seconds go", {}, ["flow", "run", "part", "of", "begins at, s", "takes, s"]
        )
        deadline = Deadline(arguments.seconds)
        environment = os.environ | {"PYTHONPYCACHEPREFIX": f"{temporary}/pyc"}
        import_seconds = min(_bare(environment, _IMPORTS, str(time.time())) for _ in range(2))
        table.note(f"import of torch and transformers alone: {import_seconds:.1f} s (the second of two)")
        for name in arguments.flows:
            files = [str(file) for model in models_of(name) for file in sorted((folder / model).glob("*.safetensors"))]
            read_seconds = min(_bare(environment, _READS, arguments.device, *files) for _ in range(2))
            limit = import_seconds + read_seconds
            table.note(f"{name}: {len(files)} files read bare in {read_seconds:.1f} s; S = {limit:.1f} s")
            for version, source in sources.items():
                _bare(environment | {"PYTHONPATH": _with(source, environment)}, _OWN)
                cache = Path(temporary, f"cache-{name}-{version}")
                for label in arguments.runs:
                    more = ["--json"] if label != "warm" and version == "this" else []
                    run = _attempt(deadline, name, folder, source, environment | _caches(cache), more)
                    if isinstance(run, Missed):
                        table.add(name, version, label, run, None, None, limit)
                        continue
                    first = run.first_seconds
                    if more:
                        told = json.loads(run.output)["start"]
                        first = told["seconds"]
                        for part in told["parts"]:
                            parts.add(name, label, part["part"], part["of"], part["begin"], part["seconds"])
                    table.add(name, version, label, first, ratio(first, limit), run.whole_seconds, limit)
        table.finish(arguments, parts)


def models_of(flow: str) -> Sequence[str]:
    """Return the names of a flow's models."""
    return [shape.name for shape in shapes("tiny") if shape.name in _FLOWS[flow]]


def make_models(folder: Path, arguments: Any) -> None:  # argparse's
    """Write the models' folders, and a zoo that names them; what is there already is taken."""
    zoo = []
    wanted = {name for flow in arguments.flows for name in models_of(flow)}
    for shape in shapes(arguments.size, layers=arguments.layers):
        if shape.name not in wanted:
            continue
        own = folder / shape.name
        if not (own / "config.json").is_file():
            _make_model(own, shape, arguments.tokenizers / shape.name.lower(), arguments)
        zoo.append(
            f'[models.{shape.name}]\nref = "{own}"\ndtype = "{arguments.dtype}"\ndevice = "{arguments.device}"\n'
        )
    (folder / "zoo.toml").write_text("\n".join(zoo), encoding="utf-8")


def _make_model(folder: Path, shape: Shape, tokenizer: Path, arguments: Any) -> None:
    """Write one model's folder: config, tokenizer, weights in several files."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.glob("*.json"):
        if file.name.startswith("tokenizer"):
            shutil.copyfile(file, folder / file.name)
    known = len(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))
    config = config_of(replace(shape, vocab=max(shape.vocab, known)))
    dtype = getattr(torch, arguments.dtype)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    shards = list(_shards(network.state_dict()))
    index: dict[str, str] = {}

    def write(number: int) -> None:
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        with torch.device(arguments.device):
            made = {name: _random(name, like).cpu() for name, like in shards[number].items()}
        save_file(made, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(made, file))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(len(shards))))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    config.dtype, config.architectures = arguments.dtype, [type(network).__name__]
    config.save_pretrained(folder)


def _shards(weights: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield weights by file: at least two."""
    most = min(_SHARD_BYTES, sum(weight.nbytes for weight in weights.values()) // 2 + 1)
    shard: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if shard and sum(one.nbytes for one in shard.values()) + weight.nbytes > most:
            yield shard
            shard = {}
        shard[name] = weight
    yield shard


def _random(name: str, like: torch.Tensor) -> torch.Tensor:
    made = torch.empty(like.shape, dtype=like.dtype)
    return made.fill_(1.0) if "norm" in name else made.normal_(0.0, STD)


def _bare(environment: Mapping[str, str], code: str, *arguments: str) -> float:
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


def _caches(folder: Path) -> dict[str, str]:
    """Return where a run keeps what it compiles: for versions that leave it to the tools, in the same folder."""
    return {
        "FLOWINFER_CACHE": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def _attempt(
    deadline: Deadline, flow: str, folder: Path, source: Path, environment: Mapping[str, str], more: Sequence[str]
) -> Run | Missed:
    runs: list[Run] = []

    def once() -> float:
        runs.append(_run(flow, folder, environment | {"PYTHONPATH": _with(source, environment)}, more))
        return runs[0].first_seconds

    found = deadline.attempt(once)
    return found if isinstance(found, Missed) else runs[0]


def _with(source: Path, environment: Mapping[str, str]) -> str:
    """Return the path of modules with another version's sources first."""
    return os.pathsep.join(filter(None, (str(source.resolve()), environment.get("PYTHONPATH"))))


def _run(flow: str, folder: Path, environment: Mapping[str, str], more: Sequence[str]) -> Run:
    """Run the command; note when its answer begins."""
    asked = ["-e", _FLOWS[flow], "--zoo", str(folder / "zoo.toml"), "--prompt", _QUESTION, "--set", "max_tokens=16"]
    command = [sys.executable, "-m", "flowinfer", "exec", *asked, *more]
    begin = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None, "it was asked for"
        output = process.stdout.read(1)
        first = time.perf_counter() - begin
        output += process.stdout.read()
        code = process.wait()
        if code:
            errors.seek(0)
            raise RuntimeError(f"exit code {code}: {errors.read()[-600:]}")
    return Run(first, time.perf_counter() - begin, output.decode(errors="replace"))


if __name__ == "__main__":
    main()
