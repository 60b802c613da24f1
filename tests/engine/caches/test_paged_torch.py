"""The plain torch path of paged attention, which serves the CPU and is the kernels' oracle, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.kernels import Paged, paged_attention, write_kv

PAGE, HEADS, GROUP, DIM = 4, 2, 3, 8
LENGTHS = (7, 1, 12)


@pytest.mark.parametrize("window", [0, 3])
def test_rows_written_in_two_pieces_attend_as_each_alone(window: int) -> None:
    torch.manual_seed(0)
    table = torch.tensor([[3, 5, -1], [0, -1, -1], [6, 1, 2]], dtype=torch.int32)
    caches = torch.full((2, 7, HEADS, PAGE, DIM), float("nan")).unbind(0)
    tokens = [(row, p) for row, length in enumerate(LENGTHS) for p in range(length)]
    query = torch.randn(len(tokens), HEADS * GROUP, DIM)
    keys, values = torch.randn(2, len(tokens), HEADS, DIM)
    out = torch.empty_like(query)
    early = torch.tensor([p < 5 for _, p in tokens])
    for piece in (early, ~early):
        rows, positions = torch.tensor(tokens, dtype=torch.int32)[piece].unbind(1)
        paged = Paged(*caches, rows, positions, table)
        write_kv(keys[piece], values[piece], paged)
        out[piece] = paged_attention(query[piece], paged, Attention(0, 0.5, window, 0.0), 1)
    for row, length in enumerate(LENGTHS):
        mine = torch.tensor([r == row for r, _ in tokens])
        q, k, v = (states[mine].transpose(0, 1) for states in (query, keys, values))  # (H, T, D)
        age = torch.arange(length)[:, None] - torch.arange(length)
        mask = (age >= 0) & (age < (window or length))
        expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5, enable_gqa=True)
        torch.testing.assert_close(out[mine], expected.transpose(0, 1))
