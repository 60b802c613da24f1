"""How a verdict came about, and what another model says of those of weak rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowinfer.runs.opinion import read
from flowinfer.runs.store import Run, read_records
from tests.backends.test_openai import Stub, said, stub  # noqa: F401  # a fixture
from tests.command import flowinfer
from tests.runs.test_store import new_run, record

ANSWERS = {
    "sure": "First \\boxed{3}.\nNo, wait: \\boxed{7}.",
    "weak": "We add them. It makes 7 apples",
    "wrong": "We add them. It makes 8 apples",
    "none": "I cannot say.",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of four answers whose right one is 7, with verdicts of another version's rules."""
    made: Run = new_run(tmp_path / "runs")
    for name, answer in ANSWERS.items():
        made.append(record(name, answer))
    made.close()
    return made.path


def test_a_stored_answer_is_judged_again_and_tells_how(run: Path) -> None:
    shown = flowinfer("show", str(run), "sure", "--why", cwd=run.parent).stdout
    assert "verdict      right: found '7', by boxed, reference '7'" in shown
    assert "in the run   right: found '7', by anchor; `flowinfer score` writes the new one" in shown
    assert "First \\boxed{3}. ⏎ No, wait: \\boxed{»7«}." in shown
    assert "passed over  boxed '3': another follows" in shown
    whole = json.loads(flowinfer("show", str(run), "sure", "--why", "--json", cwd=run.parent).stdout)
    assert whole["why"]["text"] == "7" and whole["why"]["passed_over"][0]["span"] == [13, 14]
    assert "why none\n  verdict      wrong: no_answer" in flowinfer("show", str(run), "--why", cwd=run.parent).stdout


def test_verdicts_that_change_tell_why(run: Path) -> None:
    before = list(read_records(run))
    done = flowinfer("score", str(run), "--why", "--dry-run", cwd=run.parent).stdout
    assert "why wrong\n  verdict      wrong: found '8'" in done and list(read_records(run)) == before
    plain = json.loads(flowinfer("score", str(run), "--why", "--dry-run", "--json", cwd=run.parent).stdout)
    assert plain["why"]["wrong"]["score"]["extracted"] == "8" and set(plain["why"]) == set(plain["changed"])


def test_a_second_opinion_is_asked_once_about_weak_rules_and_changes_nothing(
    run: Path,
    stub: Stub,  # noqa: F811  # the fixture
) -> None:
    stub.replies = [said("Yes.")]
    (run.parent / "far.toml").write_text(f'[models.Far]\nref = "far"\nbackend = "openai"\nbase_url = "{stub.url}"\n')
    before = (run / "samples.jsonl").read_bytes()
    asked = ("score", str(run), "--second-opinion", "Far", "--zoo", "far.toml")
    cost = flowinfer(*asked, "--dry-run", cwd=run.parent)
    assert "is asked about 3 of 3 answers" in cost.stderr and "3 calls (0 replies are known)" in cost.stderr
    assert "replies of at most 256 tokens" in cost.stderr and not stub.asked
    done = json.loads(flowinfer(*asked, "--why", "--json", cwd=run.parent).stdout)
    assert {one["id"]: one["says"] for one in done["differs"]} == {"wrong": "right", "none": "right"}
    assert {one["why"]["score"]["extracted"] for one in done["differs"]} == {"8", None}
    prompts = [body["messages"][-1]["content"] for body in stub.asked]  # several are asked at once, in no order
    assert len(prompts) == 3 and all("Right answer: 7" in prompt for prompt in prompts)
    assert sum(ANSWERS["weak"] in prompt for prompt in prompts) == 1
    again = flowinfer(*asked, "--why", cwd=run.parent)
    assert "0 calls (3 replies are known)" in again.stderr and len(stub.asked) == 3
    assert "Far differs on 2 of 3 answers; no verdict was changed\n" in again.stdout
    assert "why wrong\n  verdict      wrong: found '8'" in again.stdout and "why weak" not in again.stdout
    assert (run / "samples.jsonl").read_bytes() == before


def test_where_every_answer_is_marked_nothing_is_asked(tmp_path: Path) -> None:
    made = new_run(tmp_path)
    made.append(record("sure", ANSWERS["sure"]))
    made.close()
    done = flowinfer("score", str(made.path), "--second-opinion", "Qwen", "--zoo", "lab", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "nothing to ask: every answer is marked as one, cut off or empty\n")
    refused = flowinfer("score", str(made.path), "--second-opinion", "Qwem", "--zoo", "lab", cwd=tmp_path)
    assert refused.returncode == 1 and "did you mean 'Qwen'?" in refused.stderr
    assert flowinfer("score", str(made.path), "--zoo", "lab", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("Yes.", "right"),
        ("**No**, they end with 8.", "wrong"),
        ("The answer is correct.", "right"),
        ("It is not correct: no.", "neither"),
        ("不是", "wrong"),
        ("是的，正确", "right"),
        ("Incorrect", "wrong"),
        ("", "neither"),
        ("7", "neither"),
    ],
)
def test_a_reply_is_read_by_its_first_word_or_the_only_one(reply: str, says: str) -> None:
    assert read(reply) == says
