"""A lone head's decoding step with weights of four bits beside the same in bfloat16, and mixtures of experts.

    python benchmarks/four_bit.py [--batches 1,8,32] [--context 512] [--models Qwen,Qwen-4bit,Qwen-MoE,Mixtral]

Floor = bytes that the step reads / copy bandwidth of the same run: all weights but the input embedding, those of
experts by the share that a step of so many tokens meets, keys and values. Random weights, quantized on the device.
"""

from __future__ import annotations

import torch

import typed
from flowinfer.packing import GROUPS
from loops import floor_bytes
from measure import Deadline, Missed, ceilings, event_seconds, release
from ours import packed_step
from reporting import Report, options, ratio, setup_of
from shapes import build

FOUR_BIT = "-4bit"
_MODELS = ("Qwen", f"Qwen{FOUR_BIT}", "Ds", f"Ds{FOUR_BIT}", "Yi", f"Yi{FOUR_BIT}", "Qwen-MoE", "Mixtral")
COLUMNS = ["model", "weights GB", "batch", "floor ms", "ours ms", "x floor", "tok/s", "tok/s over bfloat16's"]


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--models", type=typed.among(*_MODELS), default=f"Qwen,Qwen{FOUR_BIT},Qwen-MoE,Mixtral")
    parser.add_argument("--batches", type=typed.numbers, default="1,8,32")
    parser.add_argument("--context", type=typed.number, default=512)
    parser.add_argument("--group", type=int, choices=GROUPS, default=128, help="inputs that share a scale")
    parser.add_argument("--layers", type=typed.number, help="fewer layers, to try things")
    arguments = parser.parse_args()
    deadline, dtype = Deadline(arguments.seconds), getattr(torch, arguments.dtype)
    device = torch.device(arguments.device)
    limits = ceilings(device, dtype)
    setup = setup_of(
        arguments.device,
        arguments.dtype,
        context=arguments.context,
        group=arguments.group,
        copy_tb_s=f"{limits.copy_bytes_per_second / 1e12:.3g}",
        seed=arguments.seed,
    )
    report = Report("Weights of four bits, and experts", setup, COLUMNS)
    plain: dict[tuple[str, int], float | Missed] = {}
    for name in arguments.models:
        base = name.removesuffix(FOUR_BIT)
        group = arguments.group if name != base else 0
        models = build(
            arguments.size,
            arguments.device,
            dtype,
            seed=arguments.seed,
            names=[base],
            layers=arguments.layers,
            group=group,
        )
        for batch in arguments.batches:
            floor = floor_bytes(models, batch, arguments.context) / limits.copy_bytes_per_second
            step = deadline.attempt(
                lambda m=models, b=batch: event_seconds(packed_step(m, b, arguments.context), device)
            )
            if not group:
                plain[base, batch] = step
            report.add(
                *(name, models[0].weight_bytes / 1e9, batch, 1e3 * floor),
                *(step, None, None) if isinstance(step, Missed) else (1e3 * step, step / floor, batch / step),
                ratio(plain.get((base, batch), Missed("not asked for")), step) if group else None,
            )
        del models
        release()
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


if __name__ == "__main__":
    main()
