"""Who holds which page: sharing, naming, giving back, running short."""

from __future__ import annotations

import pytest

from flowinfer.engine.caches.pages import PAGE, Pages, PagesShort


def test_rows_that_begin_alike_share_full_pages() -> None:
    pages = Pages(10, 3, 4 * PAGE)
    first = list(range(2 * PAGE + 5))
    assert pages.share(0, first) == 0
    pages.reserve(0, len(first))
    pages.name(0, first)
    second = [*first[: 2 * PAGE], 999, 998]
    assert pages.share(1, second) == 2 * PAGE
    pages.reserve(1, len(second))
    assert pages.table[0, :2].tolist() == pages.table[1, :2].tolist()
    assert pages.table[0, 2] != pages.table[1, 2]
    assert pages.num_free == 10 - 4


def test_the_last_id_is_never_shared() -> None:
    pages = Pages(10, 2, 4 * PAGE)
    ids = list(range(2 * PAGE))
    pages.reserve(0, len(ids))
    pages.name(0, ids)
    assert pages.share(1, ids) == PAGE


def test_a_page_whose_last_id_a_step_has_still_to_write_is_not_shared() -> None:
    pages = Pages(10, 2, 4 * PAGE)
    ids = list(range(2 * PAGE))
    pages.reserve(0, len(ids))
    pages.promise(0, ids)
    pages.name(0, ids)
    assert pages.share(1, [*ids, 7]) == PAGE


def test_a_shared_page_is_free_when_its_last_holder_leaves() -> None:
    pages = Pages(4, 3, 4 * PAGE)
    ids = list(range(PAGE + 1))
    pages.reserve(0, len(ids))
    pages.name(0, ids)
    pages.share(1, ids)
    pages.release(0)
    assert pages.share(2, ids) == PAGE  # row 1 still holds it
    pages.release(1)
    pages.release(2)
    assert pages.num_free == 4
    assert pages.share(0, ids) == 0


def test_running_short_takes_nothing() -> None:
    pages = Pages(2, 2, 4 * PAGE)
    pages.reserve(0, PAGE)
    with pytest.raises(PagesShort):
        pages.reserve(1, 3 * PAGE)
    assert pages.num_free == 1


def test_exchanged_rows_keep_their_pages() -> None:
    pages = Pages(4, 2, 2 * PAGE)
    pages.reserve(0, 2 * PAGE)
    pages.reserve(1, PAGE)
    before = pages.table[0].tolist()
    pages.swap(0, 1)
    assert pages.table[1].tolist() == before
    pages.release(1)
    assert pages.num_free == 3


def test_what_is_promised_is_shared_before_it_is_read_and_read_first() -> None:
    pages = Pages(10, 3, 4 * PAGE)
    ids = list(range(2 * PAGE))
    pages.reserve(0, len(ids))
    pages.promise(0, ids)
    assert pages.share(1, [*ids, 5, 6]) == PAGE, "the page whose last id is not read with it is nobody's yet"
    assert pages.can_be_read(0) and not pages.can_be_read(1)
    pages.name(0, ids)
    assert pages.can_be_read(1)
    pages.reserve(1, len(ids) + 2)
    pages.promise(1, [*ids, 5, 6])
    pages.release(0)
    pages.release(1)
    assert pages.num_free == 10 and pages.share(2, ids) == 0
