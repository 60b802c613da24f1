"""The packed decoder: the networks, pages and device's side of one step's loop, kept from run to run."""

from __future__ import annotations

from collections.abc import Sequence

from flowinfer.engine.caches.pages import PAGE, ChainedCache, PagedCache, Pages
from flowinfer.engine.loops.fusing import FusedChoice, TorchChoice
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.lockstep import LockStep, Placement
from flowinfer.engine.loops.prompts import PromptReader
from flowinfer.engine.loops.side import Side
from flowinfer.engine.loops.stream import PackedStream
from flowinfer.engine.loops.watch import Watch
from flowinfer.engine.network.runner import HeadRunner


class PackedDecoder:
    """Decode one step's rows on one device or several; a `Decoder`.

    On a GPU all its work is queued on a CUDA stream of its own, so that the loops of several steps overlap.

    Args:
        heads: the step's models and how they mix.
        runners: their networks.
        choose: how a step's logits become slots.
        batch: most rows at once.
        num_pages: pages of keys and values of each head.
        placement: where heads run; each device is a place if not given.
    """

    keeps_host_busy = False

    def __init__(
        self,
        heads: Heads,
        runners: Sequence[HeadRunner],
        choose: FusedChoice | TorchChoice,
        *,
        batch: int,
        num_pages: Sequence[int],
        placement: Placement | None = None,
    ) -> None:
        self._heads = heads
        self._side = Side(device for runner in runners for device in runner.page_bytes())
        self._side.follow()  # weights and tables are made there
        with self._side.on():
            self._caches: list[PagedCache | ChainedCache] = []
            for runner, model, count in zip(runners, heads.models, num_pages, strict=True):
                pages = Pages(count, batch, min(model.max_positions, count * PAGE))
                self._caches.append(runner.new_cache(pages))
            self._readers = [PromptReader(*pair) for pair in zip(runners, self._caches, strict=True)]
            limits = [model.max_positions for model in heads.models]
            self._lock = LockStep(runners, self._caches, heads.vocabulary, limits, choose, batch, placement)
        self._side.lead()  # tables of the vocabulary serve other steps too

    def stream(self) -> PackedStream:
        """Return a new run; the one before must be closed."""
        return PackedStream(self._heads, self._readers, self._caches, self._lock, self._side)

    @property
    def free_pages(self) -> dict[str, int]:
        """Return how many pages no row has, by the model whose keys and values are in them."""
        found: dict[str, int] = {}
        for model, cache in zip(self._heads.models, self._caches, strict=True):
            found[model.name] = found.get(model.name, 0) + cache.pages.num_free
        return found

    def watched(self) -> Watch:
        """Mark what its devices do from now on, and return where."""
        return self._lock.watched()

    @property
    def num_steps(self) -> int:
        """Return how many steps the device has been given."""
        return self._lock.num_steps

    @property
    def host_wait_seconds(self) -> float:
        """Return what the host has waited for the device in all."""
        return self._lock.host_wait_seconds

    @property
    def num_waits(self) -> int:
        """Return how often it has."""
        return self._lock.num_waits
