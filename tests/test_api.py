"""The Python interface."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import flowinfer
from flowinfer.ask import _Gate
from flowinfer.engine.thinking import strip_thinking
from flowinfer.errors import FlowError


@pytest.fixture(scope="module")
def pipeline(toy_zoo: Path) -> flowinfer.Pipeline:
    return flowinfer.parse("Yi -> (Qwen | Ds)", zoo=str(toy_zoo), params={"max_tokens": 8})


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = "import sys, flowinfer; assert not {'torch', 'transformers', 'lark', 'networkx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_answer_is_its_text_and_holds_its_trace(pipeline: flowinfer.Pipeline) -> None:
    answer = pipeline.run("What is 2 + 2?")
    assert str(answer) == answer.text == answer.trace.steps[-1].passed_on
    assert [step.step for step in answer.trace.steps] == ["s1", "s2"]


def test_streamed_pieces_join_to_the_whole_answer(pipeline: flowinfer.Pipeline) -> None:
    pieces = list(pipeline.stream("Tell me of 苹果."))
    assert "".join(pieces) == pipeline.run("Tell me of 苹果.").text and len(pieces) > 1


@pytest.mark.parametrize("cut", [1, 5, 8, 13])
def test_streamed_pieces_hold_whole_characters_only(toy_zoo: Path, cut: int) -> None:
    """Random models write characters byte by byte; at the limit an unfinished one is left out of both."""
    with flowinfer.parse("(Qwen | Ds)", zoo=str(toy_zoo), params={"max_tokens": cut}) as flow:
        for question in ("写一首诗", "Tell me of naïve cafés 😀"):
            pieces = list(flow.stream(question))
            assert "".join(pieces) == flow.run(question).text
            assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_ends_before_a_stop_text_that_straddles_its_pieces(toy_zoo: Path) -> None:
    with flowinfer.parse("Qwen", zoo=str(toy_zoo), params={"max_tokens": 24}) as flow:
        text = flow.run("hello").text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    with flowinfer.parse(f"Qwen[stop={json.dumps(stop)}]", zoo=str(toy_zoo), params={"max_tokens": 24}) as flow:
        assert "".join(flow.stream("hello")) == text[: text.index(stop)] == flow.run("hello").text


def test_evaluation_gives_accuracy_interval_and_one_row_per_question(
    pipeline: flowinfer.Pipeline, tmp_path: Path
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{i}?", "answer": str(i)}) for i in range(3)), encoding="utf-8")
    found = pipeline.evaluate(str(path), out=tmp_path / "runs")
    assert found.accuracy is not None and found.interval[0] <= found.accuracy <= found.interval[1]
    assert [row["id"] for row in sorted(found.table, key=lambda row: str(row["id"]))] == ["0", "1", "2"]
    assert "accuracy" in found._repr_html_() and "accuracy" in repr(found)


def test_graph_and_plan_need_no_models(pipeline: flowinfer.Pipeline) -> None:
    assert pipeline.graph.number_of_nodes() == 6 and [step.id for step in pipeline.plan().steps] == ["s1", "s2"]


def test_a_pipeline_draws_itself(pipeline: flowinfer.Pipeline) -> None:
    assert "⊕ mean" in repr(pipeline) and pipeline._repr_html_().startswith("<svg")


def test_a_refused_flow_raises_with_all_diagnostics() -> None:
    with pytest.raises(FlowError, match="unknown model") as caught:
        flowinfer.parse("Quen -> Dss", zoo="paper")
    assert len(caught.value.diagnostics) == 2


def test_load_reads_a_file(tmp_path: Path, toy_zoo: Path) -> None:
    (tmp_path / "mine.flow").write_text("Qwen -> Yi\n")
    assert flowinfer.load(tmp_path / "mine.flow", zoo=str(toy_zoo)).flow.name == "mine"


@pytest.mark.parametrize("flow", ["Ds", "Qwen -> Ds", "(Qwen | Ds)"])
def test_streams_of_models_that_think_join_to_the_answer(flow: str) -> None:
    """Line breaks behind a closed thought came through, in a token of their own."""
    with flowinfer.parse(flow, zoo="lab") as pipeline:
        for question in ("What is 12 * 3?", "求 12*x**2 + 6*x + 16 对 x 的导数。"):
            assert "".join(pipeline.stream(question)) == pipeline.run(question).text


@pytest.mark.parametrize(
    ("pieces", "opened"),
    [
        (["a thought\n", "</think>", "\n\n", "42"], True),
        (["a", " thought</thi", "nk>\n", "\n42\n", "done"], True),
        (["<thi", "nk>", "hm", "</think>", "\n", "\n", "42"], False),
        (["\n", "\n<think>hm</think>\n42"], False),
        (["\n\n", "42 < 43"], False),
        (["<", "b>42"], False),
        (["never closed"], True),
    ],
)
def test_gated_pieces_are_what_stripping_leaves(pieces: list[str], opened: bool) -> None:
    gate = _Gate(strips=True, stops=(), prefill="")
    gate.begin(opened)
    assert "".join(map(gate.pass_on, pieces)) == strip_thinking("".join(pieces), opened=opened)
