"""Keys and values of rows on a GPU, in pages; and who holds which page.

Rows that begin with the same ids (a template, few-shot examples) share the pages that they fill with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.caches.attention import Attention, LayerShape, PackedCache
from flowinfer.engine.caches.kernels import Paged, paged_attention, write_kv

PAGE = 64
"""Tokens in a page."""


class PagesShort(MemoryError):
    """No page is free."""


class Pages:
    """Which row, by its index in the batch, holds which pages, on the host.

    Args:
        num_pages: how many there are.
        rows: most rows.
        max_length: most tokens of a row.
    """

    def __init__(self, num_pages: int, rows: int, max_length: int) -> None:
        self.width = -(-max_length // PAGE)
        self.table = torch.zeros(rows, self.width, dtype=torch.int32)
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._read = [0] * rows
        self._holders = [0] * num_pages
        self._page_of: dict[tuple[int, tuple[int, ...]], int] = {}
        """(page before, ids) -> page that holds the keys and values of these ids after those pages."""
        self._name_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._unread: set[int] = set()
        """Named pages that are still to be filled."""
        self.is_changed = True

    @property
    def num_free(self) -> int:
        """Return the number of pages that nobody holds."""
        return len(self._free)

    def share(self, row: int, ids: Sequence[int]) -> int:
        """Give an empty row the pages that already hold the beginning of its ids; return how many ids they hold.

        The last id is never among them: it is still to be read for its logits.
        """
        held = self._held[row]
        assert not held, "only an empty row can share"
        before = -1
        for start in range(0, len(ids) - 1 - PAGE + 1, PAGE):
            page = self._page_of.get((before, tuple(ids[start : start + PAGE])))
            if page is None:
                break
            self._hold(row, page)
            before = page
        self._read[row] = len(held) * PAGE
        return self._read[row]

    def num_read(self, row: int) -> int:
        """Return how many ids a row need not read: those that it found in the pages of others, or has read."""
        return self._read[row]

    def note_read(self, row: int, count: int) -> None:
        """Note that a row has read so many ids, unless it has read more."""
        self._read[row] = max(self._read[row], count)

    def can_be_read(self, row: int) -> bool:
        """Return whether all that a row shares with others has been read."""
        return self._unread.isdisjoint(self._held[row][: self._read[row] // PAGE])

    def promise(self, row: int, ids: Sequence[int]) -> None:
        """Let later rows share the full pages of a row whose ids are read next, all but the last."""
        self._unread.update(self._name(row, ids[:-1]))

    def name(self, row: int, ids: Sequence[int]) -> None:
        """Let later rows share the full pages of a row whose ids are read, all but the last, which a step writes."""
        self._name(row, ids[:-1])
        self._unread.difference_update(self._held[row])

    def _name(self, row: int, ids: Sequence[int]) -> list[int]:
        """Name a row's full pages by these ids; return those that had no name."""
        named = []
        before = -1
        for index in range(len(ids) // PAGE):
            page, key = self._held[row][index], (before, tuple(ids[index * PAGE : (index + 1) * PAGE]))
            if key not in self._page_of and page not in self._name_of:
                self._page_of[key] = page
                self._name_of[page] = key
                named.append(page)
            before = self._page_of.get(key, page)
            if before != page:
                break  # another row's copy goes under this name; what follows ours cannot be named after it
        return named

    def reserve(self, row: int, length: int) -> None:
        """Let a row hold pages for so many tokens.

        Raises:
            PagesShort: not enough are free; the row holds what it held.
        """
        needed = -(-length // PAGE) - len(self._held[row])
        if needed > len(self._free):
            raise PagesShort(f"{needed} pages are needed and {len(self._free)} are free")
        for _ in range(needed):
            self._hold(row, self._free.pop())

    def release(self, row: int) -> None:
        """Take all pages from a row."""
        for page in reversed(self._held[row]):
            self._holders[page] -= 1
            if not self._holders[page]:
                key = self._name_of.pop(page, None)
                if key is not None:
                    del self._page_of[key]
                self._unread.discard(page)
                self._free.append(page)
        self._held[row] = []
        self._read[row] = 0

    def swap(self, one: int, other: int) -> None:
        """Exchange two rows."""
        self._held[one], self._held[other] = self._held[other], self._held[one]
        self._read[one], self._read[other] = self._read[other], self._read[one]
        self.table[[one, other]] = self.table[[other, one]]
        self.is_changed = True

    def _hold(self, row: int, page: int) -> None:
        self.table[row, len(self._held[row])] = page
        self._held[row].append(page)
        self._holders[page] += 1
        self.is_changed = True


class PagedCache:
    """Keys and values of one head in pages.

    Args:
        shapes: of the layers.
        pages: who holds which.
        dtype: of keys and values.
        device: a CUDA device.
        first: the number of the first of these layers.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        pages: Pages,
        dtype: torch.dtype,
        device: torch.device,
        *,
        first: int = 0,
    ) -> None:
        self.pages = pages
        self.table = torch.zeros_like(pages.table, device=device)
        self._layers = {
            layer: (
                torch.zeros(pages.num_pages, shape.num_kv_heads, PAGE, shape.key_size, dtype=dtype, device=device),
                torch.zeros(pages.num_pages, shape.num_kv_heads, PAGE, shape.value_size, dtype=dtype, device=device),
            )
            for layer, shape in enumerate(shapes, first)
        }

    @property
    def parts(self) -> Sequence[PagedCache]:
        """Return it as the only link of a chain."""
        return (self,)

    def at(self, rows: Tensor, positions: Tensor, splits: int) -> PackedCache:
        """Return what a forward attends through whose tokens lie there.

        Args:
            rows: (T,) the index of each token's row, -1 for padding.
            positions: (T,).
            splits: into how many parts a row's keys are cut to be attended side by side; 0 = tokens are prompts'.
        """
        return PagedForward(self._layers, self.table, rows.int(), positions.int(), splits)

    def sync(self) -> None:
        """Bring the table of pages up to date on the device, in the current stream."""
        if self.pages.is_changed:
            self.upload()
            self.pages.is_changed = False

    def upload(self) -> None:
        """Bring the table of pages to the device."""
        now = torch.empty(self.pages.table.shape, dtype=torch.int32, pin_memory=self.table.is_cuda)
        now.copy_(self.pages.table)  # what the host changes later must not reach a copy that is still queued
        self.table.copy_(now, non_blocking=True)

    def fill_with_noise(self) -> None:
        """Fill all pages with small random numbers, for measurements."""
        for states in self._layers.values():
            for one in states:
                one.normal_(0.0, 0.1)


class ChainedCache:
    """Keys and values of a head whose layers lie on several devices: a row's pages have the same numbers on all.

    Args:
        parts: one of each link of its chain, over the same `Pages`.
    """

    def __init__(self, parts: Sequence[PagedCache]) -> None:
        self.parts = tuple(parts)
        self.pages = parts[0].pages

    def at(self, rows: Tensor, positions: Tensor, splits: int) -> PackedCache:
        """Return what a forward through the whole chain attends through; arguments as of `PagedCache.at`."""
        return ChainedForward([part.at(_on(part, rows), _on(part, positions), splits) for part in self.parts])

    def sync(self) -> None:
        """Bring the tables of pages up to date, in every device's current stream."""
        if self.pages.is_changed:
            for part in self.parts:
                part.upload()
            self.pages.is_changed = False

    def fill_with_noise(self) -> None:
        """Fill all pages with small random numbers, for measurements."""
        for part in self.parts:
            part.fill_with_noise()


def _on(part: PagedCache, states: Tensor) -> Tensor:
    return states.to(part.table.device, non_blocking=True)


@dataclass(frozen=True)
class ChainedForward:
    """One forward's tokens in the caches of a chain; each link attends through its own."""

    parts: Sequence[PackedCache]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
        """Refuse: only a link's own part knows its layers."""
        raise AssertionError("a link attends through its own part")


@dataclass(frozen=True)
class PagedForward:
    """One forward's tokens in a paged cache; a `PackedCache`."""

    layers: Mapping[int, tuple[Tensor, Tensor]]
    table: Tensor
    rows: Tensor
    positions: Tensor
    splits: int

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
        """Store and attend; see `PackedCache`."""
        paged = self.of(attention.layer)
        write_kv(keys, values, paged)
        return paged_attention(query, paged, attention, self.splits)

    def of(self, layer: int) -> Paged:
        """Return a layer's pages with where the tokens are."""
        return Paged(*self.layers[layer], self.rows, self.positions, self.table)


def page_bytes(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Return the bytes of one page in all layers."""
    return sum(PAGE * shape.num_kv_heads * (shape.key_size + shape.value_size) * dtype.itemsize for shape in shapes)
