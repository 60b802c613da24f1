"""Prompt sets and templates: the words that a model is asked with, by its place in the flow.

Source of `paper` and `paper-table2`: the paper's figure 5 and table 2. In table 2 the later templates do not repeat
the question; figure 5 shows question, previous answer and instruction together, which is the default here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from flowinfer.errors import UsageError
from flowinfer.spec import Role

ROLES: tuple[Role, ...] = ("draft", "review", "verify")

BUILT_IN_FIELDS = ("question", "choices", "prev", "answers")
"""Fields that exist without a declaration; besides them result_1, result_2, ..., labels, $params and columns."""


LOOP_FIELDS = ("round", "own")
"""Fields that exist inside a repeat only."""


@dataclass(frozen=True)
class FieldUse:
    """One {field} of a template."""

    name: str
    offset: int
    """Index of its opening brace in the template."""


class TemplateError(ValueError):
    """A template's braces do not pair, or hold something that is no field name."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class PromptSet:
    """Templates by role; `verify_two` is verify after exactly one stage."""

    name: str
    draft: str
    review: str
    verify: str
    verify_two: str
    judge: str
    """Asks for yes or no to an answer, {prev}."""
    answer_form: str
    """How each of several answers is shown; fields: number, text."""
    answer_separator: str = "\n\n"

    def template_for(self, role: Role, num_preceding: int) -> str:
        """Return the template of a role for a stage that so many stages precede."""
        if role == "draft":
            return self.draft
        if role == "review":
            return self.review
        return self.verify_two if num_preceding == 1 else self.verify

    def join(self, answers: Sequence[str]) -> str:
        """Show several answers as one text; a single one stays as it is."""
        if len(answers) == 1:
            return answers[0]
        return self.answer_separator.join(
            render(self.answer_form, {"number": str(number), "text": text})
            for number, text in enumerate(answers, start=1)
        )


AS_THEY_ARE = "none"
"""Name of the set without words: a chat's messages reach the first stage as they are, through each head's own chat
template; a stage that reads others needs a prompt of its own."""

_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")

_DRAFT = "你是一个专业的智能助手,请审慎思考并逐步推理,最后给出最准确的答案.问题:{question}."
_REVIEW = (
    "你是一位严谨的审校专家,请逐步审阅上一阶段的回答,纠正其中的错误与偏差,"
    "并补充遗漏的关键推理步骤,给出更准确的中间结论."
)
_VERIFY = "你是一位经验丰富的验证专家,请对前述分析内容进行综合判断,凝练出最准确、清晰的最终答案."

PROMPT_SETS: Mapping[str, PromptSet] = {
    "paper": PromptSet(
        name="paper",
        draft=_DRAFT,
        review=_REVIEW + "问题:{question}.助手回答:{prev}.",
        verify=_VERIFY + "问题:{question}.审校专家分析:{prev}.",
        verify_two=_VERIFY + "问题:{question}.助手回答:{prev}.",
        judge="问题:{question}.助手回答:{prev}.这个回答正确吗?只回答是或否.",
        answer_form="回答{number}:{text}",
    ),
    "paper-table2": PromptSet(
        name="paper-table2",
        draft=_DRAFT,
        review=_REVIEW + "助手回答:{prev}.",
        verify=_VERIFY + "审校专家分析:{prev}.",
        verify_two=_VERIFY + "助手回答:{prev}.",
        judge="问题:{question}.助手回答:{prev}.这个回答正确吗?只回答是或否.",
        answer_form="回答{number}:{text}",
    ),
    "en": PromptSet(
        name="en",
        draft=(
            "You are a careful expert assistant. Think step by step, then give the most accurate answer."
            "\n\nQuestion: {question}"
        ),
        review=(
            "You are a rigorous reviewer. Go through the previous answer step by step, correct its mistakes, add"
            " the key steps that it lacks, and give a more accurate conclusion."
            "\n\nQuestion: {question}\n\nPrevious answer: {prev}"
        ),
        verify=(
            "You are an experienced verifier. Weigh the analysis below as a whole and state the most accurate,"
            " clear final answer.\n\nQuestion: {question}\n\nReviewer's analysis: {prev}"
        ),
        verify_two=(
            "You are an experienced verifier. Weigh the answer below as a whole and state the most accurate,"
            " clear final answer.\n\nQuestion: {question}\n\nPrevious answer: {prev}"
        ),
        judge="Question: {question}\n\nAnswer: {prev}\n\nIs this answer right? Say only yes or no.",
        answer_form="Answer {number}: {text}",
    ),
    "plain": PromptSet(
        name="plain",
        draft="{question}",
        review=(
            "{question}\n\nPrevious answer: {prev}\n\n"
            "Check the previous answer, correct what is wrong in it, and answer the question."
        ),
        verify="{question}\n\nPrevious answer: {prev}\n\nGive the final answer to the question.",
        verify_two="{question}\n\nPrevious answer: {prev}\n\nGive the final answer to the question.",
        judge="Question: {question}\n\nAnswer: {prev}\n\nIs this answer right? Say only yes or no.",
        answer_form="Answer {number}: {text}",
    ),
    AS_THEY_ARE: PromptSet(
        name=AS_THEY_ARE,
        draft="{question}",
        review="",
        verify="",
        verify_two="",
        judge="",
        answer_form="Answer {number}: {text}",
    ),
}


def prompt_set(name: str) -> PromptSet:
    """Return the prompt set of that name.

    Raises:
        UsageError: there is none.
    """
    try:
        return PROMPT_SETS[name]
    except KeyError:
        raise UsageError(f"unknown prompt set '{name}'", help=f"known: {', '.join(PROMPT_SETS)}") from None


def foreign_note(name: str, templates: Iterable[str], questions: Sequence[str]) -> str | None:
    """Return what a user must know whose questions are not in the language that a set asks in, or None.

    Args:
        name: of the prompt set; a template of a user's own is the user's choice.
        templates: those that the flow uses.
        questions: as they fill {question}.
    """
    words = prompt_set(name)
    own = {words.draft, words.review, words.verify, words.verify_two}
    if not any(template in own and _CHINESE.search(template) for template in templates):
        return None
    foreign = sum(not _CHINESE.search(text) and any(map(str.isalpha, text)) for text in questions)
    if not foreign:
        return None
    which = "the question is not" if len(questions) == 1 else f"{foreign} of {len(questions)} questions are not"
    return (
        f"the prompt set '{name}' asks in Chinese, {which}; --prompts plain or en asks otherwise"
        f' (in a flow: defaults {{ prompts="plain" }})'
    )


def template_for(name: str, role: Role, num_preceding: int) -> str:
    """Return a set's template for a role after so many stages."""
    return prompt_set(name).template_for(role, num_preceding)


def role_for(num_preceding: int, *, is_last: bool) -> Role:
    """Return the role that a stage's place gives it: first drafts, last verifies, between reviews."""
    if num_preceding == 0:
        return "draft"
    return "verify" if is_last else "review"


def fields_of(template: str) -> list[FieldUse]:
    """List the fields of a template in order of appearance.

    Raises:
        TemplateError: a brace is not paired or a field name is not a word.
    """
    return [FieldUse(piece, offset) for is_field, piece, offset in _pieces(template) if is_field]


def field_names(template: str) -> frozenset[str]:
    """Return the names of a template's fields.

    Raises:
        TemplateError: see `fields_of`.
    """
    names = _names_or_problem(template)
    if isinstance(names, TemplateError):
        raise TemplateError(str(names), names.offset)
    return names


@lru_cache(maxsize=64)
def _names_or_problem(template: str) -> frozenset[str] | TemplateError:
    """Read a template once, however many stages share it."""
    try:
        return frozenset(use.name for use in fields_of(template))
    except TemplateError as error:
        return error


def render(template: str, values: Mapping[str, str]) -> str:
    """Fill a template's fields; values are never expanded again.

    Raises:
        KeyError: a field has no value.
        TemplateError: the template is malformed.
    """
    return "".join(values[piece] if is_field else piece for is_field, piece, _ in _pieces(template))


def with_values(template: str, texts: Mapping[str, str]) -> str:
    """Put texts where a template has these fields; braces in them stay braces."""
    for use in reversed(fields_of(template)):
        if use.name in texts:
            end = template.index("}", use.offset) + 1
            text = texts[use.name].replace("{", "{{").replace("}", "}}")
            template = template[: use.offset] + text + template[end:]
    return template


def names_in(template: str) -> frozenset[str]:
    """Return the names of a template's fields; none where it is malformed, which its check tells."""
    names = _names_or_problem(template)
    return frozenset() if isinstance(names, TemplateError) else names


def is_field(name: str) -> bool:
    """Return whether a word can be a field of a template, and so a label."""
    return re.fullmatch(r"[^\W\d](?:\w|[.\-](?=\w))*", name) is not None


def _pieces(template: str) -> list[tuple[bool, str, int]]:
    """Cut a template into (is_field, text or name, offset)."""
    pieces: list[tuple[bool, str, int]] = []
    literal = ""
    index = 0
    while index < len(template):
        two = template[index : index + 2]
        if two in ("{{", "}}"):
            literal += two[0]
            index += 2
        elif template[index] == "{":
            end = template.find("}", index)
            name = template[index + 1 : end].strip() if end >= 0 else ""
            if not is_field(name.removeprefix("$")):
                raise TemplateError("'{' opens no field; write '{{' for a literal brace", index)
            pieces += [(False, literal, index), (True, name, index)]
            literal, index = "", end + 1
        elif template[index] == "}":
            raise TemplateError("'}' closes no field; write '}}' for a literal brace", index)
        else:
            literal += template[index]
            index += 1
    return [*pieces, (False, literal, index)]
