"""Fusion alone, from three heads' logits to the chosen slots: ours beside the ways of other loops, in one run.

    python benchmarks/fusion_kernels.py [--device cuda] [--size full|small] [--batches 1,8,32,64] [--floor MS,MS,...]

Random logits, vocabularies of the paper's sizes (152,064, 152,064 and 64,000 columns) or small ones. Ours is one CUDA
graph of a copy of each head's logits and three kernels on a GPU, and the tensor operations of the reference loop on a
CPU. The floor is what a whole step takes at best; share = ours / floor. Choices of all exact ways are checked against
each other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import typed
from flowinfer.engine.loops.fusing import FusedChoice
from flowinfer.engine.loops.sampling import choose_slots, draws_of, greedy
from flowinfer.fusion.fusers import mean
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.vocab import HeadVocabulary, TokenBytes
from flowinfer.spec import Decoding

COLUMNS = {"full": (152_064, 152_064, 64_000), "small": (4_096, 4_096, 2_048)}
UNSHARED = {"full": 25_600, "small": 800}
"""Words of the third head that the others lack."""
TEMPERATURE, TOP = 0.8, 10


def vocabulary(size: str, device: str) -> SharedVocabulary:
    """Return the shared vocabulary of three heads, two of them with one tokenizer."""
    large, _, third = COLUMNS[size]
    return SharedVocabulary(
        [head(large, 0), head(large, 0), head(third, large - third + UNSHARED[size])], device=device
    )


def head(num_columns: int, first: int) -> HeadVocabulary:
    """Return a head of all single bytes, words from a number on, and an end token; ids do not follow the bytes."""
    words = (b"%08x" % ((first + k) * 2_654_435_761 % 2**32) for k in range(num_columns - 257))
    pieces: tuple[bytes | None, ...] = (*(bytes([byte]) for byte in range(256)), *words, None)
    return HeadVocabulary(TokenBytes(pieces), frozenset({num_columns - 1}), num_columns)


class Ways:
    """The same logits through every way."""

    def __init__(self, shared: SharedVocabulary, logits: Sequence[Tensor]) -> None:
        self.shared, self.logits, self.device = shared, logits, shared.device
        rows = logits[0].shape[0]
        self.kept: list[FusedChoice] = []
        self.weights = torch.full((3,), 1 / 3, device=self.device)
        self.states = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.keys = 2 * torch.arange(rows, device=self.device) * 0x1B9D7E5A3F8461 + 1
        self.draws = draws_of([Decoding(temperature=TEMPERATURE)] * rows, self.keys.tolist(), [0] * rows, self.device)
        slot_of = [shared._slot_of_id[k] for k in range(3)]  # the map itself is what these baselines are given
        self.slots = [torch.from_numpy(s).to(self.device) for s in slot_of]
        for k, own in enumerate(self.slots):
            own[-1] = shared.eos_slot
            assert (own >= 0).all(), f"head {k} has columns without a slot"
        self.maps = [self._sparse(own) for own in self.slots]
        self.pieces = [(*one.tokens.pieces[:-1], b"") for one in shared.heads]

    def gather(self) -> Tensor:
        """Lift by index, mix, guard, choose: the reference loop's operations."""
        return greedy(self.fused(), self.shared.guard.mask(self.states))

    def gather_and_draw(self) -> Tensor:
        """The same with sampling."""
        return choose_slots(self.fused(), self.shared.guard.mask(self.states), self.draws).slots

    def fused(self) -> Tensor:
        """Return the mixed distribution (B, V)."""
        return mean([self.shared.lift(k, own) for k, own in enumerate(self.logits)], self.weights)

    def scatter(self) -> Tensor:
        """Add every head's probabilities into the shared slots."""
        total = torch.zeros(len(self.states), self.shared.size, device=self.device)
        for own, slots in zip(self.logits, self.slots, strict=True):
            total.index_add_(1, slots, own.float().softmax(-1) / 3)
        return greedy(total, self.shared.guard.mask(self.states))

    def sparse(self) -> Tensor:
        """Map by sparse matrices. Source: GaC (arXiv 2406.12585), published code."""
        mapped = [
            torch.sparse.mm(one, own.float().softmax(-1).T) for one, own in zip(self.maps, self.logits, strict=True)
        ]
        return greedy(((mapped[0] + mapped[1] + mapped[2]) / 3).T, self.shared.guard.mask(self.states))

    def dictionaries(self) -> list[bytes]:
        """Mix the ten best of each head by name. Source: UniTE (arXiv 2410.12777), published code's way."""
        tops = [own.float().softmax(-1).topk(TOP, dim=-1) for own in self.logits]
        lists = [(top.values.tolist(), top.indices.tolist()) for top in tops]
        chosen = []
        for row in range(len(self.states)):
            mixed: dict[bytes, float] = {}
            for (values, ids), names in zip(lists, self.pieces, strict=True):
                for value, token_id in zip(values[row], ids[row], strict=True):
                    name = names[token_id] or b""
                    mixed[name] = mixed.get(name, 0.0) + value / 3
            chosen.append(max(mixed, key=lambda name: mixed[name]))
        return chosen

    def to_host(self) -> list[Tensor]:
        """Bring all probabilities to the host; mixing there is not counted."""
        return [own.float().softmax(-1).cpu() for own in self.logits]

    def ours(self, temperature: float) -> Callable[[], Tensor]:
        """Return one replay of the kernels' graph, or the tensor operations where there is no GPU."""
        if self.device.type != "cuda":
            return self.gather_and_draw if temperature else self.gather
        rows, dtype = len(self.states), self.logits[0].dtype
        kernels = FusedChoice(self.shared, [1 / 3] * 3, range(3), rows, dtype)
        self.kept.append(kernels)  # a graph works in the kernels' own memory, which must stay
        draws = self.draws if temperature else None
        kernels(self.logits, self.states, draws)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            choice = kernels(self.logits, self.states, draws)

        def replay() -> Tensor:
            graph.replay()
            return choice.slots

        return replay

    def _sparse(self, slots: Tensor) -> Tensor:
        places = torch.stack([slots, torch.arange(len(slots), device=self.device)])
        ones = torch.ones(len(slots), device=self.device)
        return torch.sparse_coo_tensor(places, ones, (self.shared.size, len(slots)), check_invariants=False).coalesce()


def milliseconds(call: Callable[[], object], device: torch.device, *, repeats: int = 15) -> float:
    """Return the median of a call after three to warm up, the device's work included."""
    seconds = []
    for turn in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn >= 3:
            seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def queued_milliseconds(call: Callable[[], object], device: torch.device, *, calls: int = 50) -> float:
    """Return the device's own time of a call, from many queued ones; the clock on a CPU."""
    if device.type != "cuda":
        return milliseconds(call, device)
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / calls


def check(ways: Ways, ours: Tensor, drawn: Tensor) -> str:
    """Return how many rows agree; stop where an exact way chose a slot that is not the best."""
    fused = ways.fused().masked_fill(~ways.shared.guard.mask(ways.states), -1.0)
    best = fused.amax(-1)
    for name, slots in (("ours", ours), ("scatter", ways.scatter()), ("sparse.mm", ways.sparse())):
        chosen = fused.gather(-1, slots[:, None])[:, 0]
        assert (chosen >= best * (1 - 1e-5)).all(), f"{name} chose another slot than the best"
    keys = (*ways.shared.keys, b"")
    named = sum(keys[slot] == name for slot, name in zip(ours.tolist(), ways.dictionaries(), strict=True))
    same, rows = int((drawn == ways.gather_and_draw()).sum()), len(ours)
    return f"same choice: dictionaries {named} of {rows} rows; drawn as by the reference: {same} of {rows}"


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", type=typed.device, default="cuda" if has_gpu else "cpu")
    parser.add_argument("--size", choices=list(COLUMNS))
    parser.add_argument("--batches", type=typed.numbers, default="1,8,32,64")
    parser.add_argument("--floor", default="", help="milliseconds of a step at best, one for each batch")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    is_gpu = device.type == "cuda"
    size, dtype = arguments.size or ("full" if is_gpu else "small"), torch.bfloat16 if is_gpu else torch.float32
    shared = vocabulary(size, arguments.device)
    batches = arguments.batches
    floors = [float(floor) for floor in arguments.floor.split(",")] if arguments.floor else [None] * len(batches)
    name = torch.cuda.get_device_name(device) if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, {dtype}, columns {COLUMNS[size]}, {shared.size} slots\n")
    baselines = ("gather", "scatter", "sparse", "dictionaries", "to_host")
    titles = ("gather", "scatter", "sparse.mm (GaC)", "dictionaries (UniTE)", "to the host")
    print(
        "| batch | ours, ms | share of floor | ours drawing, ms |" + "".join(f" {t}, ms | ours / it |" for t in titles)
    )
    print("|---" * (4 + 2 * len(titles)) + "|")
    remarks = []
    for batch, floor in zip(batches, floors, strict=True):
        generator = torch.Generator(device).manual_seed(batch)
        logits = [(3 * torch.randn(batch, n, generator=generator, device=device)).to(dtype) for n in COLUMNS[size]]
        ways = Ways(shared, logits)
        ours, drawing = ways.ours(0.0), ways.ours(TEMPERATURE)
        mine, drawn = queued_milliseconds(ours, device), queued_milliseconds(drawing, device)
        others = [milliseconds(getattr(ways, baseline), device) for baseline in baselines]
        share = f"{100 * mine / floor:.2f} %" if floor else "-"
        cells = "".join(f" {other:.3f} | {mine / other:.3f} |" for other in others)
        print(f"| {batch} | {mine:.3f} | {share} | {drawn:.3f} |{cells}", flush=True)
        remarks.append(f"batch {batch}: {check(ways, ours(), drawing())}")
    print("\n" + "\n".join(remarks))


if __name__ == "__main__":
    main()
