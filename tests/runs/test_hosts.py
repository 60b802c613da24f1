"""Replicas over hosts: how many each gets, with what, and why a host cannot answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest

from flowinfer.errors import MemoryShort, UsageError
from flowinfer.language.check import check
from flowinfer.machine import Device, Machine
from flowinfer.planning.needs import process_bytes
from flowinfer.runs.replicas import cluster
from flowinfer.runs.replicas.cluster import Node
from flowinfer.runs.replicas.hosts import Host, spread
from flowinfer.runs.replicas.node import Files, Look, differences, look
from flowinfer.spec import ModelSpec
from tests.command import flowinfer
from tests.ggufs import META, write


def host(name: str, gpus: int = 0, cores: int = 8, free: int = 80) -> Host:
    cards = [Device(f"cuda:{index}", "H100", free - 2 * index, 80) for index in range(gpus)]
    return Host(name, name, (*cards, Device("cpu", "", 64, 128)), cores)


def needs(gpus: int, memory: int = 0) -> object:
    """Return what places a copy that needs so many GPUs, or so much of a CPU's memory."""

    def place(machine: Machine) -> Machine:
        if len(machine.devices) - 1 < gpus or machine.devices[-1].free_bytes < memory:
            raise MemoryShort("too small")
        return machine

    return place


def holds(memory: int) -> object:
    """Return what places a copy that needs so much memory of all GPUs together."""

    def place(machine: Machine) -> Machine:
        if sum(device.free_bytes for device in machine.devices[:-1]) < memory:
            raise MemoryShort("too small")
        return machine

    return place


@pytest.mark.parametrize(
    ("hosts", "wanted", "needed", "names", "gpus", "cores"),
    [
        ([host("a", 4), host("b", 2)], "auto", needs(1), "aaaabb", 1, 2),
        ([host("a", 4), host("b", 2)], "auto", needs(2), "aab", 2, 4),
        ([host("a", 4), host("b", 2)], "auto", needs(3), "a", 3, 8),
        ([host("a", 4), host("b", 2)], 3, needs(1), "aab", 1, 4),
        ([host("a", 4), host("b")], "auto", needs(1), "aaaa", 1, 2),
        ([host("a", 2), host("b", 8, free=20), host("c", 4, free=5)], "auto", holds(30), "aa", 1, 4),
        ([host("a", 2), host("b", 8, free=20), host("c", 4, free=5)], 4, holds(30), "abbb", 2, 2),
        ([host("a", cores=2), host("b", cores=4)], "auto", needs(0), "aabbbb", 0, 1),
        ([host("a", cores=2), host("b", cores=4)], "auto", needs(0, 32), "aabb", 0, 1),
        ([host("a", cores=8), host("b", cores=8)], 2, needs(0), "ab", 0, 8),
    ],
)
def test_replicas_are_spread_over_hosts_with_as_little_as_holds_a_copy(
    hosts: list[Host], wanted: object, needed: object, names: str, gpus: int, cores: int
) -> None:
    found, placed = spread(hosts, wanted, needed, lambda machine: True)  # type: ignore[arg-type]  # as tables have it
    assert "".join(one.name for one in found.hosts) == names
    assert (found.num_gpus, found.cores) == (gpus, cores)
    assert placed == found.machine and [one.name for one in placed.devices] == [
        *(f"cuda:{index}" for index in range(gpus)),
        "cpu",
    ]


def test_a_copy_is_placed_on_what_every_replica_has() -> None:
    found, _ = spread([host("a", 2, free=80), host("b", 2, free=40)], "auto", needs(2), lambda machine: True)  # type: ignore[arg-type]
    assert [one.free_bytes for one in found.machine.devices] == [40, 38, 64]


def test_a_file_that_replicas_of_a_host_map_lies_in_its_memory_once() -> None:
    """Of 64 bytes a file takes 40, and a replica 12 for itself: two have room on each host, not one."""
    hosts = [host("a", cores=2), host("b", cores=4)]
    found, _ = spread(hosts, 4, needs(0, 52), lambda machine: True, mapped=40)  # type: ignore[arg-type]  # as tables
    assert "".join(one.name for one in found.hosts) == "aabb"
    assert (found.machine.devices[-1].free_bytes, found.cpu_bytes) == (52, 12)
    assert found.kept_bytes == (52, 12, 52, 12), "no more than the 64 bytes of each host"
    with pytest.raises(MemoryShort):
        spread(hosts, 4, needs(0, 52), lambda machine: True)  # type: ignore[arg-type]


def test_no_more_is_kept_for_a_copy_than_it_needs() -> None:
    """A node that comes back with less memory free than before has room as long as it has that much."""
    hosts = [host("a", cores=2), host("b", cores=4)]
    for needed, kept in ((5, 5), (None, 32), (99, 32)):
        found, _ = spread(hosts, 4, needs(0), lambda machine: True, needed=needed)  # type: ignore[arg-type]  # as tables
        assert (found.cpu_bytes, found.kept_bytes) == (32, (kept,) * 4)
    found, _ = spread(hosts, 4, needs(0, 52), lambda machine: True, mapped=40, needed=5)  # type: ignore[arg-type]
    assert (found.cpu_bytes, found.kept_bytes) == (12, (45, 5, 45, 5))


def test_a_copy_needs_its_weights_and_a_batch_and_some_room(tmp_path: Path) -> None:
    lab = [*check("(Qwen | Ds)", zoo="lab").models.values()]
    again = [*lab, lab[0].model_copy(update={"name": "A"})]
    one, alone = process_bytes(lab[:1], has_gpus=False), process_bytes([], has_gpus=False)
    both, on_gpus = process_bytes(lab, has_gpus=False), process_bytes(lab, has_gpus=True)
    assert one and alone and both and on_gpus and alone < one < both < 2 << 30 < on_gpus
    assert process_bytes(again, has_gpus=False) == both, "one file under two names"
    missing = ModelSpec(name="C", ref=str(tmp_path / "nothing"))
    assert process_bytes([*lab, missing], has_gpus=False) is None
    gguf = ModelSpec(name="D", ref=str(write(tmp_path / "m.gguf", META)), backend="gguf")
    size = (tmp_path / "m.gguf").stat().st_size
    mapped, copied = (process_bytes([gguf.model_copy(update={"mmap": way})], has_gpus=False) for way in (True, False))
    assert mapped and copied and mapped <= copied <= mapped + 2 * size


def test_what_has_no_room_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="--replicas 7: the cluster has 6 GPUs for them"):
        spread([host("a", 4), host("b", 2)], 7, needs(1), lambda machine: True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has 4 GPUs for them \(without node b: it has no GPUs, as others have\)"):
        spread([host("a", 4), host("b")], 7, needs(1), lambda machine: True)  # type: ignore[arg-type]
    with pytest.raises(MemoryShort, match="no node has room for a copy of the plan: nodes a, b: too small; node c: it"):
        spread([host("a", 4), host("b", 2), host("c")], "auto", needs(5), lambda machine: True)  # type: ignore[arg-type]
    with pytest.raises(MemoryShort, match="node a: a copy's models do not fit together"):
        spread([host("a", cores=2)], "auto", needs(0), lambda machine: False)  # type: ignore[arg-type]


def files(path: str, digests: Mapping[str, str] | None) -> Files:
    return Files(name="Qwen", path=path, is_there=digests is not None, digests=digests or {})


def seen(model: Files, **versions: str) -> Look:
    said = {"flowinfer": "1", "torch": "2", "transformers": "5", "tokenizers": "0"} | versions
    return Look(versions=said, devices=(), cores=1, models=(model,))


HERE = seen(files("/models/qwen", {"tokenizer.json": "a", "config.json": "b"}))


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (HERE, []),
        (seen(files("/other/qwen", HERE.models[0].digests), python="3.12"), []),
        (seen(HERE.models[0], torch="3"), ["torch 2 here, 3 there"]),
        (seen(files("/models/qwen", None)), ["model 'Qwen' is missing there: nothing at /models/qwen"]),
        (
            seen(files("/models/qwen", {"tokenizer.json": "c", "config.json": "b"})),
            ["model 'Qwen' is another there: tokenizer.json in /models/qwen"],
        ),
    ],
)
def test_a_host_that_would_answer_otherwise_is_told_with_the_difference(there: Look, told: list[str]) -> None:
    assert differences(HERE, there) == told


def test_a_model_that_the_driver_does_not_have_is_missing_here_and_no_other_one_there() -> None:
    told = differences(seen(files("/models/qwen", None)), HERE)
    assert told == ["model 'Qwen' is missing here: nothing at /models/qwen"]


def test_a_host_says_what_it_has_as_plain_data(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    specs = [ModelSpec(name="A", ref=str(tmp_path)), ModelSpec(name="B", ref=str(tmp_path / "nothing"))]
    specs.append(ModelSpec(name="C", ref=str(write(tmp_path / "m.gguf", META)), backend="gguf"))
    specs.append(ModelSpec(name="D", ref="ollama:nothing", backend="gguf"))
    specs.append(ModelSpec(name="E", ref="what only its backend knows", backend="somebody's"))
    found = Look.model_validate(look([spec.model_dump() for spec in specs]))
    assert [(one.name, one.is_there, [*one.digests]) for one in found.models] == [
        ("A", True, ["tokenizer.json"]),
        ("B", False, []),
        ("C", True, ["its header"]),
        ("D", False, []),
        ("E", True, []),
    ]
    assert found.devices[-1].name == "cpu" and found.versions["torch"]


def test_a_host_without_room_is_left_out_and_told_why() -> None:
    hosts = [host("a", 2), host("b", 8, free=20), host("c", 4, free=5), host("d")]
    found, _ = spread(hosts, "auto", holds(30), lambda machine: True)  # type: ignore[arg-type]
    assert found.left_out == {
        "b": "a copy needs 2 of its GPUs",
        "c": "too small",
        "d": "it has no GPUs, as others have",
    }


def test_a_cluster_is_shown_and_then_why_a_flow_has_no_room_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Look(versions={"flowinfer": "1"}, devices=(Device("cpu", "", 64 << 30, 64 << 30),), cores=4, models=())
    node = Node("f" * 56, "10.0.0.1", 2, 0, 1 << 30, there, ())
    monkeypatch.setattr(cluster, "nodes", lambda address, models: [node])
    done = flowinfer("cluster", "-e", "Qwen", "--zoo", "lab", "--replicas", "7", cwd=tmp_path)
    assert done.stdout == "node 10.0.0.1 (ffffffff): 2 CPU cores, 1.1 GB of memory, flowinfer 1\n"
    assert done.stderr.startswith("error: --replicas 7: the cluster has 2 CPU cores for them")
    assert done.returncode == 2


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
@pytest.mark.parametrize("command", [("cluster",), ("exec", "-e", "Qwen", "--zoo", "lab", "--dataset", "ceval")])
def test_without_the_extra_the_cure_is_told(command: tuple[str, ...], tmp_path: Path) -> None:
    done = flowinfer(*command, "--cluster", "auto", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: a cluster needs Ray, which is not installed",
        "  = help: pip install 'flowinfer[ray]'",
    ]
    assert not list(tmp_path.iterdir())
