"""What a model answers by itself: without the question repeated, code, marks, and further questions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import islice

from flowinfer.tasks.answers.anchors import anchored, boxed, is_boxed
from flowinfer.tasks.answers.text import Text, prepare

_LINE_MARK = re.compile(r"(?i)</?(?:br|n|p|div|li|ul|ol|h[1-6]|tr|table|center)\s*/?>")
_FONT_MARK = re.compile(r"</?(?:b|i|u|em|strong|span|font|mark|code|td|th|sup|sub)(?:\s[^<>\n]{0,80})?>")
_CODE = re.compile(r"```[ \t]*(?P<language>[a-zA-Z+#]*)[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.S)
_NO_CODE = ("", "output", "text", "txt", "plaintext", "markdown", "md", "latex", "tex", "math", "json", "yaml", "xml")
_PRINTED = re.compile(r"\bprint\s*\(.*\)\s*(#\s*(?:output|prints)?[:=\s]*-?[$]?[\d.,/]+%?\s*)$|^.*$", re.M | re.I)
_TURN_ENDS = re.compile(
    r"<\|(?!begin_of_box|end_of_box|channel|message)[a-z_]+\|>|<[|｜][A-Za-z▁_ ]+[|｜]>|</s>|\[/?INST\]"
    r"|<(?:eoa|eot|eos|eom|eod|end_of_turn|start_of_turn|end_of_text|endoftext|end|reserved_\d+)>"
)
_NEXT_QUESTION = re.compile(
    r"(?P<numbered>\n\s*(?:\*\*|#+ )?(?:(?:Next |New |Another |Follow-?up )(?:Question|Problem)|User|Human|用户"
    r"|下一[题道]|The following (?:is|are) (?:a )?multiple[- ]choice[^\n:.]*|以下是[^\n]{0,40}选择题[^\n:。]*"
    r"|(?:Question|Problem|Exercise|Example|Q|问题|题目|例题|问)\s*\d+)\s*(?:\*\*)?[:：.。])|(?P<plain>\n\s*(?:\*\*"
    r"|#+ )?(?:Question|Problem|Exercise|Example|Instruction|Q|问题|题目|例题|问)\s*(?:\*\*)?[:：]|\n(?:#+ "
    r"|\*\*)(?:Question|Problem|Exercise|Example)\s*\d+\W*\n|(?<=[\d.。]) (?:Question|问题)\s*\d*\s*[:：])"
    r"|(?P<bare>\n\s*\n[A-Z][^\n]{9,}\?\s*\n|\n\s*\n(?:Solve|What|Find|Let(?! me\b| us\b|')|Simplify|Evaluate|Suppose"
    r"|Which|Is|Factor|Expand|Calculate|Round|Sort|List|Differentiate|How)\b[^\n]{5,}[.?]\s*\n)"
    r"|(?P<listed>\n\s*(?:第?\d+[.、题]\s*)?(?:下列|下面|以下|关于)(?=[^\n]{4,}\n\s*A[.、])"
    r"|\n[^\n]{6,}[?？_)）]\s*\n\s*\(?A\)?[.、]\s?[^\n]+\n?\s*\(?B\)?[.、])"
)
_INTRODUCES = re.compile(r"(?i)restate|rephrase|reread|the (?:problem|question)|given|审题|题目|如下|^解\W*$")
_ANNOUNCES = re.compile(r"(?i)\blet(?: me| us|'s)\b|\bi(?:'ll| will)\b|\bfollowing\b|\bbelow\b|下面|以下|我[们会来]")
_VALUE = re.compile(
    r"(?i)\d|^\W*(?:[A-Za-z]|true|false|yes|no|对|错|是|否)\W*$|^\W*[(]?[A-H][).、:]|选\W{0,3}[A-H]|[零一二三四五六七八九十百千]{1,}\W*$"
)
_STEP = re.compile(r"(?i)^\W*(?:step|part|case|第|\d+[.)]\s)")
_MIN_REPEATED = 16
"""Fewest characters, Chinese ones counted twice, by which a text is known to be the question's."""
_MAX_QUESTIONS = 20
"""Beginnings of questions that are looked at."""
_MAX_BEFORE = 120
"""Most characters of a heading before the question where a model repeats it."""


@dataclass(frozen=True)
class NextQuestion:
    """Where an output goes on with a question of the model's own."""

    at: int
    """Index in the output."""
    heading: str
    """How it begins there, without a number, if it begins as others may; a text that could end an answer."""


def next_question(output: str, question: str) -> NextQuestion | None:
    """Return where an output runs on into another question, as `own_turn` finds it; None where it does not.

    Args:
        output: what the model wrote.
        question: what it was asked.
    """
    text = prepare(output)
    if text.status is not None:
        return None
    text = _first_turn(text, question)
    match = _further_question(text)
    if match is None:
        return None
    at = text.places[match.start()]
    written = output[at : text.places[match.end() - 1] + 1] if match["numbered"] or match["plain"] else ""
    heading = re.split(r"\s*\d", written.strip())[0]
    return NextQuestion(at, ("\n" if "\n" in written else " ") + heading if heading else "")


def own_turn(text: Text, question: str) -> Text:
    """Return what the model says by itself, up to where it asks itself another question."""
    text = _first_turn(text, question)
    match = _further_question(text)
    return text if match is None else text.part(0, match.start())


def _first_turn(text: Text, question: str) -> Text:
    """Leave out marks, the question that is repeated, and what follows the end of a turn."""
    text = _without_question(replace(text, string=_without_marks(text.string)), question)
    ends = (match.start() for match in _TURN_ENDS.finditer(text.string))
    return text.part(0, next((end for end in ends if re.search(r"\w", text.string[:end])), len(text.string)))


def _further_question(text: Text) -> re.Match[str] | None:
    """Return where another question begins behind an answer."""
    matches = islice(_NEXT_QUESTION.finditer(text.string), _MAX_QUESTIONS)
    return next((match for match in matches if _is_answered(text, match)), None)


def _without_marks(string: str) -> str:
    """Blank marks of HTML and code, whose numbers are no answers; what it is said to print stays."""
    string = _LINE_MARK.sub(lambda match: "\n" + " " * (len(match[0]) - 1), string)
    string = _FONT_MARK.sub(lambda match: " " * len(match[0]), string)
    return _CODE.sub(_blanked, string)


def _blanked(match: re.Match[str]) -> str:
    if match["language"].lower() in _NO_CODE:
        return match[0]
    before, after = match[0].split(match["code"], 1) if match["code"] else (match[0], "")
    kept = _PRINTED.sub(lambda line: (line[1] or "").replace("#", " ").rjust(len(line[0])), match["code"])
    return before + kept + after


def _without_question(text: Text, question: str) -> Text:
    """Leave out the question where a model begins by repeating it."""
    words = question.split()
    if sum(1 + (character > "\u2e80") for word in words for character in word) < _MIN_REPEATED:
        return text
    repeated = re.search(r"\s*".join(re.escape(word) for word in words), text.string[: _MAX_BEFORE + 2 * len(question)])
    if repeated is None or repeated.start() > _MAX_BEFORE:
        return text
    before = text.part(0, repeated.start())
    if boxed(before) or any(re.fullmatch(r"\W*\w+\W*", tail.string) for tail in anchored(before)):
        return text
    return text.part(repeated.end(), len(text.string))


def _is_answered(text: Text, match: re.Match[str]) -> bool:
    """Return whether the model has answered where another question seems to begin; never what holds the last box."""
    before, string = text.part(0, match.start()), text.string[: match.start()].strip()
    if not re.search(r"\w", string):
        return False
    is_anchored = any(re.search(r"\w", tail.string) for tail in anchored(before))
    has_box = bool(boxed(before))
    if is_boxed(text.string[match.start() :]) and not (has_box or (is_anchored and not match["bare"])):
        return False
    last = string.rsplit("\n", 1)[-1]
    is_short = len(string) <= _MAX_BEFORE // 2 and "\n" not in string and string[-1] not in ":?"
    says_value = is_short and bool(_VALUE.search(string)) and not _STEP.match(string)
    if match["bare"]:
        return says_value or last.startswith("####")
    if has_box or is_anchored:
        return True
    if _INTRODUCES.search(string) or (_ANNOUNCES.search(string) and "=" not in string):
        return bool(match["numbered"]) and len(string) > _MAX_BEFORE
    concludes = match["plain"] and bool(re.search(r"\d", last)) and last[-1] not in ":?" and not _STEP.match(last)
    return bool(match["numbered"] or says_value or concludes)
