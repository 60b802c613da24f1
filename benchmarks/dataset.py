"""A whole data set over the paper's three shapes: ours against the per-question eager loop and the roofline.

    python benchmarks/dataset.py [--questions 320] [--rows 120] [--paths ours] [--no-identity]

320 questions, prompts of 150-450 ids, answers of 32-384 tokens from fixed seeds; no answer ends by itself. Ours runs
whole, prefill included. The per-question loop is extrapolated: its step (batch 1, mean context) and its prefill (mean
prompt) are measured in this run and multiplied by the tokens and questions. Roofline sum = prefill FLOPs / measured
matrix rate + decoding at the larger of memory floor and FLOPs, in tokens / rows steps, or in as many as the longest
answer has tokens.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

import typed
from flowinfer.engine.base import Completion, Decoder, Observer, Row, decode
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.planning.plan import Step, members
from flowinfer.results import StepResult
from loops import Tables, eager_step
from measure import Ceilings, Deadline, Missed, ceilings, release, synchronize, wall_seconds
from ours import packed_decoder
from reporting import Report, options, ratio, setup_of
from shapes import ShapeModel, build, step_of


@dataclass(frozen=True)
class Load:
    """What is asked: lengths of prompts and answers, by question."""

    prompts: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(self.answers)

    @property
    def mean_prompt(self) -> int:
        """Mean length of a prompt."""
        return round(sum(self.prompts) / len(self.prompts))

    @property
    def mean_context(self) -> int:
        """Mean context of a decoding step."""
        return self.mean_prompt + round(self.tokens / len(self.answers) / 2)

    @property
    def read_again(self) -> float:
        """Ids whose keys and values are read, over all tokens."""
        return sum(answer * (prompt + answer / 2) for prompt, answer in zip(self.prompts, self.answers, strict=True))

    def rows(self, step: Step) -> list[Row]:
        """Return the questions as rows, each with its own limit; see `shapes` for what a prompt's text means."""
        return [
            row_of(step, f"q{i}", f"{i} {prompt}", answer)
            for i, (prompt, answer) in enumerate(zip(self.prompts, self.answers, strict=True))
        ]


def row_of(step: Step, question_id: str, prompt: str, max_tokens: int) -> Row:
    """Return a row with one prompt for all heads."""
    prompts = {member.node: prompt for member in members(step.source)}
    return Row(question_id, step.id, prompts, decoding=step.decoding.model_copy(update={"max_tokens": max_tokens}))


def reference_decoder(step: Step, models: Sequence[ShapeModel], *, batch: int) -> RoundDecoder:
    """Return the reference loop's decoder."""
    return RoundDecoder(step, models, batch=batch, observer=Observer())


def make_load(num_questions: int, size: str, seed: int, *, most_tokens: int | None = None) -> Load:
    """Draw lengths; answers have so many tokens at most."""
    rng = random.Random(seed)
    prompt, (least, most) = ((150, 450), (32, 384)) if size == "full" else ((8, 24), (4, 12))
    answer = (least, most_tokens or most)
    return Load(
        tuple(rng.randint(*prompt) for _ in range(num_questions)),
        tuple(rng.randint(*answer) for _ in range(num_questions)),
    )


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--questions", type=typed.number)
    parser.add_argument("--rows", type=typed.number, default=120, help="most rows at once")
    parser.add_argument("--paths", default="ours,question", help="of ours, reference, question")
    parser.add_argument("--layers", type=typed.number, help="fewer layers, to try things")
    parser.add_argument("--no-identity", action="store_true", help="leave out the fp32 check")
    arguments = parser.parse_args()
    arguments.questions = arguments.questions or (320 if arguments.size == "full" else 24)
    deadline, dtype = Deadline(arguments.seconds), getattr(torch, arguments.dtype)
    device, load = torch.device(arguments.device), make_load(arguments.questions, arguments.size, arguments.seed)
    limits = ceilings(device, dtype)
    identity = None if arguments.no_identity else identity_check(arguments, deadline)
    models = build(arguments.size, arguments.device, dtype, seed=arguments.seed, layers=arguments.layers)
    report = Report("Data set", _setup(arguments, models, load, limits), _COLUMNS)
    if identity:
        report.note(identity)
    _measure(report, arguments, models, load, limits, deadline)
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


_COLUMNS = ["path", "seconds", "tokens/s", "questions/s", "x roofline", "per-question loop / this"]


def _measure(
    report: Report,
    arguments: argparse.Namespace,
    models: Sequence[ShapeModel],
    load: Load,
    limits: Ceilings,
    deadline: Deadline,
) -> None:
    paths, step = arguments.paths.split(","), step_of(models)
    prefill, decode = roofline(models, load, arguments.rows, limits)
    floor = prefill + decode
    report.note(f"roofline: prefill {prefill:.2f} s + decode {decode:.2f} s at {arguments.rows} rows")
    loop = deadline.attempt(lambda: _loop_seconds(report, models, load)) if "question" in paths else Missed("not asked")
    makers: dict[str, Callable[..., Decoder]] = {"ours": packed_decoder, "reference": reference_decoder}
    figures: dict[str, float | Missed] = {"roofline sum": floor}
    for path, make in makers.items():
        if path in paths:
            figures[path] = deadline.attempt(
                lambda p=path, m=make: _run(report, p, m, step, models, load, arguments.rows)
            )
    figures["per-question eager loop (extrapolated)"] = loop
    for path, seconds in figures.items():
        rates = [None, None] if isinstance(seconds, Missed) else [load.tokens / seconds, len(load.answers) / seconds]
        report.add(path, seconds, *rates, ratio(seconds, floor), ratio(loop, seconds))


def _run(
    report: Report,
    path: str,
    make: Callable[..., Decoder],
    step: Step,
    models: Sequence[ShapeModel],
    load: Load,
    rows: int,
) -> float:
    """Decode the whole load; return its seconds after a short warm-up, which is told apart."""
    warm = [row_of(step, f"w{i}", f"{i} 16", 4 + i) for i in range(rows)]  # so that all sizes of batches are met
    device = models[0].device
    start = time.perf_counter()
    decoder = make(step, models, batch=rows)
    list(decode(decoder, warm))
    synchronize(device)
    ready = time.perf_counter()
    results = _results(decode(decoder, load.rows(step)))
    synchronize(device)
    seconds = time.perf_counter() - ready
    tokens = sum(result.tokens for result in results.values())
    fed = [sum(r.heads[k].fed_tokens for r in results.values()) / max(1, tokens) for k in range(len(models))]
    told = f"{path}: warm-up {ready - start:.1f} s; {len(results)} questions, {tokens} tokens"
    report.note(told + "; ids fed per token and head: " + ", ".join(f"{share:.2f}" for share in fed))
    if isinstance(decoder, PackedDecoder):
        report.note(
            f"{path}: {decoder.num_steps} steps, {decoder.num_waits} waits of the host,"
            f" {decoder.host_wait_seconds:.1f} s of waiting, warm-up included"
        )
    if tokens != load.tokens:
        report.note(f"{path}: WRONG number of tokens, {load.tokens} were asked for")
    return seconds


def _results(completions: Iterable[Completion]) -> dict[str, StepResult]:
    return {done.row.question_id: done.result for done in completions if done.result}


def _loop_seconds(report: Report, models: Sequence[ShapeModel], load: Load) -> float:
    """Extrapolate the per-question loop from its step and its prefill."""
    device, tables = models[0].device, Tables(models)
    step = wall_seconds(
        eager_step(models, tables, 1, load.mean_context, is_published=True), device, warmups=2, repeats=5
    )
    ids = torch.zeros(1, load.mean_prompt, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def read() -> None:
        for model in models:
            model.transformers_model(input_ids=ids, use_cache=True, logits_to_keep=1)

    prefill = wall_seconds(read, device, warmups=1, repeats=3)
    release()
    report.note(
        f"per-question loop: {load.tokens} steps x {1e3 * step:.1f} ms + {len(load.prompts)} prefills x"
        f" {1e3 * prefill:.1f} ms, each measured in this run at batch 1"
    )
    return load.tokens * step + len(load.prompts) * prefill


def roofline(models: Sequence[ShapeModel], load: Load, rows: int, limits: Ceilings) -> tuple[float, float]:
    """Return the least seconds of prefill and of decoding, where no step has more rows."""
    body = sum((m.weight_bytes - _head_bytes(m)) / m.transformers_model.dtype.itemsize for m in models)
    head = sum(_head_bytes(m) / m.transformers_model.dtype.itemsize for m in models)
    per_pair = sum(4 * m.shape.layers * m.shape.heads * m.shape.head_dim for m in models)
    pairs = sum(length * length / 2 for length in load.prompts)
    flops = 2 * body * sum(load.prompts) + 2 * head * len(load.prompts) + per_pair * pairs
    steps = max(load.tokens / min(rows, len(load.prompts)), *load.answers)
    weights = sum(m.bytes_read(round(load.tokens / steps)) for m in models)
    read = steps * weights + load.read_again * sum(m.kv_bytes for m in models)
    computed = 2 * (body + head) * load.tokens + per_pair * load.read_again
    decode = max(read / limits.copy_bytes_per_second, computed / limits.matmul_flops_per_second)
    return flops / limits.matmul_flops_per_second, decode


def _head_bytes(model: ShapeModel) -> int:
    return int(model.transformers_model.lm_head.weight.nbytes)


def identity_check(arguments: argparse.Namespace, deadline: Deadline) -> str:
    """Compare ours with the reference loop, token by token, over tiny float32 models on the same device."""
    load = make_load(8, "tiny", arguments.seed)
    load = Load(load.prompts, tuple(40 for _ in load.answers))
    outcome = ""

    def compare() -> float:
        nonlocal outcome
        models = build("tiny", arguments.device, torch.float32, seed=arguments.seed)
        step = step_of(models)
        wanted, found = (
            _results(decode(decoder, load.rows(step)))
            for decoder in (reference_decoder(step, models, batch=1), packed_decoder(step, models, batch=4))
        )
        same = sum(found[key].text == wanted[key].text and found[key].tokens == wanted[key].tokens for key in wanted)
        outcome = f"{same} of {len(wanted)} answers of {load.answers[0]} tokens identical to the reference loop"
        return 0.0

    done = deadline.attempt(compare)
    text = f"not run ({done.reason})" if isinstance(done, Missed) else outcome
    return f"identity, tiny float32 models on {arguments.device}, batch 4 against 1: {text}"


def _setup(
    arguments: argparse.Namespace, models: Sequence[ShapeModel], load: Load, limits: Ceilings
) -> dict[str, object]:
    return setup_of(
        arguments.device,
        arguments.dtype,
        shapes=", ".join(f"{m.name} {m.shape.layers} x {m.shape.hidden}" for m in models),
        questions=len(load.prompts),
        prompt_ids=sum(load.prompts),
        tokens=load.tokens,
        rows=arguments.rows,
        copy_tb_s=f"{limits.copy_bytes_per_second / 1e12:.3g}",
        matmul_tflop_s=f"{limits.matmul_flops_per_second / 1e12:.3g}",
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
