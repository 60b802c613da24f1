"""Answers of own data: what names an option becomes its letter, what no judge can read is refused by its line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowinfer.errors import DataError
from flowinfer.tasks.answers import judge
from flowinfer.tasks.base import Dataset, load_questions
from flowinfer.tasks.references import AnswerIndex

CITIES = ["Paris", "London", "Rome", "Bonn"]
NUMBERS = ["1", "2", "3", "4"]


def loaded(
    tmp_path: Path, items: Sequence[tuple[object, object]], answer_index: AnswerIndex | None = None, **more: object
) -> Dataset:
    """Load items of (answer, choices)."""
    lines = [
        json.dumps({"question": f"Which {index}?", "answer": answer, "choices": choices} | more)
        for index, (answer, choices) in enumerate(items)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    return load_questions(str(tmp_path / "own.jsonl"), answer_index=answer_index)


def letters(dataset: Dataset) -> str:
    return "".join(question.reference for question in dataset.questions)


@pytest.mark.parametrize(
    ("answers", "answer_index", "expected"),
    [
        (["A", "d"], None, "AD"),
        (["(B)", "Ｃ", "【D】", "b.", "C. Rome", "c) rome"], None, "BCDBCC"),
        (["Paris", " rome "], None, "AC"),
        ([0, 1, 3], None, "ABD"),
        (["0", 2.0], None, "AC"),
        ([1, 4, 2], None, "ADB"),
        ([1, 2], 0, "BC"),
        ([1, 2], 1, "AB"),
        (["Paris", "B"], None, "AB"),
    ],
)
def test_what_names_an_option_becomes_its_letter(
    tmp_path: Path, answers: list[object], answer_index: AnswerIndex | None, expected: str
) -> None:
    assert letters(loaded(tmp_path, [(answer, CITIES) for answer in answers], answer_index)) == expected


def test_what_an_index_counts_from_is_told(tmp_path: Path) -> None:
    note = loaded(tmp_path, [(1, CITIES), (0, CITIES)]).note
    assert note is not None and note.startswith("answers name options: 2 by index from 0; what they count from is told")
    assert note.endswith("own.jsonl:2, where the answer is '0'")
    assert loaded(tmp_path, [("A", CITIES)]).note is None


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([("3", NUMBERS), ("5", ["5", "6", "7", "8"])], "CA"),
        ([("A", ["B", "C", "A"]), ("B", CITIES)], "AB"),
        ([("A", ["B", "C", "A"]), ("Rome", CITIES)], "CC"),
        ([("m", ["m", "M", "k"]), ("M", ["m", "M", "k"])], "AB"),
        ([("B", ["same", "same"])], "B"),
        ([("b", {"b": "x", "（a）": "y"}), ("x", {"A": "x", "B": "y"})], "BA"),
    ],
)
def test_the_whole_file_tells_how_an_answer_is_meant(
    tmp_path: Path, items: list[tuple[object, object]], expected: str
) -> None:
    assert letters(loaded(tmp_path, items)) == expected


@pytest.mark.parametrize(
    ("items", "answer_index", "message"),
    [
        ([(1, CITIES)], None, r":1: the answer '1' may mean B \(index from 0\) or A \(index from 1\), and no other"),
        ([(0, CITIES), (4, CITIES)], None, r":2: the answer '4' counts options from 1, but that of .*:1, '0', only fr"),
        ([(5, CITIES)], None, r":1: the answer '5' names no option"),
        ([(0, CITIES)], 1, r":1: the answer '0' names no option"),
        ([(4, CITIES)], 0, r":1: the answer '4' names no option"),
        ([(1, CITIES)], "none", r":1: the answer '1' names no option"),
        ([("A", CITIES), (True, CITIES)], None, r":2: the answer 'True' names no option"),
        ([("A", CITIES), (None, CITIES)], None, r":2: field 'answer' is not a text"),
        ([(["A", "B"], CITIES)], None, r":1: field 'answer' is not a text"),
        ([("AB", CITIES)], None, r":1: the answer 'AB' names no option"),
        ([("E", CITIES)], None, r":1: the answer 'E' names no option"),
        ([("Madrid", CITIES)], None, r":1: the answer 'Madrid' names no option"),
        ([("", CITIES)], None, r":1: the answer '' names no option"),
        ([("-1", CITIES)], None, r":1: the answer '-1' names no option"),
        ([("same", ["same", "same"])], None, r":1: the answer 'same' is the text of several options"),
        ([("a", ["a", "a", "b"])], None, r":1: the answer 'a' is the text of several options"),
        ([("A", ["B", "C", "A"])], None, r":1: the answer 'A' may mean A \(letter\) or C \(text\)"),
        ([("A", [str(k) for k in range(27)])], None, r":1: 27 choices, and 26 letters to name them"),
        ([("A", {"first": "x", "second": "y"})], None, r":1: 'choices' are not named by letters"),
        ([("A", {"A": "x", "a": "y"})], None, r":1: 'choices' are not named by letters"),
        ([("A", ["x", ["y"]])], None, r":1: 'choices' is not an object of texts"),
    ],
)
def test_what_names_no_option_is_refused_by_its_line(
    tmp_path: Path, items: list[tuple[object, object]], answer_index: AnswerIndex | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        loaded(tmp_path, items, answer_index)
    assert refused.value.help


def test_an_index_outside_the_declared_count_names_the_option_that_declared_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, [(4, CITIES)], 0)
    assert "indices count from 0 here: --answer-index" in str(refused.value.help)


def test_a_missing_answer_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('\n{"question": "Which?", "choices": ["a", "b"]}')
    with pytest.raises(DataError, match=r"own.jsonl:2: missing field 'answer'"):
        load_questions(str(tmp_path / "own.jsonl"))


def test_an_answer_that_is_no_number_is_read_beside_choices_of_none(tmp_path: Path) -> None:
    assert loaded(tmp_path, [("Paris", [])]).questions[0].kind == "exact"
    assert letters(loaded(tmp_path, [("Rome", CITIES)], kind="exact")) == "C"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": "none", "kind": "gsm8k"}', "the answer 'none' holds no number"),
        ('{"question": "q", "answer": "E", "kind": "ceval"}', "the answer 'E' is none of the letters A, B, C, D"),
        ('{"question": "q", "answer": "", "kind": "exact"}', "the answer '' is empty"),
        ('{"question": "q", "answer": "。", "kind": "exact"}', "the answer '。' holds nothing to compare"),
        ('{"question": "q", "answer": "$$", "kind": "mathematics"}', "the answer '\\$\\$' is nothing that can"),
        ('{"question": "q", "answer": "\\\\boxed{}", "kind": "mathematics"}', "is nothing that can be compared"),
        ('{"question": "q", "answer": NaN}', "not JSON: NaN is no number"),
        ('{"question": "q", "answer": -Infinity}', "not JSON: -Infinity is no number"),
        ('{"question": "q", "answer": 1e999}', "field 'answer' is too large a number"),
        ('{"question": "q", "answer": "nan"}', "the answer is 'nan'"),
        ('{"question": "q", "answer": "-inf"}', "the answer is '-inf'"),
        ('{"question": "q", "answer": "None"}', "the answer is 'None'"),
        ('{"question": "q", "answer": "inf", "kind": "mathematics"}', "'inf' is no number that a model would write"),
        ('{"question": "q", "answer": "inf", "kind": "gsm8k"}', "the answer 'inf' holds no number"),
        ('{"question": "q", "answer": true, "kind": "gsm8k"}', "the answer 'True' holds no number"),
        ('{"question": "q", "answer": "3 or 4", "kind": "gsm8k"}', "the answer '3 or 4' holds several numbers"),
        ('{"question": "q", "answer": "answer is 24"}', "the answer 'answer is 24' is a sentence"),
        ('{"question": "q", "answer": "answer is 24", "kind": "exact"}', "the answer 'answer is 24' is a sentence"),
        ('{"question": "q", "answer": "Answer: Rome"}', "is not what is read in an answer of these very words"),
        ('{"question": "q", "answer": "答案是24"}', "the answer '答案是24' is a sentence"),
        ('{"question": "q", "answer": "about 24 apples", "kind": "mathematics"}', "is a sentence"),
        ('{"question": "q", "answer": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        ('{"question": "q", "answer": "3", "choices": ["a", "b"], "kind": "gsm8k"}', "kind 'gsm8k' with choices"),
    ],
)
def test_a_reference_that_no_judge_could_read_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "q", "answer": "7"}\n' + line)
    with pytest.raises(DataError, match=rf"own.jsonl:2: .*{message}") as refused:
        load_questions(str(tmp_path / "own.jsonl"))
    assert refused.value.help


@pytest.mark.parametrize(
    ("answer", "kind", "outputs"),
    [
        (True, None, ["Yes.", "The statement is true."]),
        ("no", None, ["No.", "That is false."]),
        ("answer is 24", "gsm8k", ["24", "It is 24."]),
        ("\\infty", "mathematics", ["$\\infty$"]),
        ("September 21", None, ["September 21"]),
    ],
)
def test_a_reference_that_is_taken_is_met_by_what_models_write(
    tmp_path: Path, answer: object, kind: str | None, outputs: list[str]
) -> None:
    item = {"question": "q", "answer": answer} | ({"kind": kind} if kind else {})
    (tmp_path / "own.jsonl").write_text(json.dumps(item))
    (question,) = load_questions(str(tmp_path / "own.jsonl")).questions
    assert all(judge(question.kind, output, question.reference).correct for output in outputs)


def test_own_data_say_which_judge_reads_answers_that_name_none(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"

    def note(*answers: object, **more: object) -> str | None:
        path.write_text("\n".join(json.dumps({"question": "q", "answer": answer} | more) for answer in answers))
        return load_questions(str(path)).note

    assert note("7", "8") == 'answers are judged 2 by gsm8k: numbers, as they look; "kind" in the items says otherwise'
    told = note("7", "Paris", "x**2", "Rome") or ""
    assert "1 by gsm8k: numbers, 2 by exact: these words and no others, 1 by mathematics: values" in told
    assert f"the first is that of {path}:2, 'Paris'" in told
    assert note("Paris", kind="exact") is None and note("A", choices=["a", "b"]) is None


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("gsm8k", "test.jsonl", '{"question": "q", "answer": "so #### "}', ":1: the answer '' is empty"),
        ("gsm8k", "test.jsonl", '{"question": "q", "answer": "so #### ten"}', ":1: the answer 'ten' holds no number"),
        ("mathematics", "algebra.txt", "What?\n$$\n", ":2: the answer '\\$\\$' is nothing that can be compared"),
        ("mathematics", "a.json", '[{"problem": "q", "answer": ""}]', ":1: the answer '' is empty"),
        ("ceval", "law_val.csv", "id,question,A,B,C,D,answer\n1,q,a,b,c,d,E\n", ":2: the answer is 'E', not one of"),
    ],
)
def test_built_in_forms_refuse_them_too(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=file + message):
        load_questions(name, data={name: tmp_path / file})


def test_letters_of_the_exam_are_letters_whatever_its_options_say(tmp_path: Path) -> None:
    (tmp_path / "law_val.csv").write_text("id,question,A,B,C,D,answer\n1,q,D,C,B,A,A\n")
    assert load_questions("ceval", data={"ceval": tmp_path / "law_val.csv"}).questions[0].reference == "A"
