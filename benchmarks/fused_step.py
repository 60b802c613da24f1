"""Fused decoding on this machine's CPU beside transformers' own `generate` of the slowest head.

    python benchmarks/fused_step.py [FOLDER FOLDER ...]

Folders of decoder-only models; the toy zoo's three without arguments. Every head decodes the same number of tokens
from the same prompt. ratio = seconds per fused step / seconds per step of the slowest head's generate, in one run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from flowinfer.backends.hf import HfModel, load
from flowinfer.engine.base import Observer, Row
from flowinfer.engine.reference import ReferenceDecoder
from flowinfer.plan import Member, Mixture, Step
from flowinfer.spec import Decoding, ModelSpec

PROMPT, TOKENS, REPEATS = "Once upon a time", 64, 3


def fused_seconds(models: list[HfModel], batch: int) -> float:
    """Return the best seconds per emitted token and row of a fused decode."""
    members = tuple(Member(f"n{k}", m.name, "draft", "{question}", {}, 1 / len(models)) for k, m in enumerate(models))
    step = Step("s1", "bench", Mixture("g1", "mean", {}, members), Decoding(max_tokens=TOKENS))
    rows = [Row(str(i), "s1", {m.node: PROMPT for m in members}) for i in range(batch)]
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        done = list(ReferenceDecoder(step, models, batch=batch, observer=Observer()).decode(rows))
        steps = max(completion.result.tokens for completion in done if completion.result)
        best = min(best, (time.perf_counter() - start) / max(1, steps))
    return best


def generate_seconds(model: HfModel, batch: int) -> float:
    """Return the best seconds per step of the model's own greedy `generate`."""
    ids = torch.tensor([model.prompt(PROMPT).ids] * batch)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.transformers_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        best = min(best, (time.perf_counter() - start) / TOKENS)
    return best


def main() -> None:
    """Print the table."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        from flowinfer.toy import build

        zoo = build(Path(os.environ.get("FLOWINFER_CACHE") or tempfile.gettempdir()) / "zoos" / "toy-v1")
        folders = [zoo.parent / name for name in ("qwen", "ds", "yi")]
    models = [load(ModelSpec(name=path.name, ref=str(path.resolve())), "cpu", "float32") for path in folders]
    print(f"{' x '.join(m.name for m in models)}, {torch.get_num_threads()} threads, float32, {TOKENS} tokens")
    print(
        "| batch | slowest head's generate, ms/step | sum of generates | fused step, ms "
        "| ratio to slowest | to sum | tok/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for model in models:
        generate_seconds(model, 1)  # warm up
    for batch in (1, 8, 32):
        alone = [generate_seconds(model, batch) for model in models]
        ours = fused_seconds(models, batch)
        print(
            f"| {batch} | {1e3 * max(alone):.2f} | {1e3 * sum(alone):.2f} | {1e3 * ours:.2f} |"
            f" {ours / max(alone):.2f} | {ours / sum(alone):.2f} | {batch / ours:.0f} |"
        )


if __name__ == "__main__":
    main()
