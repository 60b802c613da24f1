"""Data files of every form, mutated: what comes of each is a data set, or a message that says where."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flowinfer.errors import DataError
from flowinfer.tasks.answers import judge
from flowinfer.tasks.base import load_questions
from tests.fuzz.rounds import rounds

CHOICES = ["Paris", "London", "Rome", "Bonn"]
VALUES = (
    *(True, False, None, 0, 1, 4, -1, 2.0, 1e308, 10**40, "", " ", "A", "b", "(C)", "Ｄ", "Paris", "7", "nan", "NaN"),
    *("#### 7", "x^2 + 1", "\\boxed{}", "yes", "\ud800", "\x00", "\u2028", "=1+1", "A" * 300, ["A"], ["A", "B"], {}),
    *({"A": "x"}, {"a": "x", "A": "y"}, {"]": "x", "[": "y"}, CHOICES, CHOICES * 9, [["x"]], [None], "1e999", "1/0"),
)
FIELDS = ("question", "answer", "choices", "kind", "id", "subject", "problem", "solution", "level", "unique_id")
PIECES = (
    *(b"\x00", b"\r\n", b"\xff\xfe", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":' * 50_000),
    *("\u2028".encode(), b'"\\ud800"', b"\n\n", b'"', b"#### "),
)
Mutation = Callable[[bytes, random.Random], bytes]


def items(rng: random.Random) -> list[dict[str, object]]:
    """Make objects, most of them right and some with a field of any value."""
    made: list[dict[str, object]] = []
    for index in range(rng.randint(1, 6)):
        item: dict[str, object] = {"question": f"Which {index}?", "answer": rng.choice(["A", "7", "Rome", 1, "x + 1"])}
        if rng.random() < 0.6:
            item["choices"] = rng.choice([CHOICES, dict(zip("ABCD", CHOICES, strict=True)), ["1", "2", "3", "4"]])
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            item[rng.choice(FIELDS)] = rng.choice(VALUES)
        if rng.random() < 0.1:
            item.pop(rng.choice(list(item)))
        made.append(item)
    return made


def jsonl(rng: random.Random) -> bytes:
    return "\n".join(json.dumps(item) for item in items(rng)).encode()


def array(rng: random.Random) -> bytes:
    made = items(rng)
    for item in made:
        item["problem"] = item.pop("question", "q")
    return json.dumps(made).encode()


def sheet(rng: random.Random) -> bytes:
    rows = [["id", "question", "A", "B", "C", "D", "answer"]]
    rows += [[str(k), "which?", *"abcd", rng.choice("ABCDE")] for k in range(rng.randint(0, 4))]
    for row in rows:
        if rng.random() < 0.2:
            row[rng.randrange(7)] = rng.choice(['"', '"a,b"', "", "\x00", "a\nb", "9" * 200_000])
    return "\n".join(",".join(row) for row in rows).encode()


def module(rng: random.Random) -> bytes:
    answers = (
        "7",
        "-2*d**2 + 3",
        "True",
        "$$",
        "",
        "4, 5",
        "1/0",
        "9" * 5000,
        "((((",
        "\\frac{1}{",
        "3:15 AM",
        "^" * 50,
    )
    return "\n".join(f"What is {k}?\n{rng.choice(answers)}" for k in range(rng.randint(0, 5))).encode()


def exam(rng: random.Random) -> bytes:
    made = items(rng)
    for item in made:
        item["example"] = item["answerKey"] = item["standard_answer"] = item.get("answer")
        if rng.random() < 0.5:
            texts = item.get("choices", VALUES)
            item["choices"] = {"text": texts, "label": rng.choice([["1", "2", "3", "4"], "ABCD", None, [1]])}
    return json.dumps(rng.choice([made, {"example": made}, made[0]])).encode()


def headless(rng: random.Random) -> bytes:
    return sheet(rng).partition(b"\n")[2]


FORMS = {
    "arc.json": ("arc-easy", exam),
    "2010.json": ("gaokao", exam),
    "mmlu.jsonl": ("mmlu", jsonl),
    "law_test.csv": ("mmlu", headless),
    "aime.jsonl": ("aime24", jsonl),
    "own.jsonl": ("", jsonl),
    "test.jsonl": ("gsm8k", jsonl),
    "items.jsonl": ("mathematics", jsonl),
    "exam.jsonl": ("ceval", jsonl),
    "math.json": ("mathematics", array),
    "law_val.csv": ("ceval", sheet),
    "algebra.txt": ("mathematics", module),
}


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def spliced(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    piece = rng.choice(PIECES) if rng.random() < 0.98 else b"A" * 10_000_000
    return data[:at] + piece + data[at:]


def recoded(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"]), "replace")


def doubled(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\n", b"\r\n", b"\r", b""]) + data


MUTATIONS: tuple[Mutation, ...] = (cut, flipped, spliced, recoded, doubled)


@pytest.mark.slow
def test_a_data_file_is_loaded_or_refused_with_its_place(tmp_path: Path) -> None:
    for seed, rng in rounds():
        name, (task, make) = rng.choice(list(FORMS.items()))
        data = make(rng)
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            data = rng.choice(MUTATIONS)(data, rng)
        file = tmp_path / name
        file.write_bytes(data)
        base = rng.choice([None, None, 0, 1, "none"])
        try:
            found = load_questions(
                task or str(file), data={task: file} if task else None, answer_index=base, limit=rng.choice([None, 2])
            )
        except DataError as refused:
            assert re.match(rf"{re.escape(str(file))}[:,]", refused.message) and refused.help, f"seed {seed}: {refused}"
            assert len(refused.message) < 1000, f"seed {seed}: {refused.message[:200]}"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {name}: {type(error).__name__}: {str(error)[:300]}") from error
        else:
            for question in found.questions[:3]:
                given = {"question": question.question, "choices": question.choices or None}
                judge(question.kind, question.reference, question.reference, **given)
                assert not question.choices or question.reference in question.choices, f"seed {seed}"
