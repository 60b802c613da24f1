"""Fusing byte by byte against equation 7: accuracy on the lab's items, and how often lengths of tokens mislead it.

    python benchmarks/bytewise.py --questions 100
    python benchmarks/bytewise.py --zoo ZOO.toml --models Smol,Gemma --texts gsm8k/test.jsonl --questions 40

With --texts, places are counted instead: those in real text where both heads have read whole tokens. There the key that
equation 7 emits may begin with another byte than the one that the same two heads find likeliest.
"""

from __future__ import annotations

import json
import time
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

import typed
from flowinfer.backends.base import TokenModel
from flowinfer.engine.base import Observer
from flowinfer.engine.models import ModelPool
from flowinfer.fusion.bytewise import END
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.language.check import check
from flowinfer.planning.plan import compile
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.runs.stats import wilson
from flowinfer.tasks.base import load_questions
from reporting import Report, options, setup_of

_FLOWS = (
    "(Qwen | Ds | Yi)[max_tokens=400]",
    "(Qwen | Ds | Yi)[max_tokens=400, fuse=geometric]",
    "(Qwen | Ds | Yi)[max_tokens=400, fuse=byte]",
    "(Qwen | Ds | Yi)[max_tokens=400, fuse=byte, mix=product]",
    "(Qwen | Ds | Yi)[max_tokens=400, fuse=byte, covers=1]",
)


def accuracies(questions: int, seed: int) -> Report:
    """Run the lab zoo's group with each fuser over each of its data sets."""
    report = Report(
        "Byte by byte against equation 7, lab zoo",
        setup_of("cpu", "float32", questions=f"{questions} of each set", seed=seed),
        ["flow", "data", "accuracy", "interval", "tokens an answer", "wall seconds"],
    )
    pool = ModelPool()
    for text in _FLOWS:
        for name in ("gsm8k", "ceval", "mathematics"):
            dataset = load_questions(name, sample=questions, seed=seed, use_items=True)
            start = time.perf_counter()
            found = evaluate(check(text, zoo="lab"), dataset, Request(out=None, use_cache=False), models=pool)
            interval = wilson(found.correct, found.n)
            shown = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
            share = f"{100 * found.correct / found.n:.1f} %"
            name = text.replace("max_tokens=400, ", "").replace("[max_tokens=400]", "")
            report.add(name, dataset.label, share, shown, found.tokens / found.n, time.perf_counter() - start)
    report.note("a token is a byte where fuse=byte")
    return report


def misled(zoo: str, names: tuple[str, str], texts: list[str]) -> Report:
    """Count the places where equation 7 emits a key that begins with another byte than the likeliest one."""
    plan, pool = compile(check(f"({names[0]} | {names[1]})", zoo=zoo)), ModelPool()
    models: list[TokenModel] = [pool.get(plan, name, Observer()) for name in names]
    shared = SharedVocabulary([model.vocabulary() for model in models])
    firsts = torch.tensor([*(key[0] for key in shared.keys), END])
    places = wrong = 0
    for text in texts:
        read = [behind_tokens(model, text) for model in models]
        for place in sorted(set(read[0]) & set(read[1])):
            lifted = [shared.lift(k, own[place][None])[0].double() for k, own in enumerate(read)]
            fused = lifted[0] / 2 + lifted[1] / 2  # (V,)
            likeliest = torch.zeros(END + 1, dtype=torch.float64).index_add_(0, firsts, fused).argmax()
            places += 1
            wrong += int(firsts[fused.argmax()] != likeliest)
    report = Report(
        "Places in real text where equation 7 is misled by the lengths of tokens",
        setup_of("cpu", "float32", heads=" and ".join(names), texts=len(texts)),
        ["places", "emitted key begins with another byte than the likeliest", "share", "interval"],
    )
    interval = wilson(wrong, places)
    shown = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    report.add(places, wrong, f"{100 * wrong / places:.1f} %", shown)
    return report


def behind_tokens(model: TokenModel, text: str) -> dict[int, Tensor]:
    """Return a model's logits behind each whole token of a text but the last, by the number of bytes before it."""
    ids = model.prompt(text).ids
    pieces = model.vocabulary().tokens.pieces
    session = model.open()
    rows = session.add([ids[:1]])
    logits = session.verify({rows[0]: [[i] for i in ids[1:]]})  # (S, V_k)
    ends = list(accumulate(len(pieces[i] or b"") for i in ids))
    assert ends[-1] == len(text.encode()), "the text is read as it is"
    return {end: own for end, own in zip(ends[1:-1], logits, strict=False)}


def main() -> None:
    """Print the table."""
    parser = options(__doc__ or "")
    parser.add_argument("--zoo", default="lab")
    parser.add_argument("--models", default="Qwen,Yi")
    parser.add_argument("--texts", type=Path, help="a .jsonl file whose field `question` is read")
    parser.add_argument("--questions", type=typed.number, default=100)
    arguments = parser.parse_args()
    if arguments.texts is None:
        accuracies(arguments.questions, arguments.seed).finish(arguments)
        return
    lines = arguments.texts.read_text(encoding="utf-8").splitlines()[: arguments.questions]
    first, second = arguments.models.split(",")
    misled(arguments.zoo, (first, second), [json.loads(line)["question"] for line in lines]).finish(arguments)


if __name__ == "__main__":
    main()
