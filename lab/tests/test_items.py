"""Items: splits that cannot overlap, the same items for the same seed, files that data sets are read from again."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowinfer.errors import UsageError
from flowinfer.tasks.answers import judge
from flowinfer.tasks.base import load_questions, question_text
from lab import files, items
from lab.__main__ import app
from lab.items import KINDS, SPLITS, Kind


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_in_two_splits(kind: Kind) -> None:
    shown = {split: {item.shown for item in items.draw(kind, split, 60, seed=3)} for split in SPLITS}
    assert all(len(texts) == 60 for texts in shown.values())
    assert not shown["train"] & shown["test"] | shown["train"] & shown["dev"] | shown["dev"] & shown["test"]
    assert all(items.split_of(text) == split for split, texts in shown.items() for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_split_is_decided_by_what_a_model_reads(kind: Kind) -> None:
    """The prompt's question text holds the deciding text whole: another heading cannot move an item."""
    for item in items.draw(kind, "test", 20, seed=5):
        assert item.shown in question_text(item.as_question("x"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_items(kind: Kind) -> None:
    assert items.draw(kind, "test", 20, seed=1) == items.draw(kind, "test", 20, seed=1)
    assert items.draw(kind, "test", 20, seed=1) != items.draw(kind, "test", 20, seed=2)
    assert items.draw(kind, "test", 30, seed=1)[:20] == items.draw(kind, "test", 20, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_skill_has_a_name_of_its_own_and_items_use_no_other(kind: Kind) -> None:
    assert len(set(items.skills(kind))) == len(items.skills(kind))
    assert {item.skill for item in items.draw(kind, "train", 300, seed=1)} <= set(items.skills(kind))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gsm8k", "x.jsonl"),
        ("ceval", "x.jsonl"),
        ("ceval", "chemistry_val.csv"),
        ("mathematics", "x.jsonl"),
        ("mathematics", "algebra__mixed.txt"),
    ],
)
def test_files_are_read_again_as_the_same_questions(kind: Kind, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    result = CliRunner().invoke(app, ["make", kind, "--n", "25", "--seed", "9", "-o", str(path)])
    assert result.exit_code == 0
    drawn = items.draw(kind, "test", 25, seed=9)
    read = load_questions(kind, data={kind: path}).questions
    assert [(q.question, q.reference, q.choices) for q in read] == [(i.question, i.reference, i.choices) for i in drawn]


def test_a_form_that_a_kind_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"gsm8k items cannot be written as '\.csv'"):
        list(files.lines("gsm8k", [], "csv"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["riddles"], "unknown kind of items 'riddles'"),
        (["ceval", "--split", "exam"], "unknown split 'exam'"),
        (["ceval", "--n", "0"], "--n must be at least 1"),
        (["ceval", "-o", "no/such/folder/x.jsonl"], "cannot write"),
    ],
)
def test_wrong_requests_say_what_is_wrong(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["make", *arguments])
    assert isinstance(result.exception, UsageError)
    assert said in result.exception.message


def test_without_data_the_lab_zoo_gets_lab_items() -> None:
    loaded = load_questions("ceval", use_items=True)
    assert (loaded.label, len(loaded.questions)) == ("ceval (lab)", 100)
    assert load_questions("ceval", use_items=True, limit=7).questions == loaded.questions[:7]
    assert len(load_questions("ceval", use_items=True, limit=120).questions) == 120


def test_samples_of_the_lab_are_drawn_from_a_thousand_items() -> None:
    one, other = (load_questions("gsm8k", use_items=True, sample=30, seed=seed).questions for seed in (1, 2))
    assert len({q.id for q in one} | {q.id for q in other}) > 45
    assert {q.id for q in one} <= {q.id for q in load_questions("gsm8k", use_items=True, sample=60, seed=1).questions}
    again = load_questions("gsm8k", use_items=True, ids=["s42-3", "s42-1"])
    assert [q.id for q in again.questions] == ["s42-3", "s42-1"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_packages_items_are_the_generators_of_seed_42(kind: Kind) -> None:
    frozen = load_questions(kind, use_items=True, limit=1000).questions
    drawn = items.draw(kind, "test", 1000, 42)
    assert list(frozen) == [item.as_question(f"s42-{index}") for index, item in enumerate(drawn)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_solution_is_judged_right_and_the_wrong_ones_wrong(kind: Kind) -> None:
    for item in items.draw(kind, "test", 60, seed=4):
        verdicts = [
            judge(kind, solution.text, item.reference, question=item.question, choices=item.choices or None).correct
            for solution in (item.right, *item.wrong)
        ]
        assert verdicts == [True, False, False, False], item
