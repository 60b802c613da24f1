"""`python -m lab`: make items, train the small models that ship with flowinfer, measure every path."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flowinfer.cli.inputs import show_error
from flowinfer.errors import FlowInferError, UsageError
from flowinfer.files import write_whole
from flowinfer.output import shell

app = typer.Typer(
    name="python -m lab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make items, train the lab's small models, measure every path on them.",
)


@app.command(name="make")
def make(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="gsm8k, ceval or mathematics.")],
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    num: Annotated[int, typer.Option("--n", "-n", help="How many.")] = 100,
    seed: Annotated[int, typer.Option(help="Which.")] = 42,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="FILE.jsonl, or ceval's .csv, mathematics' .txt form.")
    ] = None,
) -> None:
    """Write fresh items of a data set's form whose right answers are known."""
    from lab.files import lines
    from lab.items import draw, kind_of, split_named

    if num < 1:
        raise UsageError(f"--n must be at least 1, not {num}")
    form = out.suffix.removeprefix(".") if out else "jsonl"
    text = "".join(
        f"{line}\n" for line in lines(kind_of(kind), draw(kind_of(kind), split_named(split), num, seed), form)
    )
    if out is None:
        sys.stdout.write(text)
        return
    try:
        write_whole(out, text.encode())
    except OSError as error:
        raise UsageError(f"cannot write '{out}': {(error.strerror or str(error)).lower()}") from error
    print(f"{num} items in {out}", file=sys.stderr)


@app.command(name="freeze")
def freeze(
    num: Annotated[int, typer.Option("--n", "-n", help="Items of each kind.")] = 1000,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder.")] = Path("src/flowinfer/zoos/lab"),
) -> None:
    """Write the test items of seed 42 that travel with the package, as data sets."""
    from lab.files import row
    from lab.items import KINDS, draw

    for kind in KINDS:
        rows = [row(item, f"s42-{index}") for index, item in enumerate(draw(kind, "test", num, 42))]
        (out / f"{kind}.jsonl").write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


@app.command(name="train")
def train(
    model: Annotated[str | None, typer.Option(help="Qwen, Ds or Yi; all three at once if not given.")] = None,
    minutes: Annotated[float, typer.Option(help="Training time.")] = 4.0,
    device: Annotated[str, typer.Option(help="cuda (models spread over all), cuda:N or cpu.")] = "cuda",
    workers: Annotated[int, typer.Option(help="Processes that make documents, for each model.")] = 4,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 1,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A network of a few thousand weights, to try the recipe.")
    ] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the zoo.")] = Path("lab-zoo"),
) -> None:
    """Train the lab's models from nothing: tokenizers, weights, zoo.toml."""
    import torch

    from lab import networks
    from lab.recipe import Recipe, make

    if minutes <= 0 or workers < 1:
        raise UsageError("--minutes must be above 0 and --workers at least 1")
    if model is not None and model not in networks.NAMES:
        raise UsageError(f"unknown lab model '{model}'", help=f"known: {', '.join(networks.NAMES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("no CUDA device here", help="--device cpu --tiny --minutes 0.2 tries the recipe")
    size = {"size": "tiny", "tokens": 1 << 11, "num_texts": 2000} if tiny else {}
    recipe = Recipe(minutes=minutes, device=device, workers=workers, seed=seed, **size)  # type: ignore[arg-type]
    make([model] if model else networks.NAMES, recipe, out)
    print(f"zoo in {out}: python -m lab eval {shell.option('--zoo', out)}", file=sys.stderr)


@app.command(name="eval")
def evaluate(
    zoo: Annotated[str, typer.Option("--zoo", help="Zoo with models Qwen, Ds and Yi.")] = "lab",
    split: Annotated[str, typer.Option(help="dev while a zoo is being made, test to say what it reaches.")] = "test",
    num: Annotated[int, typer.Option("--n", "-n", help="Items of each data set.")] = 100,
    seed: Annotated[int, typer.Option(help="Which items.")] = 42,
    strategies: Annotated[str, typer.Option(help="Only these.")] = "single,SI,PI,S2P,P2S",
    cards: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write model cards into this folder of a lab zoo.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the singles and the paper's 24 paths on fresh items of all three forms."""
    from dataclasses import asdict

    from lab.items import split_named
    from lab.measure import measure, summary, table

    report = measure(zoo, strategies=strategies, split=split_named(split), num=num, seed=seed)
    if cards is not None:
        from lab.cards import write_cards

        for path in write_cards(cards, report):
            print(f"wrote {path}", file=sys.stderr)
    if json_:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    print(table(report))
    print()
    print("\n".join(summary(report)))


def main() -> None:
    """Run the command; a user's mistake is a message."""
    try:
        app()
    except FlowInferError as error:
        show_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
