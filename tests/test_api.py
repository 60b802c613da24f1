"""The Python interface."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import flowinfer
from flowinfer.engine.loops.thinking import strip_thinking
from flowinfer.errors import FlowError
from flowinfer.runs.ask import ask
from flowinfer.runs.gate import Gate


@pytest.fixture(scope="module")
def flow(toy_zoo: Path) -> flowinfer.Flow:
    return flowinfer.parse("Yi -> (Qwen | Ds)", zoo=str(toy_zoo), params={"max_tokens": 8})


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n', encoding="utf-8")
    return path


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = "import sys, flowinfer; assert not {'torch', 'transformers', 'lark', 'networkx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_answer_is_its_text_and_holds_its_trace(flow: flowinfer.Flow) -> None:
    answer = flow.run("What is 2 + 2?")
    assert str(answer) == answer.text == answer.trace.steps[-1].passed_on
    assert [step.step for step in answer.trace.steps] == ["s1", "s2"]


def test_streamed_pieces_join_to_the_whole_answer(flow: flowinfer.Flow) -> None:
    pieces = list(flow.stream("Tell me of 苹果."))
    assert "".join(pieces) == flow.run("Tell me of 苹果.").text and len(pieces) > 1


@pytest.mark.parametrize(
    ("flow", "told"),
    [
        ("(Qwen / Yi)[accept=confidence, at=0]", ["the answer"]),
        ("(Qwen / Yi)[accept=confidence, at=1]", ["the answer"]),
        ("(Qwen / Yi)[accept=confidence, at=1] -> Qwen", ["what Yi wrote", "the answer"]),
        ("(Qwen / Ds)[accept=judge(Yi)]", ["the answer"]),
        ("(Qwen & Ds)", ["what Qwen wrote", "the answer"]),  # Ds wins
        ("(Qwen & Ds) -> Yi", ["what Qwen wrote", "what Ds wrote", "the answer"]),
        ("(Qwen)*2", ["one other text of Qwen", "the answer"]),
        ("Qwen[samples=3, temperature=1]", ["2 other texts of Qwen", "the answer"]),
        ("Qwen[samples=2, temperature=1, enough=0.6]", ["one other text of Qwen", "the answer"]),
        ("Qwen[samples=2, temperature=1] -> Ds", ["2 texts of Qwen", "the answer"]),
        ("Qwen[max_tokens=2] -> Qwen", ["one other text of Qwen", "the answer"]),
        ("Qwen -> (Yi & Ds)[min=1, wait=60]", ["what Qwen wrote", "what Ds wrote", "the answer"]),
    ],
)
def test_what_the_answer_is_not_made_of_is_not_told_to_be_cut_off(flow: str, told: list[str], toy_zoo: Path) -> None:
    with flowinfer.parse(flow, zoo=str(toy_zoo), params={"max_tokens": 1, "prompts": "plain"}) as parsed:
        notes = [note for note in parsed.run("1 + 1?").notes if "cut off" in note]
        assert [note.partition(" is cut")[0].partition(" are cut")[0] for note in notes] == told
        assert list(parsed.run(["1 + 1?"])[0].notes)[-len(notes) :] == notes


def test_the_last_member_of_a_choice_is_streamed_where_no_other_was_accepted(toy_zoo: Path) -> None:
    text = "(Qwen / Yi)[accept=confidence, at=1]"
    with flowinfer.parse(text, zoo=str(toy_zoo), params={"max_tokens": 8}) as flow:
        pieces = list(flow.stream("Tell me of 苹果."))
        assert "".join(pieces) == flow.run("Tell me of 苹果.").text and len(pieces) > 1


def test_samples_of_one_question_are_drawn_side_by_side(toy_zoo: Path) -> None:
    """With `enough` those that are needed in any case are."""
    drawn = "Qwen[samples=6, temperature=1, max_tokens=2"
    with flowinfer.parse(f"{drawn}]", zoo=str(toy_zoo)) as flow:
        assert [step.batch for step in flow.run("What is 2 + 2?").trace.steps] == [6] * 6
    with flowinfer.parse(f"{drawn}, enough=0.95]", zoo=str(toy_zoo)) as flow:
        assert [step.batch for step in flow.run("What is 2 + 2?").trace.steps[:4]] == [4] * 4


def test_many_questions_at_once_have_the_answers_that_they_have_alone(toy_zoo: Path) -> None:
    questions = ["What is 2 + 2?", "Tell me of 苹果.", "What is 2 + 2?"]
    with flowinfer.parse("Yi[temperature=0.9] -> (Qwen | Ds)", zoo=str(toy_zoo), params={"max_tokens": 8}) as flow:
        alone = [flow.run(question).text for question in questions]
        assert [answer.text for answer in flow.run(questions)] == alone
        assert flow.run([]) == []

        async def tasks() -> list[str]:
            return [answer.text for answer in await asyncio.gather(*map(flow.arun, questions))]

        assert asyncio.run(tasks()) == asyncio.run(tasks()) == alone
        with pytest.raises(flowinfer.UsageError, match="question 1 is empty"):
            flow.run(["What?", " "])
        with pytest.raises(flowinfer.UsageError, match="the question is empty"):
            asyncio.run(flow.arun(" "))


def test_an_answer_can_be_read_as_it_is_written_in_an_event_loop(toy_zoo: Path) -> None:
    with flowinfer.parse("(Qwen | Ds)", zoo=str(toy_zoo), params={"max_tokens": 12}) as flow:

        async def read() -> list[str]:
            async for _ in flow.astream("Tell me of 苹果."):
                break  # and another goes on
            return [piece async for piece in flow.astream("Tell me of 苹果.")]

        pieces = asyncio.run(read())
        assert "".join(pieces) == flow.run("Tell me of 苹果.").text and len(pieces) > 1


@pytest.mark.parametrize("cut", [1, 8])
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


def test_evaluation_gives_accuracy_interval_and_one_row_per_question(flow: flowinfer.Flow, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{i}?", "answer": str(i)}) for i in range(3)), encoding="utf-8")
    found = flow.evaluate(str(path), out=tmp_path / "runs")
    assert found.accuracy is not None and found.interval[0] <= found.accuracy <= found.interval[1]
    assert [row["id"] for row in sorted(found.table, key=lambda row: str(row["id"]))] == ["0", "1", "2"]
    assert "accuracy" in found._repr_html_() and "accuracy" in repr(found)


def test_graph_and_plan_need_no_models(flow: flowinfer.Flow) -> None:
    assert flow.graph.number_of_nodes() == 6 and [step.id for step in flow.plan().steps] == ["s1", "s2"]


def test_a_flow_draws_itself(flow: flowinfer.Flow) -> None:
    assert "⊕ mean" in repr(flow) and flow._repr_html_().startswith("<svg")


def test_a_refused_flow_raises_with_all_diagnostics() -> None:
    with pytest.raises(FlowError, match="unknown model") as caught:
        flowinfer.parse("Quen -> Dss", zoo="paper")
    assert len(caught.value.diagnostics) == 2


def test_load_reads_a_file(tmp_path: Path, toy_zoo: Path) -> None:
    (tmp_path / "mine.flow").write_text("Qwen -> Yi\n")
    assert flowinfer.load(tmp_path / "mine.flow", zoo=str(toy_zoo)).flow.name == "mine"


@pytest.mark.parametrize("text", ["Ds", "Qwen -> Ds", "(Qwen | Ds)"])
def test_streams_of_models_that_think_join_to_the_answer(text: str) -> None:
    """Line breaks behind a closed thought came through, in a token of their own."""
    with flowinfer.parse(text, zoo="lab") as flow:
        for question in ("What is 12 * 3?", "求 12*x**2 + 6*x + 16 对 x 的导数。"):
            assert "".join(flow.stream(question)) == flow.run(question).text


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
        (["[TH", "INK]a[/THINK]", "\n42"], False),
    ],
)
def test_gated_pieces_are_what_stripping_leaves(pieces: list[str], opened: bool) -> None:
    gate = Gate(strips=True, stops=(), prefill="")
    gate.begin(opened)
    assert "".join(map(gate.pass_on, pieces)) == strip_thinking("".join(pieces), opened=opened)


def test_what_the_package_offers_is_listed_and_its_errors_can_be_caught() -> None:
    assert "TYPE_CHECKING" not in dir(flowinfer)
    assert {"Flow", "Pipeline", "load", "parse", "sweep", "FlowInferError", "UsageError"} <= set(dir(flowinfer))
    assert all(getattr(flowinfer, name) is not None for name in flowinfer.__all__)
    assert flowinfer.Pipeline is flowinfer.Flow
    with pytest.raises(flowinfer.FlowError):
        flowinfer.parse("Nobody")


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(flow: flowinfer.Flow, question: str) -> None:
    with pytest.raises(flowinfer.UsageError, match="the question is empty"):
        flow.run(question)
    with pytest.raises(flowinfer.UsageError, match="the question is empty"):
        list(flow.stream(question))


def test_a_question_that_fails_is_raised(flow: flowinfer.Flow) -> None:
    with pytest.raises(flowinfer.RunError, match="half of a surrogate pair"):
        flow.run("1 \ud800 + 1")
    with pytest.raises(flowinfer.RunError, match="half of a surrogate pair"):
        list(flow.stream("1 \ud800 + 1"))


def test_who_stops_reading_ends_the_answer(flow: flowinfer.Flow) -> None:
    before = set(threading.enumerate())
    for _ in flow.stream("Tell me of 苹果."):
        break
    assert set(threading.enumerate()) <= before
    assert "".join(flow.stream("Tell me of 苹果.")) == flow.run("Tell me of 苹果.").text


def test_an_answer_can_be_left_before_its_first_piece(toy_zoo: Path) -> None:
    """While models are loaded, or an earlier stage writes."""
    heard: list[str] = []

    class Left(BaseException):
        pass

    def hear(text: str) -> None:
        heard.append(text)
        if len(heard) == 5:
            raise Left

    with flowinfer.parse("Qwen -> Ds", zoo=str(toy_zoo), params={"max_tokens": 100}) as flow:
        answer = ask(flow.flow, "Tell me of 苹果.", on_text=hear)
    assert heard == [""] * 5
    assert answer.trace.steps == ()
    assert answer.trace.error is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "left",
    [
        "for _ in flow.stream(question): break",
        "pieces = flow.stream(question); next(pieces)",
        "pieces = flow.astream(question); asyncio.run(anext(pieces))",
    ],
)
def test_python_ends_while_an_answer_is_written(left: str) -> None:
    begun = "import asyncio, flowinfer; flow = flowinfer.parse('(Qwen | Ds)', zoo='lab')\nquestion = '3*x + 5 = 20'\n"
    ended = subprocess.run([sys.executable, "-c", begun + left], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "terminate" not in ended.stderr, ended.stderr


def test_a_question_that_is_no_text_is_a_type_error(flow: flowinfer.Flow) -> None:
    with pytest.raises(TypeError, match="question must be a text, not int"):
        flow.run(3)  # type: ignore[call-overload]  # the mistake
    with pytest.raises(TypeError, match="question 1 must be a text, not int"):
        flow.run(["1 + 1", 3])  # type: ignore[list-item]  # the mistake
    with pytest.raises(TypeError, match="question must be a text, not list"):
        asyncio.run(flow.arun(["1 + 1"]))  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match="text must be a text, not int"):
        flowinfer.parse(3)  # type: ignore[arg-type]  # the mistake


def test_answers_say_when_they_were_asked_for_in_another_language(flow: flowinfer.Flow, items: Path) -> None:
    note = "asks in Chinese, the question is not"
    found = flow.evaluate(items)
    assert note in found.notes[-1] and note in repr(found)
    answer = flow.run("What is 1 + 1?")
    (told,) = [one for one in answer.notes if note in one]
    assert 'params={"prompts": "plain"} or en' in told and note in answer._repr_html_()
    assert "--" not in repr(found)
    assert not any(note in one for one in flow.run("一加一等于几？").notes)


def test_a_printed_evaluation_tells_how_answers_were_read(flow: flowinfer.Flow, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "Which?", "choices": ["red", "blue"], "answer": "blue"}')
    assert "answers name options: 1 by text" in repr(flow.evaluate(str(tmp_path / "own.jsonl")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": "3"}, "limit must be a whole number, not '3'"),
        ({"sample": True}, "sample must be a whole number, not True"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"ids": "q1"}, "ids must be a list of ids, not the text 'q1'"),
        ({"batch": 0}, "batch must be 'auto' or a whole number of at least 1, not 0"),
        ({"replicas": "all"}, "replicas must be 'auto' or a whole number of at least 1, not 'all'"),
        ({"engine": "fast"}, "engine must be 'auto', 'packed' or 'reference', not 'fast'"),
        ({"resume": "latest", "out": "nowhere"}, "no runs in 'nowhere'"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(
    flow: flowinfer.Flow, items: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(flowinfer.UsageError) as caught:
        flow.evaluate(items, **arguments)
    assert caught.value.message == message and "--" not in f"{caught.value.help}"


def test_errors_speak_of_arguments_and_not_of_options(toy_zoo: Path) -> None:
    with pytest.raises(flowinfer.UsageError) as caught:
        flowinfer.parse("Qwen", zoo=str(toy_zoo), params={"cap": 3})
    assert str(caught.value).startswith("params cap: the flow has no param or default option of that name")
    with pytest.raises(flowinfer.UsageError) as caught:
        flowinfer.sweep(datasets="gsm8k", zoo=str(toy_zoo))
    assert "--" not in f"{caught.value} {caught.value.help}"


def test_an_evaluation_writes_no_run_unless_told(
    flow: flowinfer.Flow, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert flow.evaluate(items, limit=1).results.run is None and list(tmp_path.iterdir()) == [items]
    found = flow.evaluate(items, limit=1, out="kept")
    again = flow.evaluate(items, limit=1, out="kept", resume="latest")
    assert (found.results.run, len(again.records)) == (again.results.run, 1)
