"""Which steps plans share, which flows a request means, and where the models of a sweep live."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowinfer.engine.base import Observer
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.models import ModelPool
from flowinfer.errors import UsageError
from flowinfer.language.check import check
from flowinfer.machine import Device, Machine
from flowinfer.paper.paths import STRATEGIES, Strategy, paths
from flowinfer.planning.merge import Merged, merge
from flowinfer.planning.plan import compile
from flowinfer.runs.cache import DiskStepCache
from flowinfer.sweeps.core import Job, Sharing
from flowinfer.sweeps.latency import turns
from flowinfer.sweeps.placing import place_all
from flowinfer.sweeps.request import SweepRequest
from flowinfer.sweeps.weights import weighted
from flowinfer.sweeps.wirings import wirings
from flowinfer.tasks.base import Dataset, load_questions
from tests.sweeps.test_sweep import ITEMS, write_items
from tests.zoos import NAMES


def merged(*flows: str) -> Merged:
    return merge([compile(check(flow, zoo=NAMES)) for flow in flows])


@pytest.mark.parametrize(
    ("strategies", "alone", "shared"),
    [
        (("single",), 3, 3),
        (("SI",), 18, 15),
        (("PI",), 18, 3),
        (("S2P",), 18, 9),
        (("P2S",), 18, 9),
        (("single", "SI"), 21, 15),
        (STRATEGIES, 75, 33),
    ],
)
def test_the_papers_paths_share_their_prefixes(strategies: tuple[Strategy, ...], alone: int, shared: int) -> None:
    found = merged(*(path.flow for path in paths(["Qwen", "Yi", "Ds"], strategies)))
    assert (found.calls_alone, found.calls_shared) == (alone, shared)


@pytest.mark.parametrize(
    ("one", "other", "steps"),
    [
        ("Qwen", "Qwen -> Yi", 2),
        ("(Qwen | (Ds | Yi))", "((Yi | Ds) | Qwen)", 1),
        ("(Qwen | (Ds | Yi))", "(Qwen | Ds | Yi)", 2),
        ("(Qwen:2 | Ds:1)", "(Ds:1 | Qwen:2)", 1),
        ("(Qwen:2 | Ds:1)", "(Qwen:1 | Ds:2)", 2),
        ("Qwen[temperature=1]", "Qwen[temperature=1]", 1),
        ("Qwen[temperature=1]", "(Ds & Qwen[temperature=1])", 3),
        ("Qwen[max_tokens=3]", "Qwen", 2),
        ('Qwen[prompt="x {question}"]', "Qwen", 2),
        ("(Qwen & Qwen)", "Qwen", 1),
        ("(Qwen & Ds) -> Yi", "(Ds & Qwen) -> Yi", 4),
    ],
)
def test_steps_are_one_where_all_that_decides_them_agrees(one: str, other: str, steps: int) -> None:
    """Answers that another model reads are numbered in the order of the text, so order counts there."""
    assert len(merged(one, other).steps) == steps


def test_rows_of_different_roles_decode_together() -> None:
    found = merged("Qwen", "Yi -> Qwen", "Yi -> Qwen -> Yi", "(Qwen[prompt=draft] | Qwen[prompt='Q: {question}'])")
    loops = {shared.loop for shared in found.steps}
    assert len(found.steps) == 6 and len(loops) == 3


@given(st.permutations(["Qwen", "Yi", "Ds", "Small"]), st.integers(1, 4))
def test_longer_lists_of_models_make_permutations(models: list[str], depth: int) -> None:
    found = paths(models, ["SI"], depth=depth)
    assert len(found) == math.perm(4, depth) == len({path.flow for path in found})


def wired(zoo: Path, **given: object) -> list[str]:
    return [wiring.name for wiring in wirings(SweepRequest(zoo=str(zoo), **given))]  # type: ignore[arg-type]


def test_depths_grids_and_weights_make_paths_once(toy_zoo: Path) -> None:
    assert wired(toy_zoo, models=("Qwen", "Yi", "Ds"), strategies=("SI",), depth=(2,))[:2] == [
        "Qwen -> Yi",
        "Qwen -> Ds",
    ]
    assert len(wired(toy_zoo, models=("Qwen", "Yi", "Ds"), depth=(2, 3))) == 27 + 6 + 6
    assert len(wired(toy_zoo, models=("Qwen", "Yi"))) == 2 + 2 + 2
    grid = {"weights": ("1:1", "2:1"), "fuser": ("mean", "geometric")}
    assert wired(toy_zoo, models=("Qwen", "Yi"), strategies=("single", "PI"), grid=grid) == [
        *("Qwen", "Yi"),
        *(
            f"{group} [weights={weights}, fuse={fuse}]"
            for group in ("(Qwen | Yi)", "(Yi | Qwen)")
            for weights in grid["weights"]
            for fuse in grid["fuser"]
        ),
    ]


def test_too_many_paths_are_refused_before_they_are_made() -> None:
    with pytest.raises(UsageError, match="are more than --max-paths 200"):
        wirings(SweepRequest(models=("Qwen", "Yi", "Ds"), zoo="lab", grid={"seed": tuple(map(str, range(10**4)))}))


def test_weights_go_to_groups_of_their_size() -> None:
    assert weighted("A -> (B | C)", "2:1") == "A -> (B:2 | C:1)"
    assert weighted("(A | B | C)", "2:1") == "(A | B | C)"


def test_every_model_has_one_place_whichever_path_calls_it(toy_zoo: Path) -> None:
    """Placed path by path, every single model would go to the first device."""
    devices = tuple(Device(f"cuda:{k}", "test", 1 << 30, 1 << 30) for k in range(3))
    flows = [check(path.flow, zoo=str(toy_zoo)) for path in paths(["Qwen", "Yi", "Ds"])]
    placed = place_all(flows, Machine((*devices, Device("cpu", "test", 1 << 30, 1 << 30))))
    places = {(name, where.device) for plan in placed.plans if plan for name, where in plan.placements.items()}
    assert len(places) == 3 == len({device for _, device in places}) and placed.fits


def test_models_that_do_not_fit_together_are_loaded_in_turn(tmp_path: Path, toy_zoo: Path) -> None:
    write_items(tmp_path / "items.jsonl", ITEMS[:2])
    questions = load_questions(str(tmp_path / "items.jsonl"))
    flows = [
        check(f"defaults {{ max_tokens=3 }}\n{path}", zoo=str(toy_zoo)) for path in ("Qwen -> Yi", "Yi -> Qwen", "Ds")
    ]
    machine = Machine((Device("cpu", "test", 1_000_000, 1_000_000),))
    placed = place_all(flows, machine)
    assert not placed.fits and placed.problems == (None, None, None)
    loads: list[str] = []

    class Loads(Observer):
        def model_loading(self, name: str, device: str) -> None:
            loads.append(name)

    pool = ModelPool()
    sharing = Sharing(
        placed.plans,
        [questions],
        lambda run: DiskStepCache(tmp_path / "steps", run),
        Decoders(pool, Loads(), "auto"),
        Loads(),
        frees_models=True,
    )
    ids = frozenset(question.id for question in questions.questions)
    ended = list(sharing.run([Job(plan, 0, str(plan), ids) for plan in range(3)]))
    pool.close()
    assert {one.job.plan: len(one.answers) for one in ended} == {0: 2, 1: 2, 2: 2}
    assert loads == ["Ds", "Qwen", "Yi", "Qwen", "Yi"]  # stage by stage


def test_paths_take_turns_and_each_round_begins_with_another() -> None:
    def data(name: str, num: int) -> Dataset:
        from flowinfer.results import Question

        asked = tuple(Question(id=f"{name}{k}", question="?", reference="") for k in range(num))
        return Dataset(name, name, asked, "", "")

    found = turns([0, 1, 2], [data("a", 2), data("b", 1)], 5, by_path=False)
    assert [(turn.plan, turn.question.id) for turn in found] == [
        *((0, "a0"), (1, "a0"), (2, "a0")),
        *((1, "b0"), (2, "b0"), (0, "b0")),
        *((2, "a1"), (0, "a1"), (1, "a1")),
    ]
    assert [turn.plan for turn in turns([0, 1], [data("a", 2)], 2, by_path=True)] == [0, 0, 1, 1]
