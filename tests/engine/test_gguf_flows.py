"""Flows of GGUF heads: the lab zoo by llama.cpp writes what it writes by transformers, and the laws of fusion hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import flowinfer
from flowinfer.results import Record
from tests.backends.gguf_files import written

pytest.importorskip("llama_cpp", reason="needs flowinfer[gguf]")

SINGLES, PI, S2P = ("{Qwen}", "{Ds}", "{Yi}"), "({Qwen} | {Ds} | {Yi})", "{Yi} -> ({Qwen} | {Ds})"
THEIRS = {"Qwen": "Qwen", "Ds": "Ds", "Yi": "Yi"}
OURS = {name: f"G{name}" for name in THEIRS}
Texts = Mapping[str, list[str]]


def declared(kind: str = "F32") -> str:
    """Return declarations of the lab zoo's files, GQwen, GDs and GYi."""
    files = {own: written(name.lower(), kind) for name, own in OURS.items()}
    models = "".join(f'model {own} = "{path}" {{ backend=gguf }}\n' for own, path in files.items())
    return f"defaults {{ max_tokens=96 }}\n{models}"


def texts(
    flow: str, limit: int = 4, *, kind: str = "F32", dataset: str = "gsm8k", on_record: Any = None, **options: Any
) -> Texts:
    """Return what every step wrote, by question."""
    found: dict[str, list[str]] = {}

    def keep(record: Record) -> None:
        assert record.trace.error is None
        found[record.question.id] = [step.text for step in record.trace.steps]
        if on_record:
            on_record(record)

    with flowinfer.parse(declared(kind) + flow, zoo="lab") as parsed:
        parsed.evaluate(dataset, limit=limit, use_cache=False, on_record=keep, **options)
    return found


@pytest.mark.parametrize("flow", [*SINGLES, PI, S2P])
def test_flows_of_files_in_float32_write_what_transformers_writes(flow: str) -> None:
    ours, theirs = texts(flow.format(**OURS)), texts(flow.format(**THEIRS))
    assert ours == theirs and len(ours) == 4


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["gsm8k", "ceval"])
@pytest.mark.parametrize("flow", [*SINGLES, PI, S2P])
def test_a_hundred_questions_are_answered_as_by_transformers(flow: str, dataset: str) -> None:
    found = [texts(flow.format(**names), 100, dataset=dataset) for names in (OURS, THEIRS)]
    assert found[0] == found[1] and len(found[0]) == 100


@pytest.mark.slow
def test_replicas_of_files_write_what_one_process_writes(tmp_path: Path) -> None:
    whole = texts(S2P.format(**OURS))
    assert texts(S2P.format(**OURS), replicas=2, out=tmp_path) == whole


@pytest.mark.slow
def test_several_flows_of_files_are_served_by_replicas(tmp_path: Path) -> None:
    question = "Tom has 5 red pens and buys 7. How many pens has he got now?"
    files = {"pi": PI, "s2p": S2P}
    for name, flow in files.items():
        (tmp_path / f"{name}.flow").write_text(declared() + flow.format(**OURS), encoding="utf-8")
    pytest.importorskip("starlette", reason="needs flowinfer[serve]")
    from tests.serving.test_replica_processes import Server

    server = Server(*(str(tmp_path / f"{name}.flow") for name in files), "--replicas", "2")
    try:
        server.wait_for()
        asked = {"messages": [{"role": "user", "content": question}], "max_tokens": 96}
        replies = [server.chat(model=name, **asked) for name in files for _ in range(2)]
        found = [reply.json()["choices"][0]["message"]["content"] for reply in replies]
    finally:
        server.end()
    wanted = []
    for flow in files.values():
        with flowinfer.parse(declared() + flow.format(**OURS), zoo="lab") as parsed:
            wanted += [parsed.run(question).text] * 2
    assert found == wanted and all(found)


@pytest.mark.parametrize(
    "options",
    ["context=canonical", "speculate=ngram", "fuse=geometric, context=canonical", "strict=true, near_tie_eps=0.2"],
)
def test_options_of_a_group_do_with_files_what_they_do_with_checkpoints(options: str) -> None:
    ours, theirs = (texts(f"{PI}[{options}]".format(**names), 3) for names in (OURS, THEIRS))
    assert ours == theirs


def test_a_group_may_mix_files_and_checkpoints() -> None:
    theirs = texts(PI.format(**THEIRS), 3)
    assert texts("(GQwen | Ds | GYi)", 3) == theirs == texts("(GYi | GQwen | Ds)[speculate=alternate]", 3)


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_copies_permutations_and_batches_change_no_text(kind: str) -> None:
    """Quantized weights too: what is computed for a row does not depend on what else is computed, but for near ties."""
    alone = texts("GQwen", 3, kind=kind, batch=1)
    assert texts("(GQwen | GQwen | GQwen)", 3, kind=kind, batch=3) == alone
    pair = texts("(GQwen:0.7 | GYi:0.3)", 3, kind=kind, batch=1)
    assert texts("(GYi:0.3 | GQwen:0.7)", 3, kind=kind, batch=3) == pair


def test_a_run_that_was_broken_off_and_resumed_equals_a_whole_one(tmp_path: Path) -> None:
    whole = texts(S2P.format(**OURS), 5)

    def stop_at(count: int) -> Callable[[Record], None]:
        left = iter(range(count))

        def stop(_: Record) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        texts(S2P.format(**OURS), 5, out=tmp_path, batch=2, on_record=stop_at(2))
    resumed = texts(S2P.format(**OURS), 5, out=tmp_path, batch=2, resume="latest")
    assert len(resumed) < 5 and all(whole[question] == text for question, text in resumed.items())
