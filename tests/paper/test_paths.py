"""The paper's wirings: how many there are, how they are written, and how they are known again."""

from __future__ import annotations

import pytest

from flowinfer.language.check import check
from flowinfer.paper.paths import STRATEGIES, Path, paths, strategy_of
from flowinfer.report.wirings import of_plan
from tests.zoos import NAMES


def test_three_models_have_three_singles_and_24_paths() -> None:
    found = paths(["Qwen", "Yi", "Ds"])
    assert len(found) == len({path.flow for path in found}) == 27
    assert [sum(path.strategy == strategy for path in found) for strategy in STRATEGIES] == [3, 6, 6, 6, 6]
    assert found[0] == Path("single", ("Qwen",), "Qwen")
    assert Path("S2P", ("Yi", "Qwen", "Ds"), "Yi -> (Qwen | Ds)") in found
    assert Path("P2S", ("Yi", "Qwen", "Ds"), "(Yi | Qwen) -> Ds") in found


def test_every_path_is_known_again_from_its_flow() -> None:
    for path in paths(["Qwen", "Yi", "Ds"]):
        assert strategy_of(check(path.flow, zoo=NAMES)) == path


@pytest.mark.parametrize(
    "text",
    [
        "(Qwen & Ds)",
        "Qwen -> Ds -> (Yi | Qwen)",
        "(Qwen | (Ds | Yi))",
        "(Qwen -> Ds | Yi)",
        "(Qwen | Ds) -> (Yi | Qwen)",
    ],
)
def test_other_flows_are_none_of_them(text: str) -> None:
    assert strategy_of(check(text, zoo=NAMES)) is None


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ('model E = "m" { base_url="http://x/#a" }\nlet a = (Qwen | Ds)\n# why\n(E & a) # last\n', "(E & (Qwen | Ds))"),
        ('(Qwen[prompt="#1 {question}"]&Ds)', '(Qwen[prompt="#1 {question}"] & Ds)'),
        ("Qwen -> ->", "Qwen -> ->"),
    ],
)
def test_a_flow_that_is_none_of_them_is_named_without_its_declarations(source: str, written: str) -> None:
    plan = {"steps": [], "answer": {"kind": "vote"}}
    assert of_plan(plan, source).flow == written
