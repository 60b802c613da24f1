"""Run folders, the cache of steps, and resuming."""

from __future__ import annotations

import json
import resource
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flowinfer.errors import DataError, RunError, UsageError
from flowinfer.language.check import check
from flowinfer.planning.plan import Plan, compile, members
from flowinfer.results import Question, Record, Score, StepResult, Trace
from flowinfer.runs.cache import DiskStepCache, _content, member_order, step_key
from flowinfer.runs.finding import find_run, list_runs
from flowinfer.runs.store import Run, read_records
from flowinfer.runs.summary import summarize_run
from tests.ggufs import META, ollama, split, write
from tests.zoos import NAMES

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SETTINGS = {
    "flow": "f",
    "zoo": "z",
    "dataset": "d",
    "dataset_label": "d",
    "batch": "1",
    "n": 3,
    "data_fingerprint": "f",
    "plan_fingerprint": "",
}


def plan(text: str = "Qwen -> Ds") -> Plan:
    return compile(check(text, zoo=NAMES))


def record(name: str, answer: str = "line\u2028two\n", *, is_correct: bool = True) -> Record:
    step = StepResult(
        step="s1", text=answer, passed_on=answer, prompts={"n1": "p"}, tokens=3, finish_reason="eos", seconds=0.5
    )
    trace = Trace(question_id=name, answer=answer, finish_reason="eos", seconds=0.5, steps=(step,))
    score = Score(correct=is_correct, extracted="7", status="ok", rule="anchor", span=(0, 1))
    return Record(question=Question(id=name, question="q", reference="7", kind="gsm8k"), trace=trace, score=score)


def new_run(root: Path) -> Run:
    from flowinfer.planning.plain import fingerprint

    settings = SETTINGS | {"plan_fingerprint": fingerprint(plan())}
    return Run.create(root, check("Qwen -> Ds", zoo=NAMES), plan(), settings, NOW)


def test_a_run_folder_is_named_by_time_flow_and_plan(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.close()
    assert run.path.name.startswith("20260102T030405Z-flow-") and len(run.path.name) == 30
    assert {path.name for path in run.path.iterdir()} >= {"pipeline.flow", "plan.json", "run.json"}


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    first, second = new_run(tmp_path), new_run(tmp_path)
    assert first.path != second.path
    first.close()
    second.close()


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    written = [record("a"), record("b", "\ud800 lone surrogate")]
    for one in written:
        run.append(one)
    run.close()
    assert list(read_records(run.path)) == written


def test_rows_carry_lm_evals_field_names(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.append(record("a"))
    run.close()
    row = json.loads((run.path / "samples.jsonl").read_text("utf-8"))
    assert (row["doc_id"], row["target"], row["filtered_resps"], row["acc"]) == ("a", "7", ["7"], 1.0)


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_cut_and_the_rest_kept(tmp_path: Path, cut: int) -> None:
    run = new_run(tmp_path)
    run.append(record("a"))
    run.append(record("b"))
    run.close()
    log = run.path / "samples.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    again = Run(run.path)
    assert [r.question.id for r in again.records()] == ["a"]
    again.append(record("b"))
    again.close()
    assert [r.question.id for r in read_records(run.path)] == ["a", "b"]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for name in "abc":
        run.append(record(name))
    run.close()
    log = run.path / "samples.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], b"{damaged", lines[2], b""]))
    with pytest.raises(DataError, match=r"samples.jsonl:2: damaged record"):
        list(read_records(run.path))


def test_a_question_that_ran_again_counts_with_its_last_answer(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for one in (record("a", "first"), record("b"), record("a", "second")):
        run.append(one)
    run.close()
    assert [(r.question.id, r.trace.answer) for r in read_records(run.path)] == [
        ("b", record("b").trace.answer),
        ("a", "second"),
    ]


@pytest.mark.parametrize("name", ["results.json", "plan.json", "run.json"])
@pytest.mark.parametrize("damage", ["{", "[]", None])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, damage: str | None) -> None:
    run = new_run(tmp_path)
    run.finish({"wall_seconds": 1.0})
    run.close()
    if damage is None:
        (run.path / name).unlink()
    else:
        (run.path / name).write_text(damage, encoding="utf-8")
    if name == "results.json" and damage is None:
        return  # an interrupted run has none
    with pytest.raises(DataError, match=name):
        summarize_run(run.path, [])


def test_a_full_disk_is_told_and_keeps_what_was_answered(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk that is full."""
    run = new_run(tmp_path)
    run.append(record("a"))
    size = (run.path / "samples.jsonl").stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(RunError, match="cannot write to run") as caught:
            run.append(record("b"))
        run.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "--resume" in str(caught.value.help)
    again = Run(run.path)
    again.append(record("c"))
    again.close()
    assert [r.question.id for r in read_records(run.path)] == ["a", "c"]


def test_a_run_that_is_being_written_cannot_be_opened_again(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(UsageError, match="being written by another process"):
        Run(run.path)
    run.close()
    Run(run.path).close()


@pytest.mark.parametrize(
    ("flow", "data", "what"), [("Ds -> Qwen", "f", "the plan"), ("Qwen -> Ds", "other", "the questions")]
)
def test_another_plan_or_other_questions_are_not_resumed(tmp_path: Path, flow: str, data: str, what: str) -> None:
    run = new_run(tmp_path)
    run.close()
    with pytest.raises(UsageError, match=f"cannot resume .* {what}"):
        Run.reopen(run.path, plan(flow), SETTINGS | {"data_fingerprint": data, "plan_fingerprint": _fp(flow)})


def _fp(flow: str) -> str:
    from flowinfer.planning.plain import fingerprint

    return fingerprint(plan(flow))


def test_runs_are_found_by_beginning_and_latest(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.close()
    for named in ("latest", run.path.name, run.path.name[:12], str(run.path)):
        assert find_run(named, tmp_path) == run.path
    assert [found.name for found in list_runs(tmp_path)] == [run.path.name]
    with pytest.raises(UsageError, match="no run 'zzz'"):
        find_run("zzz", tmp_path)


def test_a_run_is_proposed_where_its_name_is_near_and_not_where_only_a_date_is(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.close()
    date, flow, digest = run.path.name.split("-")
    meant = (flow, digest, f"{date}-{flow}x", run.path.name.replace("T", "t"), f"{run.path.name[:-1]}_")
    other = (f"{date}-other-00112233", "20250102T030405Z-pi-0a1b2c3d", "x", "zzz")
    for names, is_near in ((meant, True), (other, False)):
        for named in names:
            with pytest.raises(UsageError) as caught:
                find_run(named, tmp_path)
            assert (caught.value.help == f"did you mean '{run.path.name}'?") is is_near


def test_a_beginning_that_means_two_runs_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        new_run(tmp_path).close()
    with pytest.raises(UsageError, match="means 2 runs"):
        find_run("2026", tmp_path)


def result(text: str = "t") -> StepResult:
    return StepResult(step="s1", text=text, passed_on=text, prompts={}, tokens=1, finish_reason="eos", seconds=1.0)


def test_the_cache_marks_results_of_other_runs_and_not_ones_own(tmp_path: Path) -> None:
    DiskStepCache(tmp_path, "one").put("k" * 64, result())
    mine, other = DiskStepCache(tmp_path, "one").get("k" * 64), DiskStepCache(tmp_path, "two").get("k" * 64)
    assert mine and mine.cached_from is None
    assert other and other.cached_from == "one" and other.seconds == 1.0


def test_a_torn_entry_of_the_cache_is_as_if_absent(tmp_path: Path) -> None:
    cache = DiskStepCache(tmp_path, "one")
    cache.put("k" * 64, result())
    (entry,) = tmp_path.rglob("*.json")
    entry.write_text(entry.read_text()[:40])
    assert cache.get("k" * 64) is None


def key(text: str, prompt: str = "p", question_id: str = "q") -> str:
    made = plan(text)
    step = made.steps[0]
    return step_key(made, step, {member.node: prompt for member in members(step.source)}, question_id)


def test_the_key_of_a_step_ignores_names_of_flows_and_questions() -> None:
    assert key("Qwen -> Ds") == key("Qwen", question_id="other")


@pytest.mark.parametrize(
    "other",
    ["Ds", "Qwen[max_tokens=3]", "(Qwen | Ds)", "Qwen[stop='x']", "Qwen[temperature=1]", 'model Qwen="z"\nQwen'],
)
def test_the_key_of_a_step_sees_all_that_decides_its_text(other: str) -> None:
    assert key(other) != key("Qwen")


def test_weights_and_fusers_are_in_the_key() -> None:
    keys = {key(f"(Qwen{a} | Ds{b}){c}") for a, b, c in (("", "", ""), (":1", ":3", ""), ("", "", "[fuse=vote]"))}
    assert len(keys) == 3


def test_a_sampled_step_is_keyed_by_its_question_too() -> None:
    assert key("Qwen[temperature=1]", question_id="a") != key("Qwen[temperature=1]", question_id="b")
    assert key("Qwen[temperature=1]", prompt="x") != key("Qwen[temperature=1]", prompt="y")


def test_permuted_groups_share_their_cached_steps() -> None:
    def keyed(text: str, prompts: dict[str, str]) -> tuple[str, list[str]]:
        made = compile(check(text, zoo=NAMES))
        (step,) = made.steps
        by_node = {member.node: prompts[member.model] for member in members(step.source)}
        names = {member.node: member.model for member in members(step.source)}
        return step_key(made, step, by_node, "q"), [names[node] for node in member_order(made, step, by_node)]

    said = {"Qwen": "a", "Ds": "b", "Yi": "c"}
    assert keyed("(Qwen | Ds | Yi)", said) == keyed("(Yi | Qwen | Ds)", said)
    assert keyed("(Qwen | (Ds | Yi))", said) == keyed("((Yi | Ds) | Qwen)", said)
    assert keyed("(Qwen | (Ds | Yi))", said)[0] != keyed("(Ds | (Qwen | Yi))", said)[0]
    assert keyed("(Qwen:2 | Ds:1)", said)[0] != keyed("(Qwen:1 | Ds:2)", said)[0]
    assert keyed("(Qwen | Ds)", said)[0] != keyed("(Qwen | Ds)", {"Qwen": "b", "Ds": "a"})[0]


def test_the_key_of_a_step_is_by_the_weights_of_a_gguf_file_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keyed(ref: object, options: str = "") -> str:
        return key(f'model M = "{ref}" {{ backend=gguf{options} }}\nM')

    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    blob = ollama(tmp_path / "ollama")
    assert keyed("ollama:tiny") == keyed(blob) == keyed(blob, ", threads=3, mmap=false")
    assert keyed(blob) != keyed(write(tmp_path / "m.gguf", {**META, "general.name": "other"}))
    assert keyed(blob) != keyed(blob, ", kv_type=q8_0")
    first, second = split(tmp_path / "big.gguf")
    before = keyed(first)
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    _content.cache_clear()
    assert keyed(first) != before
    assert keyed("hf:not/here/m.gguf")
