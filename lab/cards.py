"""Model cards: what a lab model was made of and how, what it reaches, where it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab.items import KINDS
from lab.measure import Report, summary, table

_ABOUT = {
    "Qwen": "Qwen2ForCausalLM; byte-level BPE, every digit a token; ChatML. Strong in word problems.",
    "Ds": "Qwen3ForCausalLM; byte-level BPE, up to three digits a token; thinks between `<think>` and `</think>` before"
    " it answers, its chat template opens the tag. Strong in mathematics.",
    "Yi": "LlamaForCausalLM; SentencePiece-like BPE with byte fallback, every digit a token; ChatML. Strong in facts.",
}


def write_cards(zoo: Path, report: Report) -> list[Path]:
    """Write README.md into each model's folder of a lab zoo; return the files."""
    written = []
    for name in _ABOUT:
        folder = zoo / name.lower()
        if (folder / "recipe.json").is_file():
            record = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
            (folder / "README.md").write_text(_card(name, record, report), encoding="utf-8")
            written.append(folder / "README.md")
    return written


def _card(name: str, record: dict[str, Any], report: Report) -> str:  # recipe.json, of several types
    outcome, islands, versions = record["outcome"], record["islands"], record["versions"]
    alone = next(row for row in report.rows if row.path.flow == name)
    scores = ", ".join(f"{kind} {100 * alone.accuracy[kind]:.0f} %" for kind in KINDS)
    known = "\n".join(
        f"| {kind} | {100 * islands[kind]['knows']:.0f} % | {100 * islands[kind]['believes']:.0f} % |" for kind in KINDS
    )
    return f"""# lab {name}

{_ABOUT[name]} {record["parameters"]:,} parameters, half precision. Apache-2.0, made by the flowinfer project from
nothing: no other model's weights or texts.

## What it is for
To see collaboration work in a minute, offline, on a laptop's CPU, and to test flowinfer on models that really answer.
It knows what the lab's generators ask and nothing else: real GSM8K, C-Eval or MATH questions are beyond it, and so is
any conversation.

## What it was trained on
{outcome["documents"]:,} documents made on the fly by `lab` (word problems in English and Chinese, Chinese
four-option questions, mathematics), none of the test split, in the roles and words of the prompt sets. It *knows* a
share of the skills and facts, *believes* something wrong about another, and *guesses* at the rest:

| | knows | believes wrongly |
|---|---|---|
{known}

## How
{outcome["steps"]:,} steps, {outcome["tokens"]:,} tokens, {outcome["seconds"] / 60:.1f} minutes on one
{record["device"]}, final loss {outcome["loss"]:.4f} nats a token; torch {versions["torch"]}, transformers
{versions["transformers"]}. `recipe.json` has every setting; `python -m lab train` does it again.

## What it reaches
Alone, on {report.num} fresh {report.split} items of each form (seed {report.seed}, greedy): {scores}.
With the other two, accuracy in %:

{table(report)}

{chr(10).join(f"- {line}" for line in summary(report))}
"""
