"""Error of the logits in half precision: ours and transformers' own attentions against float32, same weights.

    python benchmarks/numerics.py [--models Qwen,Yi] [--layers N] [--prompts 4] [--length 256]

Error = |logits - float32 logits| / |float32 logits| (Euclidean norms over the vocabulary) at the last position, mean
over the prompts. Random weights and ids. Goal: ours at most 1.05 x transformers' sdpa.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import typed
from measure import Deadline, Missed
from ours import packed_logits
from reporting import Report, options, ratio, setup_of
from shapes import ShapeModel, build

COLUMNS = ["model", "layers", "sdpa error", "eager attention error", "ours error", "eager / sdpa", "ours / sdpa"]


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--models", default="Qwen,Yi")
    parser.add_argument("--layers", type=typed.number, help="fewer layers than the real shapes have")
    parser.add_argument("--prompts", type=typed.number, default=4)
    parser.add_argument("--length", type=typed.number, default=256)
    parser.set_defaults(dtype="bfloat16")
    arguments = parser.parse_args()
    deadline, dtype = Deadline(arguments.seconds), getattr(torch, arguments.dtype)
    setup = setup_of(
        *(arguments.device, arguments.dtype),
        prompts=f"{arguments.prompts} x {arguments.length} ids",
        seed=arguments.seed,
    )
    report = Report("Numerics", setup, COLUMNS)
    for name in arguments.models.split(","):

        def model(dtype: torch.dtype = dtype, name: str = name) -> ShapeModel:
            return build(
                *(arguments.size, arguments.device, dtype),
                names=[name],
                layers=arguments.layers,
                seed=arguments.seed,
            )[0]

        _row(report, name, model, arguments.prompts, arguments.length, deadline)
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


def _row(
    report: Report, name: str, make: Callable[[], ShapeModel], prompts: int, length: int, deadline: Deadline
) -> None:
    logits: dict[str, Tensor] = {}
    layers = 0

    def keep(path: str, call: Callable[[ShapeModel, list[list[int]]], Tensor]) -> float | Missed:
        def run() -> float:
            nonlocal layers
            model = make()
            layers = model.shape.layers
            ids = [list(model.prompt(f"{index} {length}").ids) for index in range(prompts)]
            logits[path] = call(model, ids).float()
            return 0.0

        return deadline.attempt(run)

    outcomes = {
        "float32": keep("float32", lambda model, ids: _own(model, ids, "sdpa", wide=True)),
        "sdpa": keep("sdpa", lambda model, ids: _own(model, ids, "sdpa")),
        "eager": keep("eager", lambda model, ids: _own(model, ids, "eager")),
        "ours": keep("ours", packed_logits),
    }
    errors: dict[str, float | Missed] = {}
    for path in ("sdpa", "eager", "ours"):
        missed = next((o for o in (outcomes["float32"], outcomes[path]) if isinstance(o, Missed)), None)
        errors[path] = missed or _error(logits[path], logits["float32"])
    sdpa, eager, ours = errors["sdpa"], errors["eager"], errors["ours"]
    report.add(name, layers, sdpa, eager, ours, ratio(eager, sdpa), ratio(ours, sdpa))


@torch.inference_mode()
def _own(model: ShapeModel, ids: list[list[int]], attention: str, *, wide: bool = False) -> Tensor:
    """Return transformers' own last logits, (B, V_k); `wide` casts the same weights to float32 first."""
    network = model.transformers_model.float() if wide else model.transformers_model
    network.set_attn_implementation(attention)
    batch = torch.tensor(ids, device=model.device)
    return network(input_ids=batch, use_cache=False, logits_to_keep=1).logits[:, -1]  # type: ignore[no-any-return]


def _error(logits: Tensor, wanted: Tensor) -> float:
    return float(((logits - wanted).norm(dim=-1) / wanted.norm(dim=-1)).mean())


if __name__ == "__main__":
    main()
