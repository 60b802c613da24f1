"""References that their judges can read: options named by text or index become letters, anything else is refused.

Whether an index counts from 0 or from 1 is told by the whole file: by one that only the one or the other can mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks.answers import judge
from flowinfer.tasks.answers.kinds import read_gold
from flowinfer.tasks.answers.numbers import clean, gold_number, values
from flowinfer.tasks.answers.text import normalize
from flowinfer.tasks.sources import Item

AnswerIndex = Literal[0, 1, "none"]
"""What an answer counts from that is an option's index; none: answers are letters or texts, whatever they look like."""

_LETTERS = "ABCD"
"""What is looked for where a question comes without choices."""
_CURE = "an answer is an option's letter, its text or its index"
_SENTENCE = re.compile(r"\b(?:answer|result|total|is|are|equals?|about|approximately|around)\b|答案|等于|是|约", re.I)
"""Words of who tells an answer, and gives it not alone."""
_Form = Literal["letter", "text", "index from 0", "index from 1"]


@dataclass(frozen=True)
class Settled:
    """Items whose options are named by their letters."""

    items: tuple[Item, ...]
    note: str | None
    """What became letters, and why; None where all were."""


def settle(items: Sequence[Item], answer_index: AnswerIndex | None) -> Settled:
    """Turn answers that are options' texts or indices into letters.

    Raises:
        DataError: an answer names no option, or may name several; says where, and the cure.
    """
    readings = [_readings(item, answer_index) if item.is_open else {} for item in items]
    for item, found in zip(items, readings, strict=True):
        if item.is_open and not found:
            raise _refused(item, *_nameless(item, answer_index))
    sure: dict[_Form, Item] = {}
    for item, found in zip(items, readings, strict=True):
        if len(found) == 1:
            sure.setdefault(next(iter(found)), item)
    if "index from 0" in sure and "index from 1" in sure:
        there = f"but that of {sure['index from 0'].place}, '{_answer(sure['index from 0'])}', only from 0"
        raise _refused(sure["index from 1"], f"counts options from 1, {there}", "count all of them alike")
    settled, counts = [], Counter[_Form]()
    for item, found in zip(items, readings, strict=True):
        if not item.is_open:
            settled.append(item)
            continue
        known = {form: letter for form, letter in found.items() if form in sure} or found
        if len(set(known.values())) > 1:
            meanings = " or ".join(f"{letter} ({form})" for form, letter in known.items())
            is_index = any(form.startswith("index") for form in known)
            cure = (
                "say what answers count from: --answer-index 0, 1 or none" if is_index else f'write "({_answer(item)})"'
            )
            raise _refused(item, f"may mean {meanings}, and no other answer of the file tells", cure)
        form, letter = next(iter(known.items()))
        counts[form] += 1
        settled.append(item.answered(letter))
    return Settled(tuple(settled), _note(counts, sure, answer_index))


def check(items: Sequence[Item]) -> None:
    """Refuse references that their judge cannot read, so that no answer could ever be right.

    Raises:
        DataError: says where, what, and the cure.
    """
    for item in items:
        problem = _problem(item.question)
        if problem is not None:
            raise _refused(item, *problem)


def judges_note(items: Sequence[Item]) -> str | None:
    """Return which judges read the answers of items that name none, None where all do or have options."""
    inferred = [item for item in items if item.is_inferred]
    if not inferred:
        return None
    counts = Counter(item.question.kind for item in inferred)
    said = ", ".join(f"{count} by {_JUDGES.get(kind, kind)}" for kind, count in counts.items())
    words = next((item for item in inferred if item.question.kind == "exact"), None)
    first = f" (the first is that of {words.place}, '{_short(_answer(words))}')" if words and len(counts) > 1 else ""
    return f'answers are judged {said}{first}, as they look; "kind" in the items says otherwise'


_JUDGES = {
    "gsm8k": "gsm8k: numbers",
    "ceval": "ceval: letters",
    "mathematics": "mathematics: values",
    "exact": "exact: these words and no others",
}


def _problem(question: Question) -> tuple[str, str] | None:
    reference, kind = question.reference, question.kind
    if not reference.strip():
        return "is empty", "give each item an answer, or leave it out"
    if kind == "gsm8k" and gold_number(reference) is None:
        return "holds no number", 'write the number, or name another "kind"'
    if kind == "gsm8k" and "####" not in reference and len(values(clean(normalize(reference).string))) > 1:
        return "holds several numbers", 'write the one that is right, or name another "kind"'
    if kind == "ceval" and reference not in (tuple(question.choices) or tuple(_LETTERS)):
        letters = ", ".join(question.choices or _LETTERS)
        return f"is none of the letters {letters}", 'write "choices", and the letter of one as "answer"'
    has_any = re.search(r"[^\s.,;:?!$\"'()\[\]{}_-]", read_gold(reference, "").plain) is not None
    if kind == "mathematics" and not (has_any and _is_itself(question)):
        return "is nothing that can be compared", 'write a number, formula, list or word; or name "kind": "exact"'
    if kind == "mathematics" and re.fullmatch(r"[-+]?inf(?:inity)?", reference.strip(), re.I):
        return "is no number that a model would write", 'write "\\\\infty"; or name "kind": "exact"'
    if kind in ("mathematics", "exact") and _is_sentence(reference):
        cure = 'write the number alone, or name "kind": "gsm8k", which takes it out'
        return "is a sentence, and no answer in other words would be right", cure
    if kind == "exact" and not re.search(r"[^\s。.]", reference):
        return "holds nothing to compare", "give each item an answer, or leave it out"
    if kind == "exact" and not _is_itself(question):
        return "is not what is read in an answer of these very words", "write what is asked for, and nothing around it"
    return None


def _is_sentence(reference: str) -> bool:
    """Return whether words stand around a number that alone would not be right."""
    gold = read_gold(reference, "")
    return gold.kind == "words" and gold_number(gold.plain) is not None and bool(_SENTENCE.search(gold.plain))


def _is_itself(question: Question) -> bool:
    """Return whether a reference that is given back word for word is right."""
    outputs = (f"\\boxed{{{question.reference}}}", question.reference)
    return any(
        judge(question.kind, output, question.reference, question=question.question).correct for output in outputs
    )


def _readings(item: Item, answer_index: AnswerIndex | None) -> dict[_Form, str]:
    """Return what an answer may mean, by form: the letters of options."""
    choices, answer = item.question.choices, _folded(_answer(item))
    letters = tuple(choices)
    number = int(answer.partition(".")[0]) if re.fullmatch(r"\d{1,4}(?:\.0+)?", answer, re.ASCII) else None
    found: dict[_Form, str] = {}
    bases = {None: (0, 1), "none": (), 0: (0,), 1: (1,)}[answer_index]
    for base in bases if number is not None else ():
        if number is not None and 0 <= number - base < len(letters):
            found["index from 0" if base == 0 else "index from 1"] = letters[number - base]
    if number is not None and answer_index in (0, 1):
        return found
    if _is_of_several(item):
        return {}
    if (letter := _letter(answer, choices)) is not None:
        found["letter"] = letter
    if (named := _named(_answer(item), choices)) is not None:
        found["text"] = named
    return found


def _letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """Return the letter of "c", "(C)", "C." or, where the text is its option's, "C. Paris"."""
    match = re.fullmatch(r"[(\[【]?\s*([a-z])\s*[)\]】]?\s*[.:、。]?\s*(.*)", answer)
    if match is None or match[1].upper() not in choices:
        return None
    letter = match[1].upper()
    return letter if not match[2] or match[2] == _folded(choices[letter]) else None


def _named(answer: str, choices: Mapping[str, str]) -> str | None:
    """Return the letter of the one option of a text; case counts where it parts two options."""
    for fold in (str.strip, _folded):
        same = [letter for letter, text in choices.items() if fold(text) == fold(answer)]
        if same:
            return same[0] if len(same) == 1 else None
    return None


def _nameless(item: Item, answer_index: AnswerIndex | None) -> tuple[str, str]:
    """Return why an answer leads to no single option, and the cure."""
    if _is_of_several(item):
        return "is the text of several options", 'write the letter of the right one, such as "(A)"'
    declared = f"; indices count from {answer_index} here: --answer-index" if answer_index in (0, 1) else ""
    return "names no option", _CURE + declared


def _is_of_several(item: Item) -> bool:
    """Return whether several options have the answer's text, and none has it to the letter."""
    texts, answer = list(item.question.choices.values()), _answer(item)
    return texts.count(answer) != 1 and [_folded(text) for text in texts].count(_folded(answer)) > 1


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _answer(item: Item) -> str:
    return item.question.reference


def _note(counts: Counter[_Form], sure: Mapping[_Form, Item], answer_index: AnswerIndex | None) -> str | None:
    if not set(counts) - {"letter"}:
        return None
    said = ", ".join(f"{count} by {form}" for form, count in counts.items())
    why = ""
    for form, item in sure.items():
        if form.startswith("index") and answer_index is None:
            why = f"; what they count from is told by {item.place}, where the answer is '{_answer(item)}'"
    return f"answers name options: {said}{why}"


def _refused(item: Item, what: str, cure: str) -> DataError:
    return DataError(f"{item.place}: the answer '{_short(_answer(item))}' {what}", help=cure)


def _short(answer: str) -> str:
    return answer if len(answer) <= 40 else answer[:37] + "..."
