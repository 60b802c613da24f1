"""Graphs, plans and placements."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowinfer import plan as plans
from flowinfer.check import check
from flowinfer.errors import MemoryShort
from flowinfer.graph import build, describe
from flowinfer.machine import Device, Machine
from flowinfer.placement import count_parameters, need_of, place
from flowinfer.plan import Member, Mixture, Plan, members
from flowinfer.spec import ModelSpec
from flowinfer.zoo import load_zoo
from tests.conftest import shared_path
from tests.zoos import NAMES

GB = 10**9


def compiled(text: str) -> Plan:
    return plans.compile(check(text, zoo=NAMES))


def machine(*gpus: float, cpu: float = 64) -> Machine:
    devices = [Device(f"cuda:{i}", "a GPU", int(size * GB), int(size * GB)) for i, size in enumerate(gpus)]
    return Machine((*devices, Device("cpu", "cores", int(cpu * GB), int(cpu * GB))))


def test_text_edges_lead_to_readers_and_token_edges_to_fuse_nodes() -> None:
    assert describe(build(check("Qwen -> (Yi:3 | Ds:1)", zoo=NAMES))).split("\n") == [
        "question: question question",
        "n1: model Qwen",
        "n2: model Yi",
        "n3: model Ds",
        "g1: fuse ⊕ mean",
        "answer: answer answer",
        "question -text-> n1",
        "n1 -text-> n2",
        "n1 -text-> n3",
        "n2 -tokens-> g1 0.75",
        "n3 -tokens-> g1 0.25",
        "g1 -text-> answer",
    ]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Qwen", "s1 Qwen\ntext of s1"),
        ("Qwen -> Ds", "s1 Qwen\ns2 Ds reads s1\ntext of s2"),
        ("Qwen -> (Yi | Ds)", "s1 Qwen\ns2 (Yi | Ds) reads s1\ntext of s2"),
        ("(Qwen -> Yi | Ds) -> Ds", "s1 Qwen\ns2 (Yi | Ds) reads s1\ns3 Ds reads s2\ntext of s3"),
        ("(Qwen & Ds) -> Yi", "s1 Qwen\ns2 Ds\ns3 Yi reads s1, s2\ntext of s3"),
        ("Yi -> (Qwen & (Ds | Yi))", "s1 Yi\ns2 Qwen reads s1\ns3 (Ds | Yi) reads s1\nvote of s2, s3"),
    ],
)
def test_contracting_token_edges_gives_one_step_per_decoding_loop(text: str, steps: str) -> None:
    assert plans.describe(compiled(text)) == steps


def test_fields_name_the_steps_that_fill_them() -> None:
    text = 'Qwen as a -> Ds -> Yi[prompt="{a} {result_2} {prev} {question}"]'
    (member,) = members(compiled(text).step("s3").source)
    assert member.fields == {"result_2": ("s2",), "prev": ("s2",), "a": ("s1",)}


def test_answers_fill_from_every_branch() -> None:
    (member,) = members(compiled('(Qwen & Ds) -> Yi[prompt="{answers}"]').step("s3").source)
    assert member.fields == {"answers": ("s1", "s2")}


def _shares(source: Mixture | Member, outer: float = 1.0) -> list[float]:
    if isinstance(source, Member):
        return [outer]
    return [share for inner in source.sources for share in _shares(inner, outer * inner.weight)]


def test_nested_groups_are_not_flattened() -> None:
    assert _shares(compiled("(Qwen | (Ds | Yi))").steps[0].source) == [0.5, 0.25, 0.25]


_leaves = st.sampled_from(["Qwen", "Ds", "Yi"])
_groups = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' | '.join(parts)})"),
    max_leaves=9,
)


@given(_groups)
def test_shares_multiply_down_and_sum_to_one(text: str) -> None:
    assert sum(_shares(compiled(text).steps[0].source)) == pytest.approx(1, abs=1e-12)


def test_a_plan_is_plain_json() -> None:
    data = json.loads(json.dumps(plans.to_json(place(compiled("Qwen -> (Yi | Ds)"), machine(200)))))
    assert [step["id"] for step in data["steps"]] == ["s1", "s2"] and data["answer"]["steps"] == ["s2"]


def test_the_fingerprint_ignores_names_and_devices_and_sees_all_that_decides_text() -> None:
    base = plans.fingerprint(compiled("Qwen -> Ds"))
    assert base == plans.fingerprint(compiled("# a comment\nQwen ->\n Ds"))
    declared = 'model Qwen = "org/qwen" {{ dtype=bfloat16, device="{}" }}\nQwen'
    assert plans.fingerprint(compiled(declared.format("cpu"))) == plans.fingerprint(compiled(declared.format("cuda:1")))
    for other in ("Ds -> Qwen", "Qwen[seed=1] -> Ds", 'defaults { prompts="en" }\nQwen -> Ds', "Qwen -> (Ds)"):
        assert plans.fingerprint(compiled(other)) != base


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen2.5-7B-Instruct", 7_615_616_512),
        ("DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
        ("Yi-1.5-9B", 8_829_407_232),
    ],
)
def test_parameters_are_counted_from_the_config(name: str, parameters: int) -> None:
    path = shared_path("data", "configs", name, "config.json")
    assert count_parameters(json.loads(path.read_text("utf-8"))) == parameters


def paper(text: str) -> Plan:
    return plans.compile(check(text, zoo=load_zoo("paper")))


def test_each_model_is_placed_once_on_the_emptiest_device_that_holds_it() -> None:
    plan = place(paper("Qwen -> Ds -> (Yi | Qwen)"), machine(24, 24, 24))
    assert len({placement.device for placement in plan.placements.values()}) == 3 and len(plan.waves) == 1


def test_models_that_do_not_fit_together_run_in_waves() -> None:
    plan = place(paper("Qwen -> Ds -> (Yi | Qwen)"), machine(40))
    assert [(wave.steps, wave.models) for wave in plan.waves] == [
        (("s1", "s2"), ("Qwen", "Ds")),
        (("s3",), ("Yi", "Qwen")),
    ]


def test_heads_of_one_group_that_fit_nowhere_together_are_refused_with_figures() -> None:
    with pytest.raises(MemoryShort, match=r"\(Yi \| Qwen\) do not fit together: Yi 17.7 GB, Qwen 15.2 GB") as caught:
        place(paper("Qwen -> (Yi | Qwen)"), machine(24, cpu=8))
    assert caught.value.help


def test_a_declared_device_is_kept() -> None:
    text = 'model Q = "Qwen/Qwen2.5-7B-Instruct" { dtype=bfloat16, device="cuda:1" }\nQ -> Yi'
    assert place(paper(text), machine(100, 20)).placements["Q"].device == "cuda:1"


def test_a_model_that_is_not_here_has_no_known_needs() -> None:
    assert need_of(ModelSpec(name="x", ref="nobody/nothing")).parameters is None
