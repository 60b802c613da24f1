"""Graphs, plans and placements."""

from __future__ import annotations

import json
from dataclasses import astuple
from functools import partial
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowinfer.cli.plan import show_plan
from flowinfer.errors import LoadError, MemoryShort, UsageError
from flowinfer.language.check import check
from flowinfer.machine import Card, Device, Limit, Machine, container_limit, has_weights, hub_cache, with_free_memory
from flowinfer.planning import plan as plans
from flowinfer.planning.bounds import bounds
from flowinfer.planning.graph import build
from flowinfer.planning.needs import count_parameters, need_of
from flowinfer.planning.placement import device_reads, place, ready
from flowinfer.planning.plain import fingerprint, to_json
from flowinfer.planning.plan import Member, Mixture, Plan, members
from flowinfer.runs.replicas.sharing import divided
from flowinfer.spec import ModelSpec
from flowinfer.zoo import load_zoo
from tests.conftest import shared_path
from tests.zoos import NAMES

GB = 10**9


def compiled(text: str) -> Plan:
    return plans.compile(check(text, zoo=NAMES))


def lines_of(graph: nx.DiGraph[str]) -> str:
    """Return the graph as lines, one node or edge each, in a fixed order."""
    nodes = [f"{name}: {data['kind']} {data['title']}" for name, data in graph.nodes(data=True)]
    edges = [
        f"{start} -{data['kind']}-> {end}" + (f" {data['weight']:.3g}" if "weight" in data else "")
        for start, end, data in graph.edges(data=True)
    ]
    return "\n".join([*nodes, *edges])


def described(plan: Plan) -> str:
    """Return a plan as lines, one step each."""
    lines = [
        f"{step.id} {step.title}" + (f" reads {', '.join(step.reads)}" if step.reads else "") for step in plan.steps
    ]
    return "\n".join([*lines, f"{plan.answer.kind} of {', '.join(plan.answer.steps)}"])


def machine(*gpus: float, cpu: float = 64) -> Machine:
    devices = [Device(f"cuda:{i}", "a GPU", int(size * GB), int(size * GB)) for i, size in enumerate(gpus)]
    return Machine((*devices, Device("cpu", "cores", int(cpu * GB), int(cpu * GB))))


def test_text_edges_lead_to_readers_and_token_edges_to_fuse_nodes() -> None:
    assert lines_of(build(check("Qwen -> (Yi:3 | Ds:1)", zoo=NAMES))).split("\n") == [
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
    assert described(compiled(text)) == steps


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
    data = json.loads(json.dumps(to_json(place(compiled("Qwen -> (Yi | Ds)"), machine(200)))))
    assert [step["id"] for step in data["steps"]] == ["s1", "s2"] and data["answer"]["steps"] == ["s2"]


def test_the_fingerprint_ignores_names_and_devices_and_sees_all_that_decides_text() -> None:
    base = fingerprint(compiled("Qwen -> Ds"))
    assert base == fingerprint(compiled("# a comment\nQwen ->\n Ds"))
    declared = 'model Qwen = "org/qwen" {{ dtype=bfloat16, device="{}" }}\nQwen'
    assert fingerprint(compiled(declared.format("cpu"))) == fingerprint(compiled(declared.format("cuda:1")))
    for other in ("Ds -> Qwen", "Qwen[seed=1] -> Ds", 'defaults { prompts="en" }\nQwen -> Ds', "Qwen -> (Ds)"):
        assert fingerprint(compiled(other)) != base


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


def test_each_model_is_placed_once_and_devices_share_the_load() -> None:
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


def test_run_on_a_declared_device_that_is_not_there_is_refused() -> None:
    flow = check('model A = "./a" { device="cuda:3" }\nA', zoo=NAMES)
    with pytest.raises(LoadError) as caught:
        ready(flow, machine(80))
    assert "'A' is declared on cuda:3" in str(caught.value)
    assert caught.value.help == "devices here: cuda:0, cpu; device=auto lets flowinfer choose"


def test_cuda_without_a_number_is_the_first_gpu() -> None:
    flow = check('model A = "./a" { device=cuda }\nA', zoo=NAMES)
    assert ready(flow, machine(80)).placements["A"].why == "declared"
    with pytest.raises(LoadError, match="declared on cuda, which this machine does not have"):
        ready(flow, machine())


def test_plan_for_a_declared_device_that_is_not_there_says_so() -> None:
    plan = place(compiled('model A = "./a" { device="cuda:3" }\nA'), machine())
    assert plan.placements["A"].why == "declared; this machine does not have it"


def test_names_of_the_same_weights_share_one_place() -> None:
    text = 'model A = "Qwen/Qwen2.5-7B-Instruct"\nmodel B = "Qwen/Qwen2.5-7B-Instruct"\n(A | B)'
    plan = place(compiled(text), machine(24))
    assert {name: placement.device for name, placement in plan.placements.items()} == {"A": "cuda:0", "B": "cuda:0"}


def test_heads_that_fit_only_in_one_assignment_are_placed_so() -> None:
    """Largest first to the emptiest device would leave no room for the last one."""
    weights = {
        "Big": "Qwen/Qwen2.5-7B-Instruct",
        "Yi": "01-ai/Yi-1.5-9B-Chat",
        "Ds": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    }
    text = "\n".join(f'model {name} = "{ref}"' for name, ref in weights.items()) + "\n(Big | Yi | Ds)"
    plan = place(compiled(text), machine(36, 21))
    assert {name: p.device for name, p in plan.placements.items()} == {"Big": "cuda:0", "Yi": "cuda:1", "Ds": "cuda:0"}


def test_weights_packed_by_others_are_counted_by_their_files(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "hqq"}} | {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = b'{"a": {"dtype": "U8", "shape": [900], "data_offsets": [0, 900]}}'.ljust(92)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(900))
    assert need_of(ModelSpec(name="A", ref=str(tmp_path))).weight_bytes == 1000


def test_downloads_that_stopped_half_way_are_not_taken_for_weights(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    assert not has_weights(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"")
    assert has_weights(tmp_path)


def test_a_folder_without_weights_is_no_download(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    need = need_of(ModelSpec(name="A", ref=str(tmp_path)))
    assert need.weight_bytes and need.download_bytes == 0


def test_a_slower_gpu_gets_less_to_read() -> None:
    def with_speeds(*speeds: int) -> Machine:
        names = [f"cuda:{index}" for index in range(len(speeds))]
        found = [Device(name, "", int(80 * GB), int(80 * GB), speed) for name, speed in zip(names, speeds, strict=True)]
        return Machine((*found, Device("cpu", "cores", int(64 * GB), int(64 * GB))))

    def sizes(*speeds: int) -> list[int]:
        placed = place(paper("(Qwen | Ds | Yi)"), with_speeds(*speeds))
        (reads,) = device_reads(placed).values()
        return [round(reads.get(f"cuda:{index}", 0) / 1e9) for index in range(len(speeds))]

    assert sorted(sizes(10, 10)) == sorted(sizes(0, 0)) == [20, 32]
    assert sizes(30, 10) == [36, 16] and sizes(10, 30) == [16, 36]
    assert sizes(90, 10)[1] == 0, "all on the fast one"


def test_gpus_are_matched_by_id_not_by_number() -> None:
    found = [Card("GPU-b", "B", 80 << 30), Card("GPU-a", "A", 24 << 30), Card("GPU-x", "X", 8 << 30)]
    devices = with_free_memory(found, "GPU-a, 1000\nGPU-b, 2000\nGPU-c, 3000\n")
    assert [(d.name, d.title, d.free_bytes >> 20) for d in devices] == [
        ("cuda:0", "B", 2000),
        ("cuda:1", "A", 1000),
        ("cuda:2", "X", 8 << 10),
    ]


def test_container_limits_are_read(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("1500\n")
    assert container_limit(tmp_path) == Limit(4000, 2500)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_hub_cache_is_where_huggingface_hub_puts_it(environment: dict[str, str], folder: str) -> None:
    assert hub_cache(environment) == Path(folder)


def test_devices_that_are_given_are_all_that_count() -> None:
    from flowinfer.cli.plan import _machine

    assert [device.name for device in _machine("cuda:0=24GB").devices] == ["cuda:0"]
    with pytest.raises(UsageError, match="--devices names cuda:0 twice"):
        _machine("cuda:0=24GB,CUDA:0=24GB")
    with pytest.raises(UsageError, match="--devices 'cuda:00=24GB'"):
        _machine("cuda:0=24GB,cuda:00=24GB")


def test_a_host_that_is_too_small_is_told_that_others_can_be_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Machine((Device("cpu", "a small one", 10**9, 10**9),))
    monkeypatch.setattr("flowinfer.machine.this_machine", lambda: small)
    flow = check("(Qwen | Yi)", zoo="paper")
    with pytest.raises(MemoryShort) as caught:
        show_plan(flow)
    assert (caught.value.help or "").endswith("; --devices cuda:0=24GB,cpu=64GB plans for another machine")
    with pytest.raises(MemoryShort) as caught:
        show_plan(flow, devices="cpu=1GB")
    assert "--devices" not in (caught.value.help or "")


LLAMA_70B = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def large(folder: Path, devices: str = "") -> Plan:
    """Return the plan of a 70 B model, of which there is only the config, and of a 7 B."""
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    text = f'model L = "{folder}" {{ dtype=bfloat16{devices} }}\nmodel Q = "Qwen/Qwen2.5-7B-Instruct"\nQ -> L'
    return plans.compile(check(text, zoo=NAMES))


def test_a_model_that_fits_on_no_gpu_is_split_over_as_few_as_hold_it(tmp_path: Path) -> None:
    plan = place(large(tmp_path), machine(80, 80, 80, 80))
    placement = plan.placements["L"]
    assert len(placement.split) == 3 and sum(share.layers for share in placement.split) == 80
    assert placement.why == "it fits on no GPU alone"
    others = {share.device for share in placement.split}
    assert plan.placements["Q"].device not in others and len(plan.waves) == 1


def test_a_declared_split_is_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = place(large(tmp_path, ', device=["cuda:1", "cuda:0"]'), machine(100, 100))
    assert plan.placements["L"].where == "cuda:1 (layers 0-38), cuda:0 (layers 39-79)"
    assert json.loads(json.dumps(to_json(plan)))["placements"]["L"]["split"][0]["layers"] == 39
    show_plan(
        check(f'model L = "{tmp_path}" {{ dtype=bfloat16, device=["cuda:1", "cuda:0"] }}\nL', zoo=NAMES),
        devices="cuda:0=100GB,cuda:1=100GB",
    )
    told = capsys.readouterr().out
    assert "        on cuda:1 (layers 0-38), cuda:0 (layers 39-79) (declared)\n" in told
    assert "    s1  cuda:0 74.5 GB, cuda:1 75.3 GB (slowest)\n" in told


@pytest.mark.parametrize("gigabytes", [500, 5])
def test_a_split_over_a_device_that_is_not_there_is_refused(gigabytes: int, tmp_path: Path) -> None:
    """What is not there is told before what does not fit."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    flow = check(f'model L = "{tmp_path}" {{ device=["cuda:0", "cuda:7"] }}\nL', zoo=NAMES)
    with pytest.raises(LoadError) as caught:
        ready(flow, machine(gigabytes))
    assert caught.value.message == "model 'L' is declared on cuda:7, which this machine does not have"


def test_too_little_memory_on_one_of_several_gpus_tells_what_fits_and_what_to_change() -> None:
    text = 'model D = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B" { dtype=bfloat16, device="cuda:1" }\n(D | Yi)'
    with pytest.raises(MemoryShort) as caught:
        place(paper(text), machine(80, 3))
    assert caught.value.message == (
        "the models of step (D | Yi) do not fit together: D 15.2 GB on cuda:1, Yi 17.7 GB, with 15% on top for keys"
        " and values; cuda:0 80.0 GB free, cuda:1 3.0 GB free, cpu 64.0 GB free; alone fit: Yi"
    )
    assert caught.value.help == (
        'try device=auto (D on cuda:0, Yi on cuda:0), quantization="bnb-4bit", smaller models, device=cpu for one of'
        " them"
    )


def test_plan_says_what_each_device_reads_and_which_is_the_slowest(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(check("Qwen -> (Ds | Yi)", zoo=load_zoo("paper")), devices="cuda:0=80GB,cuda:1=80GB")
    assert capsys.readouterr().out.endswith(
        "read for one token of each of 64 rows of 512 ids; the slowest device decides\n"
        "    s1  cuda:1 16.0 GB\n"
        "    s2  cuda:0 20.4 GB (slowest), cuda:1 16.0 GB\n"
        "    all steps at once: cuda:0 20.4 GB, cuda:1 32.0 GB (slowest)\n"
        "\n2 copies have room, with a GPU each: over many questions --replicas 2 keeps all GPUs busy\n"
    )


def test_a_plan_has_the_name_that_clients_know_its_flow_by() -> None:
    for text, name in (("Qwen", "mine"), ('defaults { name="org/judge" }\nQwen', "org/judge")):
        assert plans.compile(check(text, file="mine.flow", zoo=NAMES)).flow == name


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("Qwen -> (Yi | Ds)", (3, 1024, 2), (3, 1024, 2)),
        ("(Qwen / (Qwen | Yi) / Ds -> Yi)[accept=confidence, at=0.9]", (1, 512, 1), (5, 2048, 4)),
        ("(Qwen / Yi)[accept=judge(Ds)]", (2, 1024, 2), (3, 1536, 3)),
        ("Yi -> (Qwen)*3[until=unchanged]", (3, 1536, 3), (4, 2048, 4)),
        ("(Qwen / Ds / Yi)[accept=confidence, at=auto]", (3, 1536, 3), (3, 1536, 3)),
        ("Qwen[samples=8, temperature=1, enough=0.95]", (4, 2048, 1), (8, 4096, 5)),
    ],
)
def test_bounds_are_the_least_and_the_most_calls_tokens_and_steps_in_turn(
    text: str, least: tuple[int, ...], most: tuple[int, ...]
) -> None:
    found = bounds(compiled(text))
    assert (astuple(found.least), astuple(found.most)) == ((*least, None), (*most, None))


def test_seconds_are_told_along_the_longest_chain_of_steps_that_were_measured() -> None:
    plan = compiled("(Qwen / (Yi & Ds) / Ds -> Yi)[accept=answered]")
    took = {"s1": 1.0, "s2": 2.0, "s3": 4.0, "s4": 8.0, "s5": 16.0}
    found = bounds(plan, took)
    assert (found.least.seconds, found.most.seconds) == (1.0, 1.0 + 4.0 + 8.0 + 16.0)
    del took["s5"]
    assert (bounds(plan, took).least.seconds, bounds(plan, took).most.seconds) == (1.0, None)


@pytest.mark.parametrize(
    ("devices", "copies", "told"),
    [
        (
            "cpu=64GB,cuda:0=141GB,cuda:1=141GB,cuda:2=141GB,cuda:3=141GB",
            4,
            "without a model: cuda:3\n\n4 copies have room, with a GPU each: over many questions --replicas 4 keeps",
        ),
        (
            "cuda:0=40GB,cuda:1=40GB,cuda:2=40GB,cuda:3=40GB",
            2,
            "without a model: cuda:3\n\n2 copies have room, with 2 GPUs each: over many questions --replicas 2 keeps",
        ),
        ("cuda:0=24GB,cuda:1=24GB,cuda:2=24GB,cuda:3=24GB", 1, "\n\nwithout a model: cuda:3\n"),
        ("cuda:0=40GB,cuda:1=40GB", 1, "\ndevices: cuda:0 40.0 GB free, cuda:1 40.0 GB free\n"),
        ("cuda:0=141GB,cpu=64GB", 1, "cpu 64.0 GB free\n"),
    ],
)
def test_plan_says_which_gpus_have_nothing_to_do_and_how_many_copies_have_room(
    devices: str, copies: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = check("(Ds | Yi) -> Qwen", zoo="paper")
    show_plan(flow, devices=devices)
    said = capsys.readouterr().out
    assert told in said
    assert ("copies" in said) == (copies > 1) and ("without a model" in said) == ("cuda:3" in devices)
    show_plan(flow, devices=devices, as_json=True)
    assert json.loads(capsys.readouterr().out)["copies"] == copies


@pytest.mark.parametrize(
    ("flow", "copies", "told"),
    [
        ("Declared", 2, "without a model: cuda:0, cuda:2, cuda:3\n\n2 copies have room, with 2 GPUs each: over many "),
        ("Declared", 2, "--replicas 2 keeps 2 of 4 GPUs busy"),
        ("(Split | Rest)", 1, ""),
        ("Split", 2, "--replicas 2 keeps all GPUs busy"),
        ("Unknown", 4, "without a model: cuda:1, cuda:2, cuda:3"),
        ("Served", 4, ""),
        ("Slow", 1, "without a model: cuda:0, cuda:1, cuda:2, cuda:3"),
    ],
)
def test_copies_are_told_where_they_have_room_for_certain_and_keep_gpus_busy(
    flow: str, copies: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A declared device is the one of that number in each copy; what is elsewhere keeps no GPU busy."""
    zoo = tmp_path / "zoo.toml"
    model = 'ref = "Qwen/Qwen2.5-7B-Instruct"'
    zoo.write_text(
        f"""[models]
        Declared = {{ {model}, device = "cuda:1" }}
        Split = {{ {model}, device = ["cuda:0", "cuda:1"] }}
        Rest = {{ {model}, device = ["cuda:2", "cuda:3"] }}
        Unknown = {{ ref = "nobody/knows" }}
        Served = {{ ref = "m", backend = "openai", base_url = "http://localhost:9/v1" }}
        Slow = {{ {model}, device = "cpu", dtype = "bfloat16" }}
        """,
        encoding="utf-8",
    )
    devices = ",".join(f"cuda:{number}=80GB" for number in range(4)) + ",cpu=20GB"
    show_plan(checked := check(flow, zoo=str(zoo)), devices=devices)
    said = capsys.readouterr().out
    assert told in said
    assert ("copies have room" in said) == ("2 copies" in said) == (copies == 2)
    assert ("without a model" in said) == (flow not in ("(Split | Rest)", "Served"))
    show_plan(checked, devices=devices, as_json=True)
    assert json.loads(capsys.readouterr().out)["copies"] == copies


def test_copies_of_this_machine_are_as_many_as_replicas_auto_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine((*(Device(f"cuda:{number}", "", GB, GB) for number in range(4)), Device("cpu", "", GB, GB)))
    monkeypatch.setattr("flowinfer.machine.this_machine", lambda: machine)
    monkeypatch.setattr("flowinfer.runs.replicas.sharing.cores_here", lambda: [0, 1, 2])
    flow = check("Qwen -> Yi", zoo="lab")
    site, _ = divided("auto", machine, partial(ready, flow), lambda plan: len(plan.waves) == 1, flow.models.values())
    show_plan(flow, as_json=True)
    assert site is not None and json.loads(capsys.readouterr().out)["copies"] == site.num_replicas == 3


def test_a_plan_says_what_is_chosen_and_what_it_may_cost(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(check("((Qwen / Yi)[accept=answered] & Ds)[min=1, wait=3]", zoo="lab"))
    said = capsys.readouterr().out
    assert "s2  Yi  if d2 accepts none of 1" in said
    assert "d2  (Qwen / Yi): the first of s1, s2 that is accepted (answered), else the last" in said
    assert "d1  ((Qwen / Yi)[accept=answered] & Ds): 1 of d2, s3 will do, wait 3 s" in said
    assert "a question takes 2 to 3 model calls" in said


@pytest.mark.parametrize(
    ("flow", "known"),
    [
        ("Yi -> Qwen", ["Qwen"]),
        ("(Qwen & Ds)", []),
        ("(Qwen / Ds)[accept=confidence, at=0.5]", ["Ds"]),
        ("(Qwen / (Ds & Yi))[accept=confidence, at=0.5]", []),
        ("Yi -> ((Qwen / Ds)[accept=answered] / (Ds / Yi)[accept=answered])[accept=confidence, at=0.5]", ["Yi"]),
        ("(Qwen)*2[until=unchanged]", ["Qwen"]),
        ("(Qwen & Ds)[min=1]", []),
        ("Qwen[samples=4, temperature=1, enough=0.9]", []),
    ],
)
def test_it_is_known_of_some_steps_as_they_begin_that_their_text_is_the_answer(flow: str, known: list[str]) -> None:
    plan = compiled(flow)
    assert [plan.step(name).title for name in plan.finals] == known
    assert not known or plan.finals[-1] == plan.steps[-1].id
