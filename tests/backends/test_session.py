"""Sessions: cached logits are those of a fresh forward, whatever rows and ids come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from flowinfer.backends.row_session import RowSession
from flowinfer.backends.session import BatchSession
from tests.backends import tiny

KINDS = ("qwen2", "llama", "gpt2", "mistral")
COLUMNS = 101
PROMPTS = ([5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21])


class Checked:
    """A session beside the plain ids of its rows."""

    def __init__(self, kind: str) -> None:
        self.network = tiny.network(kind, COLUMNS)
        self.session: Any = RowSession(self.network) if kind == "mistral" else BatchSession(self.network)
        self.rows: dict[int, list[int]] = {}

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        handles = self.session.add(prompts)
        self.rows |= {row: list(prompt) for row, prompt in zip(handles, prompts, strict=True)}
        return list(handles)

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        self.session.feed(chunks)
        for row, chunk in chunks.items():
            self.rows[row] += chunk

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> None:
        """Verify, and compare what comes with forwards of every row up to each segment's end."""
        found, wanted = self.session.verify(segments), []
        for row, own in segments.items():
            for segment in own:
                self.rows[row] += segment
                wanted.append(fresh(self.network, self.rows[row]))
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=1e-4)

    def rollback(self, row: int, count: int) -> None:
        self.session.rollback(row, count)
        del self.rows[row][len(self.rows[row]) - count :]

    def remove(self, rows: Sequence[int]) -> None:
        self.session.remove(rows)
        for row in rows:
            del self.rows[row]

    def check(self) -> None:
        """Compare every row's logits with a forward of its ids alone."""
        assert {row: self.session.length(row) for row in self.rows} == {row: len(ids) for row, ids in self.rows.items()}
        if self.rows:
            cached = self.session.logits(list(self.rows))
            for logits, ids in zip(cached, self.rows.values(), strict=True):
                torch.testing.assert_close(logits, fresh(self.network, ids), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def fresh(network: Any, ids: Sequence[int]) -> torch.Tensor:
    return network(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]


@pytest.fixture(params=KINDS)
def checked(request: pytest.FixtureRequest) -> Checked:
    return Checked(request.param)


def test_prefilled_rows_of_unequal_length_have_their_own_logits(checked: Checked) -> None:
    checked.add(PROMPTS)
    checked.check()


def test_chunks_of_unequal_length_can_be_fed_together(checked: Checked) -> None:
    a, b, c, d = checked.add(PROMPTS)
    checked.feed({a: [30], b: [31, 32, 33], c: [34, 35], d: [36]})
    checked.check()


def test_rows_without_ids_to_feed_stay_as_they_are(checked: Checked) -> None:
    a, b, c, d = checked.add(PROMPTS)
    checked.feed({a: [30, 31], b: [], d: [32]})
    checked.check()
    checked.feed({b: [33], c: [34, 35, 36]})
    checked.check()


@pytest.mark.parametrize("chunks", [{}, {0: []}])
def test_feeding_nothing_changes_nothing(checked: Checked, chunks: dict[int, list[int]]) -> None:
    checked.add(PROMPTS)
    before = checked.session.logits([0, 1, 2, 3])
    checked.feed(chunks)
    assert torch.equal(checked.session.logits([0, 1, 2, 3]), before)


def test_rolled_back_ids_are_forgotten(checked: Checked) -> None:
    a, b, c, d = checked.add(PROMPTS)
    checked.feed({a: [30, 31, 32], b: [33], c: [34, 35], d: [36, 37]})
    checked.rollback(a, 2)
    checked.rollback(c, 1)
    checked.feed({a: [40], b: [41], c: [42, 43], d: [44]})
    checked.check()


def test_rollback_of_nothing_changes_nothing(checked: Checked) -> None:
    (a,) = checked.add([[1, 2, 3]])
    checked.rollback(a, 0)
    checked.check()


def test_rollback_reaches_over_several_feeds(checked: Checked) -> None:
    a, b = checked.add(PROMPTS[:2])
    for token in (30, 31, 32, 33):
        checked.feed({a: [token], b: [token + 10, token + 11]})
    checked.rollback(a, 3)
    checked.rollback(b, 7)
    checked.feed({a: [50, 51], b: [52]})
    checked.check()


def test_removed_rows_leave_the_others_alone(checked: Checked) -> None:
    a, b, c, d = checked.add(PROMPTS)
    checked.feed({a: [30], b: [31], c: [32], d: [33]})
    checked.remove([c, a])
    checked.check()
    checked.feed({b: [40], d: [41, 42]})
    checked.check()


def test_rows_that_join_later_merge_with_the_batch(checked: Checked) -> None:
    a, b = checked.add(PROMPTS[:2])
    checked.feed({a: [30, 31], b: [32]})
    c, d = checked.add(PROMPTS[2:])
    checked.check()
    checked.feed({a: [40], b: [41], c: [42, 43], d: [44]})
    checked.check()


def test_emptied_session_takes_new_rows(checked: Checked) -> None:
    rows = checked.add(PROMPTS)
    checked.remove(rows)
    (a,) = checked.add([[1, 2, 3]])
    assert a not in rows
    checked.feed({a: [4]})
    checked.check()


def test_logits_come_in_the_order_that_was_asked(checked: Checked) -> None:
    a, b, c, d = checked.add(PROMPTS)
    straight, turned = checked.session.logits([a, b, c, d]), checked.session.logits([d, a])
    assert torch.equal(turned, straight[[3, 0]])


def test_length_counts_prompt_and_fed_ids(checked: Checked) -> None:
    a, b = checked.add(PROMPTS[:2])
    checked.feed({a: [30, 31], b: []})
    checked.rollback(a, 1)
    assert (checked.session.length(a), checked.session.length(b)) == (4, 1)


def test_every_segment_that_is_verified_has_its_own_logits(checked: Checked) -> None:
    first, second, third, _ = checked.add(PROMPTS)
    checked.verify({third: [[30]], first: [[31, 32], [33], [34, 35, 36]], second: [[37], [38]]})
    checked.check()


def test_rejected_segments_are_rolled_back_row_by_row(checked: Checked) -> None:
    first, second, *_ = checked.add(PROMPTS)
    for _ in range(3):
        checked.verify({first: [[31], [32, 33], [34]], second: [[37], [38]]})
        checked.rollback(first, 3)
        checked.rollback(second, 1)
        checked.verify({second: [[40]], first: [[41], [42]]})
    checked.check()


def test_columns_that_all_rows_reject_are_cut_off() -> None:
    checked = Checked("llama")
    first, second = checked.add(PROMPTS[:2])
    columns = checked.session.num_columns
    for _ in range(4):
        checked.verify({first: [[31], [32], [33]], second: [[34], [35], [36]]})
        for row in (first, second):
            checked.rollback(row, 3)
    checked.feed({first: [30], second: [30]})
    assert checked.session.num_columns == columns + 1
    checked.check()


@pytest.mark.parametrize("seed", range(2))
def test_any_course_of_appends_rollbacks_joins_and_ends_keeps_logits_exact(checked: Checked, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    def ids(count: int) -> list[int]:
        return [draw(COLUMNS) for _ in range(count)]

    starts = {row: len(prompt) for row, prompt in zip(checked.add(PROMPTS), PROMPTS, strict=True)}
    for _ in range(25):
        if draw(5) == 0 and len(checked.rows) < 6:
            prompts = [ids(1 + draw(12)) for _ in range(1 + draw(2))]
            starts |= {row: len(prompt) for row, prompt in zip(checked.add(prompts), prompts, strict=True)}
        if draw(6) == 0 and len(checked.rows) > 1:
            checked.remove([list(checked.rows)[draw(len(checked.rows))]])
        chunks = {row: ids(draw(4)) for row in checked.rows}
        for row, chunk in chunks.items():
            count = draw(min(4, len(checked.rows[row]) - starts[row] + 1))
            if count:
                checked.rollback(row, count)
                chunk += ids(1)
        checked.feed(chunks)
        checked.check()


def test_dead_columns_are_gathered_away() -> None:
    """A row that feeds long chunks and rolls them back must not grow the cache for ever."""
    checked = Checked("qwen2")
    a, b = checked.add(PROMPTS[:2])
    for token in range(40):
        checked.feed({a: [token, token, token], b: [token]})
        checked.rollback(a, 2)
    longest = max(len(ids) for ids in checked.rows.values())
    assert checked.session.num_columns <= longest * 1.25 + 8
    checked.feed({a: [1], b: [2]})
    checked.check()


def test_columns_of_a_removed_long_row_are_freed() -> None:
    checked = Checked("llama")
    a, b = checked.add([list(range(60)), [1, 2]])
    checked.feed({a: [3], b: [4]})
    checked.remove([a])
    assert checked.session.num_columns <= 12
    checked.feed({b: [5]})
    checked.check()


def test_window_that_is_shorter_than_the_text_is_kept() -> None:
    """Eight tokens, in every layer: a masked shared cache would count columns, not tokens."""
    checked = Checked("mistral")
    a, b = checked.add([[1, 2, 3], list(range(20, 40))])
    for token in range(12):
        checked.feed({a: [token], b: [token, token + 1]})
    checked.check()
    checked.rollback(a, 5)
    checked.feed({a: [60]})
    checked.check()


def test_rollback_in_a_cache_per_row_reads_nothing_again() -> None:
    """Also far beyond the window: what lies before it is kept, and hidden by the model's own mask."""
    checked = Checked("mistral")
    (a,) = checked.add([list(range(20, 40))])
    for token in range(12):
        checked.feed({a: [token, token + 1]})
    read: list[int] = []

    def note(module: Any, args: Any, options: dict[str, Any], output: Any) -> None:
        read.append(options["input_ids"].shape[1])

    hook = checked.network.register_forward_hook(note, with_kwargs=True)
    try:
        checked.rollback(a, 15)
        checked.feed({a: [60, 61]})
    finally:
        hook.remove()
    assert read == [2]
    checked.check()
