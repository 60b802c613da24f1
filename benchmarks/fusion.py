"""Fusion alone, without a model: ours beside the published ways to mix distributions over different vocabularies.

    python benchmarks/fusion.py [--batches 1,8,32,64]

Random logits of three heads with the paper's vocabularies (union 177,664), softmax to the chosen slot of every row, the
median of 15 after 3. Share = milliseconds / floor of the paper's three-head step at context 512 on this device. GaC
maps whole distributions by torch.sparse.mm; UniTE mixes the 10 best tokens of each head in Python dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loops import Tables
from measure import Deadline, ceilings, event_seconds, wall_seconds
from ours import packed_fuse
from reporting import Report, options, ratio, scaled, setup_of
from shapes import shapes, vocabularies

COLUMNS = [
    *("batch", "step floor ms", "ours ms", "share", "reference engine ms", "share"),
    *("sparse.mm (GaC) ms", "dictionaries (UniTE) ms", "logits to the host ms"),
    *("sparse.mm / ours", "dictionaries / ours"),
]
_CONTEXT = 512
_SIGMA = 1.2
"""Of the logits: about what random weights of the paper's shapes give."""


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--batches", default="1,8,32,64")
    arguments = parser.parse_args()
    deadline, dtype, device = (
        Deadline(arguments.seconds),
        getattr(torch, arguments.dtype),
        torch.device(arguments.device),
    )
    limits, models = ceilings(device, dtype), vocabularies(arguments.size, arguments.device, dtype)
    tables = Tables(models)
    setup = setup_of(
        *(arguments.device, arguments.dtype),
        vocabularies=", ".join(str(model.num_columns) for model in models),
        slots=tables.mixer.vocabulary.size,
        copy_tb_s=f"{limits.copy_bytes_per_second / 1e12:.3g}",
        seed=arguments.seed,
    )
    report = Report("Fusion alone", setup, COLUMNS)
    sparse = _sparse_maps(tables, device)
    pieces = [model.vocabulary().tokens.pieces for model in models]
    weights = dtype.itemsize * sum(shape.weight_values for shape in shapes(arguments.size))
    per_token = dtype.itemsize * sum(shape.kv_values for shape in shapes(arguments.size))
    for batch in map(int, arguments.batches.split(",")):
        generator = torch.Generator(device).manual_seed(arguments.seed)
        logits = [
            _SIGMA * torch.randn(batch, m.num_columns, device=device, generator=generator).to(dtype) for m in models
        ]
        floor = (weights + batch * _CONTEXT * per_token) / limits.copy_bytes_per_second
        ours = deadline.attempt(lambda own=logits: event_seconds(packed_fuse(models, own), device))
        ways: list[Callable[[], object]] = [
            lambda own=logits: _reference(own, tables),
            lambda own=logits: _by_sparse(own, sparse),
            lambda own=logits: _by_dictionaries(own, pieces),
            lambda own=logits: _on_host(own),
        ]
        reference, by_sparse, by_dictionaries, on_host = (
            deadline.attempt(lambda w=way: wall_seconds(w, device, warmups=3, repeats=15)) for way in ways
        )
        report.add(
            *(batch, 1e3 * floor, scaled(ours, 1e3), ratio(ours, floor)),
            *(scaled(reference, 1e3), ratio(reference, floor), scaled(by_sparse, 1e3)),
            *(scaled(by_dictionaries, 1e3), scaled(on_host, 1e3), ratio(by_sparse, ours), ratio(by_dictionaries, ours)),
        )
    report.note(f"whole run: {deadline.elapsed:.0f} s")
    report.finish(arguments)


@torch.inference_mode()
def _reference(logits: Sequence[Tensor], tables: Tables) -> Tensor:
    """Lift, mix and choose as the reference engine does, UTF-8 guard included."""
    mixer = tables.mixer
    probs = mixer.fuse(mixer.lift(logits, [False] * logits[0].shape[0])).probs
    states = torch.zeros(probs.shape[0], dtype=torch.int64, device=probs.device)
    return probs.masked_fill(~mixer.vocabulary.guard.mask(states), -1.0).argmax(-1)


def _sparse_maps(tables: Tables, device: torch.device) -> list[Tensor]:
    """Return a map (V, V_k) for each head."""
    maps = []
    for slots in tables.slot_of_id:
        indices = torch.stack([slots, torch.arange(len(slots), device=device)])
        size = (tables.mixer.vocabulary.size, len(slots))
        maps.append(
            torch.sparse_coo_tensor(
                indices, torch.ones(len(slots), device=device), size, check_invariants=False
            ).coalesce()
        )
    return maps


@torch.inference_mode()
def _by_sparse(logits: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """Map whole distributions by sparse matrices. Source: GaC (arXiv 2406.12585), published code."""
    mapped = [torch.sparse.mm(one, own.float().softmax(-1).T) for one, own in zip(maps, logits, strict=True)]
    return (sum(mapped) / len(mapped)).argmax(0)  # type: ignore[union-attr]  # a sum of tensors


@torch.inference_mode()
def _by_dictionaries(logits: Sequence[Tensor], pieces: Sequence[Sequence[bytes | None]], k: int = 10) -> list[bytes]:
    """Mix the k best of each head by name, row by row. Source: UniTE (arXiv 2410.12777), published code's way."""
    tops = [own.float().softmax(-1).topk(k, dim=-1) for own in logits]
    lists = [(top.values.tolist(), top.indices.tolist()) for top in tops]
    chosen = []
    for row in range(logits[0].shape[0]):
        mixed: dict[bytes, float] = {}
        for (values, ids), names in zip(lists, pieces, strict=True):
            for value, token_id in zip(values[row], ids[row], strict=True):
                name = names[token_id] or b""
                mixed[name] = mixed.get(name, 0.0) + value / len(lists)
        chosen.append(max(mixed, key=lambda name: mixed[name]))
    return chosen


@torch.inference_mode()
def _on_host(logits: Sequence[Tensor]) -> list[Tensor]:
    """Bring whole distributions to the host, as loops do that mix there; the mixing itself is not counted."""
    return [own.float().softmax(-1).cpu() for own in logits]


if __name__ == "__main__":
    main()
