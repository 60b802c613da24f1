"""The options of published choice questions, in every layout that they come in, and the letter of the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from flowinfer.tasks.sources import Row

_LETTERS = "ABCD"
"""What is chosen from where a question comes without options."""
_MARKS = [re.compile(rf"(?<![A-Za-z0-9])([A-Z])\s*[{marks}]\s*") for marks in (".．", "、", ":：")]
"""Letters before options, by what stands behind them: "A. Rome"."""
_SEVERAL = "has several answers"
_HIDDEN = "has options that cannot be told apart"


def asked(row: Row, question: Sequence[str], names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return a row's question and its options by letter; none where it has no columns of them.

    Args:
        question: names of the question's column; `{stem, choices}` are its text and options (ARC's own files).
        names: of the column of options: texts, `{text, label}` as two lists or as a list of pairs, or texts by letter.
            Without it, columns named A, B, ... hold them, the empty ones at the end left out.
    Raises:
        DataError: they are malformed.
    """
    whole = next((row.fields[name] for name in question if isinstance(row.fields.get(name), Mapping)), None)
    fields = row.fields if whole is None else {**row.fields, **whole}  # type: ignore[dict-item]  # JSON's keys are texts
    inner = Row(row.path, row.line, fields)
    text = inner.text(*question) if whole is None else inner.text("stem")
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if value is None:
        value = _columns(inner)
    texts = _texts(value)
    if texts is None:
        cure = 'write a list of texts, or {"text": [...], "label": [...]}'
        raise row.complain("the options are no texts", cure)
    if len(texts) > len(ascii_uppercase):
        raise row.complain(f"{len(texts)} options, and 26 letters to name them", "give at most 26")
    return text, dict(zip(ascii_uppercase, _bare(texts), strict=False))


def _columns(row: Row) -> list[str]:
    """Return the texts of the columns A, B, ..., the empty ones at the end left out."""
    there = []
    for letter in ascii_uppercase:
        if letter not in row.fields:
            break
        there.append("" if row.fields[letter] is None else row.text(letter))
    while there and not there[-1].strip():
        there.pop()
    return there


def _texts(value: object) -> list[str] | None:
    """Return the texts of options in their order, None where they are none."""
    if isinstance(value, Mapping):
        value = value.get("text", list(value.values()))
    if not isinstance(value, list | tuple):
        return None
    inner = [one.get("text") if isinstance(one, Mapping) else one for one in value]
    is_right = all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in inner)
    return [str(one) for one in inner] if is_right else None


def _bare(texts: Sequence[str]) -> list[str]:
    """Return options without their letters, where each begins with its own: "(A) Rome"."""
    found = [re.match(r"\s*[(（]?([A-Z])[)）.．、]\s*", text) for text in texts]
    if texts and all(match and match[1] == letter for match, letter in zip(found, ascii_uppercase, strict=False)):
        return [text[match.end() :] for text, match in zip(texts, found, strict=True) if match]
    return list(texts)


def split(text: str) -> tuple[str, dict[str, str]]:
    """Cut options out of a question's text that ends in them, "... A. Rome B. Bonn"; none where it does not."""
    for pattern in _MARKS:
        marks = list(pattern.finditer(text))
        starts = [index for index, mark in enumerate(marks) if mark[1] == "A"]
        chosen = marks[starts[-1] :] if starts else []
        if len(chosen) < 2 or [mark[1] for mark in chosen] != list(ascii_uppercase[: len(chosen)]):
            continue
        ends = [mark.start() for mark in chosen[1:]] + [len(text)]
        found = {mark[1]: text[mark.end() : end].strip() for mark, end in zip(chosen, ends, strict=True)}
        stem = text[: chosen[0].start()].rstrip()
        if stem and all(found.values()):
            return stem, found
    return text, {}


def letter(
    row: Row, names: Sequence[str], choices: Mapping[str, str], answer_index: int | None
) -> tuple[str, str | None]:
    """Return the letter of a row's answer, and why it has no single one.

    Args:
        names: of the column: a letter, a label of ARC's, a list of one of them, or an index.
        answer_index: what an index counts from, where answers are some.
    Raises:
        DataError: it names no option.
    """
    value = next((row.fields[name] for name in names if row.fields.get(name) is not None), None)
    if isinstance(value, list | tuple) and value:
        if len(value) > 1:
            return "", _SEVERAL
        value = value[0]
    known = "".join(choices) or _LETTERS
    labels = _labels(row)
    said = value if value is None or isinstance(value, list | tuple | Mapping) else str(value).strip()
    if isinstance(said, str):
        bare = said.strip("()（）").upper()
        if said in labels and labels.index(said) < len(known):
            return known[labels.index(said)], None
        if answer_index is not None and bare.isascii() and bare.isdecimal() and len(bare) < 4:
            place = int(bare) - answer_index
            if 0 <= place < len(known):
                return known[place], None
        if len(bare) == 1 and bare in known:
            return bare, None
        if len(bare) > 1 and len(set(bare)) == len(bare) and set(bare) <= set(known):
            return "", _SEVERAL
        if not choices and re.fullmatch("[A-Z]", bare):
            return "", _HIDDEN
    cure = "what has no answers cannot be judged: give the split that has them"
    if value is None:
        raise row.complain(f"missing field '{names[0]}'", cure)
    listed = ", ".join(known) + (f", or an index from {answer_index}" if answer_index is not None else "")
    raise row.complain(f"the answer is '{str(value)[:40]}', not one of {listed}", cure)


def _labels(row: Row) -> list[str]:
    """Return the labels of ARC's options, A to E or 1 to 4; none in other layouts."""
    question = row.fields.get("question")
    value = (question if isinstance(question, Mapping) else row.fields).get("choices")
    if isinstance(value, Mapping) and isinstance(value.get("label"), list | tuple):
        return [str(label) for label in value["label"]]
    if isinstance(value, list | tuple):
        return [str(one["label"]) for one in value if isinstance(one, Mapping) and "label" in one]
    return []
