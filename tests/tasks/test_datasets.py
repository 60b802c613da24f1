"""Published data sets: every layout that they come in, read from local files, and what is wrong told by its line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from flowinfer.errors import DataError, UsageError
from flowinfer.language.check import check
from flowinfer.results import Question
from flowinfer.runs.ask import ask, ask_all
from flowinfer.runs.store import info, read_records
from flowinfer.tasks.base import Dataset, load_for, load_questions, question_text
from flowinfer.tasks.declared import declarations
from tests.command import flowinfer

MMLU = {"question": "What is 2 + 2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1}
ARC = {"id": "Mercury_1", "question": "What melts ice?", "choices": {"text": ["cold", "heat", "wind"]}}
OLD_ARC = {
    "id": "Mercury_1",
    "question": {
        "stem": "What melts ice?",
        "choices": [{"text": "cold", "label": "1"}, {"text": "heat", "label": "2"}, {"text": "wind", "label": "3"}],
    },
}
GAOKAO = {
    "keywords": "2010-2022_Math_I_MCQs",
    "example": [
        {"question": "1. 集合 {1}∩{2}=\nA. ∅  B. {1}\nC. {2} D. {1,2}\n", "standard_answer": ["A"]},
        {"question": "2. 下列五项中最大的是\nA．1 B．2 C．3 D．4 E．5", "answer": ["E"]},
        {"question": "3. 多选题 A. 1 B. 2 C. 3", "answer": ["AB"]},
        {"question": "4. 阅读", "answer": ["A", "B"]},
        {"question": "5. 三角形A、B、C中\nA．点A、B B．点C", "answer": ["B"]},
        {"question": "6. 图中", "answer": ["F"]},
    ],
}
AGIEVAL = {"passage": None, "question": "谁？", "options": ["(A)甲", "(B)乙", "(C)丙"], "label": "C"}
CMMLU = ",Question,A,B,C,D,Answer\n0,水的化学式是,CO2,H2O,O2,NaCl,B\n"
CEVAL = "id,question,A,B,C,D,E,answer\n0,哪个最大,1,2,3,4,5,E\n1,哪个最小,1,2,3,4,,A\n"
AIME = {"ID": "2024-I-1", "Problem": "Find m+n.", "Solution": "...", "Answer": "073"}
MATH = {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "level": "Level 1", "type": "Algebra"}


def loaded(name: str, path: Path, content: object, **more: object) -> Dataset:
    """Load a data set of one file, written in the form that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)
    return load_questions(name, data={name: path}, **more)  # type: ignore[arg-type]


def write(path: Path, content: object) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif isinstance(content, str):
        path.write_text(content, "utf-8")
    elif path.suffix == ".jsonl":
        assert isinstance(content, Sequence)
        path.write_text("\n".join(json.dumps(row) for row in content), "utf-8")
    else:
        path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    ("name", "file", "content", "expected"),
    [
        ("mmlu", "test.jsonl", [MMLU], ("abstract_algebra/0", "B", {"A": "3", "B": "4", "C": "5", "D": "6"})),
        ("mmlu", "test.parquet", [MMLU], ("abstract_algebra/0", "B", {"A": "3", "B": "4", "C": "5", "D": "6"})),
        ("mmlu", "abstract_algebra_test.csv", "q,3,4,5,6,B\n", ("abstract_algebra/0", "B", {"D": "6"})),
        ("arc-easy", "x.parquet", [ARC | {"answerKey": "B"}], ("Mercury_1", "B", {"B": "heat"})),
        (
            "arc-easy",
            "ARC-Easy-Test.jsonl",
            [ARC | {"choices": {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]}, "answerKey": "4"}],
            ("Mercury_1", "D", {"D": "d"}),
        ),
        (
            "arc-challenge",
            "ARC-Challenge-Test.jsonl",
            [OLD_ARC | {"answerKey": "2"}],
            ("Mercury_1", "B", {"C": "wind"}),
        ),
        ("gaokao", "2010-2022_Math_I_MCQs.json", GAOKAO, ("2010-2022_Math_I_MCQs/0", "A", {"A": "∅", "D": "{1,2}"})),
        ("gaokao", "gaokao-chinese.jsonl", [AGIEVAL], ("gaokao-chinese/0", "C", {"A": "甲", "C": "丙"})),
        ("cmmlu", "high_school_chemistry.csv", CMMLU, ("high_school_chemistry/0", "B", {"B": "H2O"})),
        ("ceval", "law_val.csv", CEVAL, ("law/0", "E", {"D": "4", "E": "5"})),
        ("aime24", "aime_2024_problems.parquet", [AIME], ("2024-I-1", "73", {})),
        ("aime25", "aime2025-I.jsonl", [{"question": "q", "answer": 7}], ("0", "7", {})),
        ("math500", "test.jsonl", [MATH | {"answer": "2", "unique_id": "t/1"}], ("t/1", "2", {})),
        ("mathematics", "1.json", MATH, ("0", "2", {})),
        ("gsm8k", "test.parquet", [{"question": "q", "answer": "1+1\n#### 2"}], ("0", "2", {})),
    ],
)
def test_every_published_layout_is_read(
    tmp_path: Path, name: str, file: str, content: object, expected: tuple[str, str, Mapping[str, str]]
) -> None:
    question = loaded(name, tmp_path / file, content).questions[0]
    identifier, reference, choices = expected
    assert (question.id, question.reference) == (identifier, reference)
    assert choices.items() <= question.choices.items() and bool(choices) == bool(question.choices)


def test_an_empty_option_at_the_end_is_none(tmp_path: Path) -> None:
    first, second = loaded("ceval", tmp_path / "law_val.csv", CEVAL).questions
    assert "".join(first.choices) == "ABCDE" and "".join(second.choices) == "ABCD"


def test_items_with_several_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    found = loaded("gaokao", tmp_path / "2010-2022_Math_I_MCQs.json", GAOKAO)
    assert [question.reference for question in found.questions] == ["A", "E", "B"]
    assert found.questions[2].choices == {"A": "点A、B", "B": "点C"}
    assert found.note is not None and found.note.startswith("3 of 6 items are left out: ")
    assert found.note.endswith("Math_I_MCQs.json:3 has several answers")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("mmlu", "test.jsonl", [MMLU, MMLU | {"answer": 4}], "test.jsonl:2: the answer is '4', not one of A, B, C, D"),
        ("mmlu", "test.jsonl", [MMLU | {"answer": True}], "test.jsonl:1: the answer is 'True'"),
        ("mmlu", "test.jsonl", [MMLU | {"choices": "['3' '4']"}], "test.jsonl:1: the options are no texts"),
        ("mmlu", "a_test.csv", "q,3,4,5,6,B\nq,3,4,5,B\n", "a_test.csv:2: too few columns"),
        ("arc-easy", "x.parquet", [ARC | {"answerKey": "E"}], "x.parquet:1: the answer is 'E', not one of A, B, C"),
        ("cmmlu", "law.csv", CMMLU + "1,q,a,b,c,d,\n", "law.csv:3: the answer is '', not one of A, B, C, D"),
        ("cmmlu", "law.csv", CMMLU + "1,q,a,b,c,d,e,f\n", "law.csv:3: too many columns"),
        ("cmmlu", "law.csv", ",Frage,A,B,C,D,Answer\n0,q,a,b,c,d,A\n", "law.csv:2: missing field 'Question'"),
        ("ceval", "law_test.csv", "id,question,A,B,C,D\n0,q,a,b,c,d\n", "law_test.csv:2: missing field 'answer'"),
        ("gaokao", "2010.json", {"example": [{"question": "q"}]}, "2010.json:1: missing field 'standard_answer'"),
        ("gaokao", "2010.json", {"example": [7]}, "2010.json:1: item 1 is not an object"),
        ("aime24", "a.jsonl", [AIME, AIME | {"Answer": "1000"}], "a.jsonl:2: the answer is '1000', not an integer"),
        ("aime24", "a.jsonl", [AIME | {"Answer": "7/2"}], "a.jsonl:1: the answer is '7/2', not an integer from 0 to 9"),
        ("math500", "test.jsonl", [{"problem": "", "answer": "1"}], "test.jsonl:1: the question is empty"),
        ("mathematics", "a.json", [{"problem": "q", "solution": "2"}], "a.json:1: no 'answer', and no "),
        ("mmlu", "test.parquet", "no parquet", "test.parquet: not a parquet file"),
        ("gsm8k", "test.jsonl", "\n", "test.jsonl: no questions"),
    ],
)
def test_a_bad_row_is_refused_by_its_file_and_line(
    tmp_path: Path, name: str, file: str, content: object, message: str
) -> None:
    path = tmp_path / file
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    else:
        write(path, content)
    with pytest.raises(DataError) as refused:
        load_questions(name, data={name: path})
    assert message in refused.value.message and refused.value.help


def test_a_folder_gives_the_split_that_is_asked_wherever_it_lies(tmp_path: Path) -> None:
    for part, answer in (("test", "B"), ("dev", "A")):
        for subject in ("law", "anatomy"):
            loaded("cmmlu", tmp_path / "cmmlu" / part / f"{subject}.csv", CMMLU.replace("NaCl,B", f"NaCl,{answer}"))
    found = load_questions("cmmlu", data={"cmmlu": tmp_path / "cmmlu"}).questions
    assert [(question.id, question.reference) for question in found] == [("anatomy/0", "B"), ("law/0", "B")]
    for config in ("ARC-Challenge", "ARC-Easy"):
        for split in ("test", "train"):
            path = tmp_path / "hub" / config / f"{split}-00000-of-00001.parquet"
            loaded("arc-easy", path, [ARC | {"id": f"{config}-{split}", "answerKey": "B"}])
    assert [q.id for q in load_questions("arc-easy", data={"arc-easy": tmp_path / "hub"}).questions] == [
        "ARC-Easy-test"
    ]


def test_a_folder_of_several_forms_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("no data")
    with pytest.raises(DataError, match=r"no gsm8k files \(\*\.jsonl, \*\.parquet\)"):
        load_questions("gsm8k", data={"gsm8k": tmp_path})
    write(tmp_path / "test.jsonl", [{"question": "q", "answer": "#### 2"}])
    write(tmp_path / "test-0.parquet", [{"question": "q", "answer": "#### 2"}])
    with pytest.raises(DataError, match=r"holds \.jsonl and \.parquet files"):
        load_questions("gsm8k", data={"gsm8k": tmp_path})


def test_questions_stand_below_their_set_s_own_header(tmp_path: Path) -> None:
    def first(name: str, file: str, content: object) -> str:
        return question_text(loaded(name, tmp_path / file, content).questions[0]).split("\n")[0]

    assert first("mmlu", "test.jsonl", [MMLU]).endswith("(with answers) about abstract algebra.")
    assert first("cmmlu", "agronomy.csv", CMMLU) == "以下是关于农学的单项选择题，请逐步分析并选出正确答案。"
    assert first("ceval", "law_val.csv", CEVAL) == "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。"
    assert first("arc-easy", "x.parquet", [ARC | {"answerKey": "B"}]) == "What melts ice?"
    assert first("gaokao", "2010年数学.json", GAOKAO) == "1. 集合 {1}∩{2}="
    english = {"id": "1", "question": "Which?", "reference": "A", "kind": "ceval", "choices": {"A": "x"}}
    assert question_text(Question(**english, subject="law")) == "Which?\nA. x"


@pytest.mark.slow
def test_a_repository_of_the_hub_s_layout_is_loaded_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` takes a folder by a repository's name as it takes the repository: the hub itself is not asked."""
    splits = {"test": MMLU, "dev": MMLU | {"question": "What is 1 + 2?", "answer": 0}}
    for split, row in splits.items():
        path = tmp_path / "cais" / "mmlu" / "all" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [row])
    files = "".join(f"  - split: {split}\n    path: all/{split}-*\n" for split in splits)
    card = f"---\nconfigs:\n- config_name: all\n  data_files:\n{files}---\n"
    (tmp_path / "cais" / "mmlu" / "README.md").write_text(card, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (question,) = load_questions("mmlu", few_shot=1).questions
    assert (question.id, question.reference) == ("abstract_algebra/0", "B")
    assert "What is 1 + 2?" in question_text(question)


def test_a_set_that_the_hub_has_not_says_what_to_give() -> None:
    with pytest.raises(DataError, match="'gaokao' is not on the hub") as refused:
        load_questions("gaokao")
    assert "--data gaokao=PATH, GAOKAO-Bench's" in str(refused.value.help)


def test_every_declared_set_is_listed_with_what_it_is(tmp_path: Path) -> None:
    listed = {one["name"]: one for one in json.loads(flowinfer("datasets", "--json", cwd=tmp_path).stdout)}
    for name, declared in declarations().items():
        assert listed[name]["splits"] == declared.splits and listed[name]["licence"] == declared.licence
        assert declared.asks in declared.splits and (declared.examples or declared.asks) in declared.splits
    shown = flowinfer("datasets", cwd=tmp_path).stdout
    assert "asks:  test, one letter, English; splits: test 14,042, dev 285, val 1,531; --few-shot from dev" in shown


GSM8K = [
    {"question": f"{n} + {n}?", "answer": f"{n} and {n} are <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
    for n in range(9)
]


def test_examples_are_the_same_for_all_and_more_hold_the_fewer(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GSM8K)
    asked = [{"question": "How many?", "answer": "#### 7"}, {"question": "Who?", "answer": "#### 8"}]
    two, three = (loaded("gsm8k", tmp_path / "test.jsonl", asked, few_shot=n) for n in (2, 3))
    first, second = (question_text(question) for question in two.questions)
    assert first.removesuffix("How many?") == second.removesuffix("Who?") and first.count("Answer: ") == 2
    assert "<<" not in first and "\n#### " in first and first.endswith("\n\nHow many?")
    assert question_text(three.questions[0]).startswith(first.removesuffix("\nHow many?"))
    assert two.label == "gsm8k 2-shot" and "drawn with seed 0" in str(two.note)
    assert two.questions[0].question == "How many?", "the judge sees the question alone"
    plain = loaded("gsm8k", tmp_path / "test.jsonl", asked)
    assert len({plain.fingerprint, two.fingerprint, three.fingerprint}) == 3
    assert loaded("gsm8k", tmp_path / "test.jsonl", asked, few_shot=2, seed=1).fingerprint != two.fingerprint


def test_examples_of_an_exam_are_the_first_of_the_question_s_subject(tmp_path: Path) -> None:
    header = "id,question,A,B,C,D,answer,explanation\n"
    for subject in ("law", "logic"):
        write(tmp_path / f"{subject}_val.csv", f"id,question,A,B,C,D,answer\n0,{subject}问,a,b,c,d,A\n")
        rows = "".join(f"{n},{subject}例{n},a,b,c,d,{letter},为何\n" for n, letter in enumerate("BC"))
        (tmp_path / "dev").mkdir(exist_ok=True)
        write(tmp_path / "dev" / f"{subject}_dev.csv", header + rows)
    law, logic = load_questions("ceval", data={"ceval": tmp_path}, few_shot=1).questions
    assert question_text(law) == (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n"
        "law例0\nA. a\nB. b\nC. c\nD. d\n答案：B\n\nlaw问\nA. a\nB. b\nC. c\nD. d"
    )
    assert "logic例0" in question_text(logic) and "law" not in question_text(logic)
    with pytest.raises(
        DataError, match="the split 'dev' has 2 examples of '法学' that are not asked themselves, not 3"
    ):
        load_questions("ceval", data={"ceval": tmp_path}, few_shot=3)


def test_own_data_have_their_examples_beside_them(tmp_path: Path) -> None:
    own, dev = tmp_path / "own.jsonl", tmp_path / "own.dev.jsonl"
    write(own, [{"question": "Which?", "choices": ["x", "y"], "answer": "B"}])
    with pytest.raises(UsageError, match="has no examples for --few-shot") as refused:
        load_questions(str(own), few_shot=1)
    assert str(dev) in str(refused.value.help)
    write(dev, [{"question": "Which?", "choices": ["x", "y"], "answer": "B"}, {"question": "C?", "answer": "3"}])
    (question,) = load_questions(str(own), few_shot=1).questions
    assert question_text(question) == "C?\nAnswer: 3\n\nWhich?\nA. x\nB. y", "a question is no example of itself"


def test_a_set_without_examples_says_so_unless_a_file_of_them_is_named(tmp_path: Path) -> None:
    asked = [MATH | {"answer": "2"}]
    with pytest.raises(UsageError, match="'math500' has no split to take examples") as refused:
        loaded("math500", tmp_path / "test.jsonl", asked, few_shot=1)
    assert "--data math500:dev=PATH" in str(refused.value.help)
    write(tmp_path / "more.jsonl", [MATH | {"problem": "What is $3$?", "solution": "It is $\\boxed{3}$."}])
    data = {"math500": tmp_path / "test.jsonl", "math500:dev": tmp_path / "more.jsonl"}
    (question,) = load_questions("math500", data=data, few_shot=1).questions
    assert question_text(question) == "What is $3$?\nAnswer: It is $\\boxed{3}$.\n\nWhat is $1+1$?"
    for number, subject in enumerate(("algebra", "geometry")):
        (tmp_path / "train" / subject).mkdir(parents=True)
        write(tmp_path / "train" / subject / "1.json", MATH | {"problem": f"What is ${number}$?"})
    data |= {"math500:dev": tmp_path / "train"}
    assert question_text(load_questions("math500", data=data, few_shot=2).questions[0]).count("Answer: It is") == 2
    with pytest.raises(UsageError, match=r"'ceval \(lab\)' has no split"):
        load_questions("ceval", use_items=True, few_shot=1)
    with pytest.raises(DataError, match="no files of the split 'train' beside it"):
        loaded("gsm8k", tmp_path / "alone" / "test.jsonl", GSM8K, few_shot=1)


def test_a_prompt_that_shows_examples_has_them_there(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    write(own, [{"question": "Which?", "answer": "7"}])
    write(tmp_path / "own.dev.jsonl", [{"question": "C?", "answer": "3"}])
    shows, plain = (check(f'Qwen[prompt="{text}"]', zoo="toy") for text in ("{examples} | {question}", "{question}"))
    assert [(told.code, told.help) for told in shows.warnings] == [("W0302", "--few-shot N fills it")]
    (question,) = load_for([shows], str(own), few_shot=1).questions
    assert question.columns == {"examples": "C?\nAnswer: 3"} and question_text(question) == "Which?"
    with pytest.raises(DataError, match="have no column 'examples'") as refused:
        load_for([shows], str(own))
    assert "--few-shot N fills it" in str(refused.value.help)
    with pytest.raises(UsageError, match=r"some flows show \{examples\}"):
        load_for([shows, plain], str(own), few_shot=1)


def test_a_run_keeps_its_examples_and_goes_on_with_no_others(tmp_path: Path, toy_zoo: Path) -> None:
    write(tmp_path / "own.jsonl", [{"question": f"Q{n}?", "answer": "7"} for n in range(2)])
    write(tmp_path / "own.dev.jsonl", [{"question": f"E{n}?", "answer": "3"} for n in range(2)])
    asked = ("exec", "-e", "Qwen", "--zoo", "toy", "--set", "max_tokens=1", "--dataset", "own.jsonl", "--quiet")
    done = flowinfer(*asked, "--few-shot", "1", "--limit", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / json.loads(done.stdout)["run"]
    (record,) = read_records(run)
    (prompt,) = record.trace.steps[0].prompts.values()
    assert "?\nAnswer: 3\n\nQ0?" in prompt and info(run).data["dataset_label"] == "own 1-shot"
    assert flowinfer("exec", "--resume", "latest", "--quiet", cwd=tmp_path).returncode == 0
    refused = flowinfer("exec", "--resume", "latest", "--few-shot", "2", "--quiet", cwd=tmp_path)
    assert refused.returncode == 2 and "the questions differ" in refused.stderr
    swept = ("sweep", "--models", "Qwen,Yi", "--strategies", "si", "--datasets", "own.jsonl", "--zoo", "toy")
    assert "questions: own 1-shot 2" in flowinfer(*swept, "--few-shot", "1", "--dry-run", cwd=tmp_path).stdout


def test_questions_without_choices_are_refused_early_where_a_flow_chooses_among_them() -> None:
    flow = check("Yi -> Qwen[by=likelihood]", zoo="lab")
    message = r"no question has choices, and 'Qwen' chooses among them \(by=likelihood\)$"
    with pytest.raises(DataError, match=message):
        load_for([check("Yi", zoo="lab"), flow], "gsm8k", limit=2)
    with pytest.raises(DataError, match=f"a single prompt: {message}"):
        ask(flow, "1 + 1?")
    with pytest.raises(DataError, match=f"a list of prompts: {message}"):
        ask_all(flow, ["1 + 1?"])
    assert load_for([flow], "ceval", limit=1).questions[0].choices
