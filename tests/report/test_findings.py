"""Findings follow from the numbers: claims made true hold, claims made false do not, few questions tell nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flowinfer.report.findings import Finding, findings
from flowinfer.report.gather import gather
from tests.report.sweeps import write_sweep

_Rule = Callable[[str, str], bool]


def _strategy(flow: str) -> str:
    if "|" not in flow:
        return "SI" if "->" in flow else "single"
    if "->" not in flow:
        return "PI"
    return "P2S" if flow.index("|") < flow.index("->") else "S2P"


def _even(question: str) -> bool:
    return int(question.rsplit("-", 1)[1]) % 2 == 0


def _found(folder: Path, rule: _Rule, num: int = 12) -> dict[str, Finding]:
    sweep = write_sweep(folder / "sweep", num, rule=rule, is_timed=False)
    return {finding.key: finding for finding in findings(gather([str(sweep)]))}


def test_claims_made_true_hold(tmp_path: Path) -> None:
    def rule(flow: str, question: str) -> bool:
        kind = _strategy(flow)
        if kind == "SI":
            return flow.startswith("Qwen") or _even(question)
        if kind == "S2P":
            return question.startswith("ceval") or _even(question)
        if kind == "P2S":
            return question.startswith("gsm8k") or _even(question)
        return kind == "PI" and _even(question)

    found = _found(tmp_path, rule)
    verdicts = {key: finding.verdict for key, finding in found.items()}
    assert verdicts.pop("knowledge-s2p") == "holds"
    assert verdicts.pop("arithmetic-p2s") == "holds"
    assert verdicts == {"si-order": "holds", "pi-order": "holds", "pi-cost": "cannot be told", "composites": "holds"}
    assert found["pi-order"].sentences[0] == (
        "36 of 36 questions have the same answer, letter by letter, in all 6 orders."
    )


def test_claims_made_false_do_not_hold(tmp_path: Path) -> None:
    found = _found(tmp_path, lambda flow, question: _strategy(flow) in ("single", "PI") or _even(question))
    assert found["composites"].verdict == "does not hold"
    assert found["knowledge-s2p"].verdict == found["arithmetic-p2s"].verdict == "does not hold"
    assert found["si-order"].verdict == "cannot be told"  # all orders are right on the same questions
    assert "-50.0 points" in found["composites"].sentences[0]


def test_one_bad_order_is_told_and_equal_orders_are_not(tmp_path: Path) -> None:
    found = _found(tmp_path, lambda flow, question: flow != "Qwen -> Ds -> Yi", num=2)
    assert found["si-order"].verdict == "holds"  # 6 of 6 telling questions against one path: Q = 30
    found = _found(tmp_path / "same", lambda flow, question: _even(question), num=2)
    assert {finding.verdict for key, finding in found.items() if key != "pi-order"} == {"cannot be told"}


def test_a_step_of_heads_in_turn_costs_more_than_its_slowest(sweep: Path) -> None:
    """The sweep's steps take s, their slowest head 0.3 s of three and 0.2 s of two."""
    found = {finding.key: finding for finding in findings(gather([str(sweep)]))}
    cost = found["pi-cost"]
    assert cost.verdict == "does not hold"
    assert "3.33 times the slowest branch, 95 % interval 3.33 to 3.33" in cost.sentences[0]
    assert "5.00 times the slowest branch" in cost.sentences[1]


@pytest.mark.parametrize("num", [1, 6])
def test_no_sentence_is_without_a_number(tmp_path: Path, num: int) -> None:
    found = _found(tmp_path, lambda flow, question: len(flow + question) % 3 > 0, num=num)
    assert len(found) == 6
    for finding in found.values():
        assert finding.sentences
        for sentence in finding.sentences:
            assert re.search(r"\d", re.sub("S2P|P2S|gsm8k", "", sentence)), sentence
