"""C-Eval: Chinese four-option questions in 52 subjects. Source: hkust-nlp/ceval, data CC BY-NC-SA 4.0."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks.base import Task, fetch_rows, need, read_jsonl, read_text

LETTERS = ("A", "B", "C", "D")

SUBJECTS: Mapping[str, str] = {
    "computer_network": "计算机网络",
    "operating_system": "操作系统",
    "computer_architecture": "计算机组成",
    "college_programming": "大学编程",
    "college_physics": "大学物理",
    "college_chemistry": "大学化学",
    "advanced_mathematics": "高等数学",
    "probability_and_statistics": "概率统计",
    "discrete_mathematics": "离散数学",
    "electrical_engineer": "注册电气工程师",
    "metrology_engineer": "注册计量师",
    "high_school_mathematics": "高中数学",
    "high_school_physics": "高中物理",
    "high_school_chemistry": "高中化学",
    "high_school_biology": "高中生物",
    "middle_school_mathematics": "初中数学",
    "middle_school_biology": "初中生物",
    "middle_school_physics": "初中物理",
    "middle_school_chemistry": "初中化学",
    "veterinary_medicine": "兽医学",
    "college_economics": "大学经济学",
    "business_administration": "工商管理",
    "marxism": "马克思主义基本原理",
    "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论",
    "education_science": "教育学",
    "teacher_qualification": "教师资格",
    "high_school_politics": "高中政治",
    "high_school_geography": "高中地理",
    "middle_school_politics": "初中政治",
    "middle_school_geography": "初中地理",
    "modern_chinese_history": "近代史纲要",
    "ideological_and_moral_cultivation": "思想道德修养与法律基础",
    "logic": "逻辑学",
    "law": "法学",
    "chinese_language_and_literature": "中国语言文学",
    "art_studies": "艺术学",
    "professional_tour_guide": "导游资格",
    "legal_professional": "法律职业资格",
    "high_school_chinese": "高中语文",
    "high_school_history": "高中历史",
    "middle_school_history": "初中历史",
    "civil_servant": "公务员",
    "sports_science": "体育学",
    "plant_protection": "植物保护",
    "basic_medicine": "基础医学",
    "clinical_medicine": "临床医学",
    "urban_and_rural_planner": "注册城乡规划师",
    "accountant": "注册会计师",
    "fire_engineer": "注册消防工程师",
    "environmental_impact_assessment_engineer": "环境影响评价工程师",
    "tax_accountant": "税务师",
    "physician": "医师资格",
}
"""Subject in file names -> its Chinese name, as the exam's heading says it."""

_NAMES = frozenset(SUBJECTS.values())


def heading(question: Question) -> list[str]:
    """Return the heading of a real C-Eval item, nothing for others."""
    if question.kind != "ceval" or question.subject not in _NAMES:
        return []
    return [f"以下是中国关于{question.subject}考试的单项选择题，请选出其中的正确答案。"]


def read(path: Path) -> list[Question]:
    """Read one csv, a folder of csv files, or a folder with val/ (preferred), test/ or dev/; or a jsonl file."""
    if path.is_file():
        return _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
    for split in ("val", "test", "dev"):
        if any((path / split).glob("*.csv")):
            path = path / split
            break
    files = sorted(path.glob("*.csv"))
    if not files:
        raise DataError(f"{path}: no csv files", help="a C-Eval folder holds val/SUBJECT_val.csv files")
    return [question for file in files for question in _read_csv(file)]


def fetch() -> list[Question]:
    """Download the val split of every subject."""
    questions = []
    for subject in SUBJECTS:
        rows = fetch_rows("ceval/ceval-exam", subject, "val", "ceval")
        questions += [_question(row, subject, f"ceval/ceval-exam {subject}:{index}") for index, row in enumerate(rows)]
    return questions


def _read_csv(path: Path) -> list[Question]:
    subject = path.stem
    for split in ("_val", "_dev", "_test"):
        subject = subject.removesuffix(split)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    questions = []
    for row in reader:
        place = f"{path}:{reader.line_num}"
        if None in row:
            raise DataError(f"{place}: more fields than the heading names", help="quote texts that hold commas")
        questions.append(_question(row, subject, place))
    return questions


def _read_jsonl(path: Path) -> list[Question]:
    from flowinfer.tasks.generic import to_question

    return [to_question(row, index, place, kind="ceval") for index, (place, row) in enumerate(read_jsonl(path))]


def _question(row: Mapping[str, Any], subject: str, place: str) -> Question:
    answer = need(row, "answer", place).strip().upper()
    if answer not in LETTERS:
        raise DataError(f"{place}: the answer must be A, B, C or D, found '{answer}'")
    return Question(
        id=f"{subject}-{need(row, 'id', place)}",
        question=need(row, "question", place),
        reference=answer,
        kind="ceval",
        choices={letter: need(row, letter, place) for letter in LETTERS},
        subject=SUBJECTS.get(subject, subject),
    )


TASK = Task(
    name="ceval",
    title="C-Eval",
    forms="a folder with val/*.csv, a csv file (id,question,A,B,C,D,answer), or a jsonl with question, choices, answer",
    hub_id="ceval/ceval-exam",
    licence="CC BY-NC-SA 4.0",
    read=read,
    fetch=fetch,
)
