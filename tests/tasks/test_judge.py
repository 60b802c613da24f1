"""Scoring: a table of hard cases, published labels, and references against themselves."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowinfer.errors import UsageError
from flowinfer.spec import THOUGHTS, Thought
from flowinfer.tasks.answers import explain, extract, judge, vote
from tests.conftest import shared_path

TABLES = ("cases", "hard_cases", "phrasings", "blind_cases", "kinds", "hostile", "formats", "fresh")

all_or_some = pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
"""All of a record where slow tests run, else every fifth."""


@pytest.mark.parametrize("table", TABLES)
def test_hard_cases_are_judged_as_a_person_would(table: str) -> None:
    lines = (Path(__file__).parent / f"{table}.jsonl").read_text("utf-8").splitlines()
    assert _misjudged([json.loads(line) for line in lines]) == ([], [])


@all_or_some
def test_published_labels_of_gsm8k_outputs_are_reproduced(every: int) -> None:
    lines = shared_path("data", "gsm8k", "example_model_solutions_first600.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    cases = [
        {"task": "gsm8k", "output": made["solution"], "reference": row["ground_truth"], "correct": made["is_correct"]}
        for row in rows
        for made in row.values()
        if isinstance(made, dict)
    ]
    assert len(cases) == 2400 and _misjudged(cases[::every]) == ([], [])


@all_or_some
def test_published_scores_of_math_outputs_are_reproduced(every: int) -> None:
    lines = shared_path("data", "math500", "qwen25math_outputs_first50.jsonl").read_text("utf-8").splitlines()
    cases = [
        {"task": "mathematics", "output": output, "reference": row["gt"], "question": row["question"], "correct": score}
        for row in map(json.loads, lines)
        for output, score in zip(row["code"], row["score"], strict=True)
    ]
    assert len(cases) == 400 and _misjudged(cases[::every]) == ([], [])


@all_or_some
def test_outputs_of_real_models_are_judged_as_their_publishers_did(every: int) -> None:
    with gzip.open(shared_path("data", "outputs", "given.jsonl.gz"), "rt", encoding="utf-8") as file:
        accepted, rejected = _misjudged([json.loads(line) for line in file][::every])
    # an answer in two parts, v = 1 and f = 9, of which the first is asked for: its publisher calls it wrong
    assert {case["question"][-6:] for case in accepted} <= {"for v."} and not rejected


def test_written_cases_are_judged_as_their_writers_would() -> None:
    lines = shared_path("data", "outputs", "cases_given.jsonl").read_text("utf-8").splitlines()
    assert _misjudged([json.loads(line) for line in lines]) == ([], [])


def _misjudged(cases: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """List the cases that were accepted and the ones that were rejected wrongly."""
    wrong: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for case in cases:
        more = {"question": case.get("question"), "choices": case.get("choices")}
        score = judge(case["task"], case["output"], case["reference"], **more)
        if score.correct != (case["correct"] if "correct" in case else case["expected_correct"]):
            wrong[not score.correct].append({**case, "score": score})
    return wrong


def test_a_text_without_tokens_left_answers_only_where_it_marked_an_answer() -> None:
    unmarked = judge("gsm8k", "So 5 + 3 = 8", "8", finish_reason="length")
    assert (unmarked.status, unmarked.rule) == ("truncated", "finish_reason")
    assert judge("gsm8k", "So 5 + 3 = 8", "8", finish_reason="stop").correct
    assert judge("gsm8k", "The answer is 8. To check, 8", "8", finish_reason="length").correct
    assert judge("gsm8k", "8\n\nQuestion: What is 2 + 2?\nIt is", "8", finish_reason="length").correct


@pytest.mark.parametrize(
    ("shown", "gold"),
    [
        ("(a+b+c+d+e+f+g+h+j+k+l+m+n+o+p+q)^{12}", "(2q+a+b+c+d+e+f+g+h+j+k+l+m+n+o+p)^{12}"),
        ("((x+y)^{200}+1)^{100}", "((x+y)^{200}+2)^{100}"),
        ("9^{9^{9}}", "1"),
        ("30!^{30!}", "1"),
        ("((((x+1)^{99})^{99})^{99})", "x"),
        ("\\exp(999999)", "\\exp(999998)"),
    ],
)
def test_expressions_that_would_grow_without_end_are_compared(shown: str, gold: str) -> None:
    assert not judge("mathematics", f"\\boxed{{{shown}}}", gold).correct


@all_or_some
def test_math_references_are_right_by_their_own_solutions(every: int) -> None:
    items = json.loads(shared_path("data", "math500", "math500_first250.json").read_text("utf-8"))[::every]
    for form in ("{solution}", "The answer is ${answer}$."):
        wrong = [
            item["answer"]
            for item in items
            if not judge("mathematics", form.format(**item), item["answer"], question=item["problem"]).correct
        ]
        assert not wrong


FORMS = ("{}", "Answer: {}", "The answer is {}.", "so\n\\boxed{{{}}}")


@all_or_some
def test_deepmind_answers_are_right_in_every_phrasing(every: int) -> None:
    """Where not all are judged, each question is in one of the phrasings in turn."""
    for path in sorted(shared_path("data", "mathematics", "interpolate").glob("*.txt")):
        lines = path.read_text("utf-8").split("\n")
        for index, (question, answer) in enumerate(zip(lines[::2], lines[1::2], strict=False)):
            for form in FORMS if every == 1 else FORMS[index % 4 : index % 4 + 1]:
                assert judge("mathematics", form.format(answer), answer, question=question).correct, (path.name, answer)


@all_or_some
def test_answers_of_another_question_of_a_module_are_wrong(every: int) -> None:
    """A judge that says yes to everything would pass the test above."""
    accepted = total = 0
    for path in sorted(shared_path("data", "mathematics", "interpolate").glob("*.txt")):
        answers = [answer for answer in path.read_text("utf-8").split("\n")[1::2] if answer]
        for one, other in list(pairwise(answers))[::every]:
            if one != other:
                total += 1
                accepted += judge("mathematics", f"Answer: {other}", one).correct
    assert total > 1500 / every and accepted <= 3


PIECES = [
    *"{}()[]^_=<≤±%$!,;/-3x三?&BA是选",
    *(
        r"\boxed{",
        r"\frac{",
        r"\log_",
        r"\sqrt[",
        r"\binom{",
        r"\choose ",
        "C_5^2",
        "2.5",
        "oo",
        "答案",
        "the answer is ",
    ),
    *("not ", "so ", "or ", r"\begin{pmatrix}", r"\end{pmatrix}", "\\\\", "12:30", "half", ". "),
]


@given(
    task=st.sampled_from(["gsm8k", "ceval", "mathematics", "exact"]),
    output=st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
    reference=st.text(min_size=1, max_size=20) | st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
)
def test_judging_never_raises(task: str, output: str, reference: str) -> None:
    judge(task, output, reference)


@pytest.mark.parametrize("task", ["gsm8k", "ceval", "mathematics"])
@pytest.mark.parametrize(
    "output",
    [
        "(" * 5000,
        "\\boxed{" * 3000,
        "9" * 100_000,
        "A" * 100_000,
        "1," * 50_000,
        "\x00" * 1000,
        "=" * 50_000,
        "x^" * 9000,
        " " * 60_000,
        " \n" * 30_000,
        "#### " * 12_000,
        "(1,2) " * 10_000,
        "x < 1 " * 10_000,
    ],
    ids=[
        *("brackets", "boxes", "digits", "letters", "commas", "nulls", "equals", "powers"),
        *("blanks", "lines", "anchors", "pairs", "inequalities"),
    ],
)
def test_adversarial_outputs_are_judged(task: str, output: str) -> None:
    assert not judge(task, output, "7" if task != "ceval" else "B").correct


@pytest.mark.parametrize(
    ("task", "piece"),
    [
        ("gsm8k", "So it is 3 + 4 = 7, or B. "),
        ("ceval", "因此选B，不选C；共7元。"),
        ("mathematics", "\\\\boxed{7} and x < 7, "),
        ("gsm8k", "#### 7\n"),
    ],
)
def test_a_megabyte_is_judged_by_its_end(task: str, piece: str) -> None:
    before = piece * (1_000_000 // len(piece))
    assert judge(task, f"{before}\n\nThe answer is (B) 8.", "B" if task == "ceval" else "8").status == "ok"


@pytest.mark.parametrize(
    ("arguments", "choices", "told"),
    [
        (("gsm9k", "5", "5"), None, "unknown task 'gsm9k'"),
        (("gsm8k", "5", 5), None, "5 is no text"),
        (("gsm8k", None, "5"), None, "None is no text"),
        (("ceval", "B", "B"), ["Rome", "Bonn"], "choices do not go by capital letters"),
        (("ceval", "B", "B"), {"a": "Rome", "b": "Bonn"}, "choices do not go by capital letters"),
    ],
)
def test_what_cannot_be_judged_is_refused(arguments: tuple[Any, ...], choices: Any, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        judge(*arguments, choices=choices)
    assert refused.value.message == told


def test_thinking_that_is_longer_than_what_is_judged_stays_thinking() -> None:
    assert judge("gsm8k", "<think>" + "so the answer is 7. " * 3000, "7").status == "truncated"


@pytest.mark.parametrize("thought", THOUGHTS, ids=lambda thought: thought.opens)
def test_a_kept_thought_is_not_judged_whatever_its_marks(thought: Thought) -> None:
    """`think = keep` leaves it in the record, and `score` reads the record."""
    assert judge("gsm8k", f"{thought.opens}So it is 7.{thought.closes}The answer is 8.", "8").correct
    assert judge("gsm8k", f"So it is 7.{thought.closes}\nIt is 8.", "8").correct
    assert judge("gsm8k", f"{thought.opens}The answer is 7.", "7").status == "truncated"


def test_the_span_points_at_the_answer() -> None:
    output = "Ｆirst １２. The answer is 42."
    score = judge("gsm8k", output, "42")
    assert score.span is not None and "42" in output[score.span[0] : score.span[1]]


def test_a_verdict_tells_what_was_passed_over() -> None:
    output = "The answer is not 4. \\boxed{5}? No: \\boxed{6}.\n\nQuestion: What is 1+1?\nThe answer is 2."
    why = explain("gsm8k", output, "6")
    assert (why.score.rule, why.text) == ("boxed", "6")
    told = [(one.rule, one.text, one.reason) for one in why.passed_over]
    assert told[:2] == [("anchor", "not 4", "denied"), ("boxed", "5", "another follows")]
    assert (told[2][0], told[2][2]) == ("run_on", "another question")
    assert all(output[slice(*one.span)].strip() == one.text for one in why.passed_over)


def test_the_majority_wins_and_the_first_breaks_ties() -> None:
    assert str(vote("gsm8k", ["#### 3", "#### 4", "The answer is 4."])) == "2 of 3 votes (3, 4, 4)"
    tied = vote("gsm8k", ["no idea", "#### 3", "#### 4"])
    assert tied.winner == 1 and str(tied) == "tie, 1 of 3 votes: the first of the equals counts (-, 3, 4)"
    none = vote("ceval", ["无法确定", "不知道"])
    assert none.winner == 0 and str(none) == "no member gave an answer, the first one's text counts (-, -)"


@pytest.mark.parametrize(
    ("answers", "is_tie"),
    [
        ((None, None), True),
        (("7", None), False),
        (("7", "8"), True),
        (("7", "8", "8"), False),
        (("7", "8", "9", "7", "8"), True),
        (("7", "8", "9", "7"), False),
        (("7",), False),
    ],
)
def test_a_vote_is_tied_where_no_answer_leads(answers: tuple[str | None, ...], is_tie: bool) -> None:
    ballot = vote("gsm8k", ["no idea" if answer is None else f"#### {answer}" for answer in answers])
    assert (ballot.answers, ballot.is_tie) == (answers, is_tie)


def test_a_vote_reads_answers_as_the_question_asks() -> None:
    """Without the question the first reads as 150 and shares its answer with none."""
    outputs = ["The answer is 150 minutes, or 2.5 hours.", "#### 3", "The answer is 2.5."]
    assert vote("gsm8k", outputs).winner == 0 and extract("gsm8k", outputs[0]).value == "150"
    assert vote("gsm8k", ["#### 3", *outputs[::2]], question="How many hours does it take?").winner == 1
