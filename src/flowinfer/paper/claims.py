"""The paper's six claims, as data: what each says, and which test of one's own numbers judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowinfer.paper.paths import Strategy

PREFACE = (
    "The paper's claims, judged by these runs alone, at the 5 % level: what holds here holds for these models and "
    "questions, which need not be the paper's."
)
Test = Literal["orders differ", "orders agree", "costs its slowest", "above singles", "above the others"]


@dataclass(frozen=True)
class Claim:
    """One claim."""

    key: str
    text: str
    test: Test
    kinds: tuple[Strategy, ...]
    """The strategies that it is about."""
    task: str = ""
    """The task that it is about, "" for all."""


CLAIMS = (
    Claim("si-order", "Hypothesis 1: what SI reaches depends on the order", "orders differ", ("SI",)),
    Claim("pi-order", "PI does not depend on the order", "orders agree", ("PI",)),
    Claim(
        "pi-cost",
        "Hypothesis 2: a fused step costs what its slowest branch costs",
        "costs its slowest",
        ("PI", "S2P", "P2S"),
    ),
    Claim(
        "composites",
        "The composites S2P and P2S are above the single models on average",
        "above singles",
        ("S2P", "P2S"),
    ),
    Claim("knowledge-s2p", "S2P is best for knowledge (C-Eval)", "above the others", ("S2P",), "ceval"),
    Claim("arithmetic-p2s", "P2S is best for arithmetic (GSM8K)", "above the others", ("P2S",), "gsm8k"),
)
