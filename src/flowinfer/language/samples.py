"""How many samples are enough: how certain it is that the answer given most often is the likeliest one."""

from __future__ import annotations

from collections import Counter
from math import comb


def certainty(counts: Counter[str]) -> float:
    """Return how certain it is that the leading answer is the most likely one, given how often each was drawn.

    The share of the leader against the runner-up has a uniform prior, so that after a and b draws of them it is
    Beta(a + 1, b + 1); returned is the mass above one half. Source: Aggarwal et al., "Let's Sample Step by Step:
    Adaptive-Consistency" (2023), section 3, its Beta stopping criterion. Example: 3 and 0 draws -> 15/16.
    """
    first, second = ([count for _, count in counts.most_common(2)] + [0, 0])[:2]
    draws = first + second + 1  # Beta(a, b) above 1/2 is a binomial tail: of a + b - 1 coins, fewer than a are heads
    return sum(comb(draws, heads) for heads in range(first + 1)) / (1 << draws)


def draws_left(counts: Counter[str], at: float) -> int:
    """Return how many more draws it takes at least to be so certain: as if all were the leader's."""
    leader = counts.most_common(1)[0][0] if counts else ""
    more, counts = 0, counts.copy()
    while certainty(counts) < at:
        counts[leader] += 1
        more += 1
    return more


def first_draws(at: float) -> int:
    """Return how many draws are needed whatever they say; two at least, as one cannot be compared with any."""
    return max(2, draws_left(Counter(), at))
