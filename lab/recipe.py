"""The whole recipe: tokenizer, network, training, and the folder that transformers loads, for one or all models."""

from __future__ import annotations

import json
import multiprocessing
import platform
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import tokenizers
import torch
import transformers

import flowinfer
from flowinfer.errors import RunError
from lab import documents, networks
from lab.documents import Mix
from lab.islands import SHARES
from lab.shards import Feed
from lab.tokenizers import TOKENIZERS
from lab.tokenizers import train as train_tokenizer
from lab.train import Outcome, Settings, train

_TEXTS = 40_000
"""Documents that a tokenizer is trained on."""


@dataclass(frozen=True)
class Recipe:
    """How the zoo is made."""

    minutes: float
    device: str = "cuda"
    """"cuda" spreads the models over all CUDA devices; "cuda:N" or "cpu"."""
    workers: int = 4
    """Processes that make documents, for each model."""
    seed: int = 1
    size: str = "full"
    """"tiny" tries the recipe in seconds."""
    tokens: int = 1 << 15
    """In one batch."""
    num_texts: int = _TEXTS
    """Documents that a tokenizer is trained on."""
    mix: Mix = field(default_factory=Mix)


def make(names: Sequence[str], recipe: Recipe, out: Path) -> None:
    """Make models at once, a process each, and the zoo file that names them.

    Raises:
        RunError: a model could not be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    running = [
        context.Process(target=make_one, args=(name, recipe, out / name.lower(), _device(recipe, index)))
        for index, name in enumerate(names)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    failed = [name for name, process in zip(names, running, strict=True) if process.exitcode != 0]
    if failed:
        raise RunError(f"training failed for {', '.join(failed)}", help="the reason stands above")
    write_zoo(out)


def make_one(name: str, recipe: Recipe, folder: Path, device: str, say: Callable[[str], None] | None = None) -> Outcome:
    """Make one model: tokenizer, weights, generation settings, and recipe.json beside them."""
    transformers.utils.logging.disable_progress_bar()
    speak = say or (lambda line: print(f"{name:<5} {line}", flush=True))
    seed = recipe.seed * 1000 + networks.NAMES.index(name)
    tokenizer = train_tokenizer(TOKENIZERS[name], _texts(name, recipe, seed))
    tokenizer.save_pretrained(folder)
    model = networks.build(name, tokenizer, seed=seed, size=recipe.size)
    speak(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {device}")
    settings = Settings(minutes=recipe.minutes, device=device, tokens=recipe.tokens, seed=seed)
    with Feed(name, folder, recipe.mix, workers=recipe.workers, seed=seed) as feed:
        outcome = train(model, feed, settings, speak)
    model.cpu().half().save_pretrained(folder)
    _write_recipe(folder, name, recipe, settings, outcome, model.num_parameters())
    speak(f"{outcome.steps} steps, {outcome.tokens:,} tokens, loss {outcome.loss:.4f}")
    return outcome


def write_zoo(out: Path) -> None:
    """Write the zoo file that names the models in a folder."""
    tables = [f'[models.{name}]\nref = "{name.lower()}"\n' for name in networks.NAMES if (out / name.lower()).is_dir()]
    (out / "zoo.toml").write_text("\n".join(tables), encoding="utf-8")


def _texts(name: str, recipe: Recipe, seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer/{seed}")
    for _ in range(recipe.num_texts):
        document = documents.make(name, rng, recipe.mix)
        yield from (document.prompt, document.solution.thought, document.solution.text)


def _device(recipe: Recipe, index: int) -> str:
    if recipe.device != "cuda":
        return recipe.device
    return f"cuda:{index % torch.cuda.device_count()}"


def _write_recipe(
    folder: Path, name: str, recipe: Recipe, settings: Settings, outcome: Outcome, num_parameters: int
) -> None:
    device = torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else "cpu"
    record = {
        "model": name,
        "parameters": num_parameters,
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device,
        "recipe": asdict(recipe),
        "settings": asdict(settings),
        "islands": {kind: asdict(shares) for kind, shares in SHARES[name].items()},
        "outcome": asdict(outcome),
        "versions": {
            "flowinfer": flowinfer.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (folder / "recipe.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _commit() -> str | None:
    """Return the commit of the source that made the model, where it is a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
