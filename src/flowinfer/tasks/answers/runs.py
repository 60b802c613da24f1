"""Stretches of mathematics inside prose: "the roots are x = 1 and x = -2" holds "x = 1, x = -2"."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.expressions import FUNCTIONS, plain
from flowinfer.tasks.answers.numbers import SCALES

_PIECE = re.compile(
    rf"\s*(?:\d+(?:\.\d+)?|\.\d+|{FUNCTIONS}|xyz\b|abc\b"
    r"|(?P<letters>[a-zA-Z]{1,2}(?:_\w+)?'*)(?![a-zA-Z])|\\[a-zA-Z]+|\\\\|\*\*|[-+*/^()\[\]{}=<>!≈±∪∈%_,;&]|:(?=\d))"
)
_CONNECTED = re.compile(
    r"\s*,?\s*(?:\b(?:and|or)\b|和|与|或者?|以及|、)\s*(?=[-+(\[{]?\s*(?:\d|\.\d|[a-zA-Z](?![a-zA-Z])|sqrt|\\|±))"
)
_PROSE = re.compile(r"(?i)is|of|in|to|so|or|we|it|at|by|on|if|as|be|he|me|my|no|up|us|an|am|do|go|cm|mm|km|kg|pm|ok|hi")
COPULA = re.compile(
    r"(?i)\b(?:is|are|was|were|be|equals?|becomes?|gives?|get|obtain|yields?|have|has|as|to|into|contains?|exactly"
    r"|by|(?:remainder|total|sum|value) of|simplifies to|simply|it's|that's)\b\s*:?"
    r"|→|=>|(?<=[a-zA-Z]{2})\s*=|(?<=[\u4e00-\u9fff)])\s*=|:(?=\s)|是|为|等于|得到?|即|有"
)


def leading_run(string: str, at: int = 0) -> str:
    """Return the mathematics that begins at a place, up to the first word of prose; connectors become commas."""
    return measured_run(string, at)[0]


def measured_run(string: str, at: int) -> tuple[str, int]:
    """Return a run and where it ends."""
    pieces: list[str] = []
    while at < len(string):
        if pieces and (joined := _CONNECTED.match(string, at)):
            pieces.append(", ")
            at = joined.end()
            continue
        match = _PIECE.match(string, at)
        if not match or _PROSE.fullmatch(match["letters"] or ""):
            break
        pieces.append(string[at : match.end()])
        at = match.end()
    return _trimmed("".join(pieces), is_last=not string[at:].strip(" .。$*\n")), at


def _trimmed(run: str, *, is_last: bool) -> str:
    """Cut what belongs to the prose that follows; an operator at the very end of the text stays, as broken off."""
    loose = " \t\n([{,;:&" + ("" if is_last else "-+*/=<>")
    run = run.strip().rstrip(loose)
    while (at := max(map(run.rfind, "([{"))) > 0:
        if re.search(r"[)\]}]", run[at:]) or re.search(r"[\w*/^+=-]\s*$", run[:at]):
            break
        run = run[:at].rstrip(loose)
    return run


def closing_runs(string: str) -> list[str]:
    """List a sentence's stretches of mathematics, likeliest answer first: after its last verbs, whole, last."""
    found = []
    for match in reversed(list(COPULA.finditer(string))):
        run = leading_run(string, match.end())
        if run:
            found.append(run)
    whole = leading_run(string)
    is_all = bool(whole) and len(whole) >= len(string.strip().rstrip(".。")) - 2
    if whole:
        found.insert(0 if is_all else len(found), whole)
    return found + all_runs(string)[-1:]


def all_runs(string: str) -> list[str]:
    """List a sentence's stretches of mathematics."""
    found, at = [], 0
    while at < len(string):
        run, end = measured_run(string, at) if _starts(string, at) else ("", at)
        if run:
            found.append(run)
        at = max(end, at + 1)
    return found


def _starts(string: str, at: int) -> bool:
    """Return whether mathematics may begin here: not inside a word or number."""
    return not (at and (string[at - 1].isalnum() or string[at - 1] in "._'\\")) and not string[at].isspace()


_ASIDE = re.compile(
    r"(?i),?\s*(?:\b(?:because|since|which(?! (?:is|are|equals|gives|simplifies to"
    r"|makes) (?:[a-z]\s?=)?[^a-z]*\d(?![^.]*\b(?:than|more|less|times|prime|even|odd|not|before|after|from|away"
    r"|off)\b))|where|given that|compared|rather than|instead of)\b|\bnot\b(?= [-\d(])|而不是|而非|因为|其中|由于)"
    r"|\s\((?=[a-z]{3,}|[^()]*[=≈])"
)


def stripped(part: str) -> str:
    """Return a stretch as plain mathematics: without LaTeX layout, bold marks, currency and the names of bases."""
    part = re.sub(r"(?<![\w)*])\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*(?![\w(*])", r"\1", part)
    string = re.sub(r"\bnot\s+\S+\s+but\s+(?:rather\s+)?", "", plain(part).replace("$", ""))
    string = re.sub(r"\(?\b(?:in )?base[\s-]*\d+\)?", " ", string)
    string = re.sub(rf"(?<=\d) ({'|'.join(SCALES)})\b", lambda match: f"*{SCALES[match[1]]}", string)
    string = re.sub(r"\b(?:negative|minus)\s+(?=\d)|负(?=\d)", "-", string, flags=re.I)
    return re.sub(r"(?<![\w.])(\d+)\s+(\d+)\s?/\s?(\d+)(?![\w/])", r"(\1+\2/\3)", string)


_RESTATED = re.compile(r"[,，]\s*(?:\(?i\.\s?e\.,?|that is,|也就是说?|即)\s*(?=[-(\\\d]|[a-zA-Z]\b)")


def main_part(string: str) -> str:
    """Cut what only explains, if mathematics or a verb stands before."""
    string = re.sub(r"\s\([a-zA-Z][a-zA-Z\s,'-]{2,}\)", " ", string)
    restated = _RESTATED.search(string)
    if restated and re.search(r"\d", string[: restated.start()]):
        return string[restated.end() :]
    for aside in _ASIDE.finditer(string):
        if string[: aside.start()].strip():
            return string[: aside.start()]
    return string


_COMMON = {"the", "how", "and", "many", "much", "does", "are", "was", "were", "has", "have", "多少", "一共"}
_CLAUSES = re.compile(
    r"(?:,(?!\d)|[，;；])(?!\s*(?:也就|即|就是|i\.e|that is|or\b|which))\s*(?:\band\b|\bwhile\b|而)?|\b(?:and|while)\b"
)
_VARIABLE = re.compile(r"(?i)\b([a-z])(?:\s*\([^()=]*\))?\s*=")
_ASKED_VARIABLE = re.compile(
    r"(?i)(?:\b(?:for|find|of|determine|is|compute|evaluate|calculate|what's)|求|计算"
    r"|为)[\s$\\{}]*([a-z])(?:\s*\([^()]*\))?[\s${}]*(?=$|[.?,;。？的值])"
)
_RESTATES = re.compile(r"(?i)\bthat is\b|即|也就是")


def asked_clause(string: str, question: str) -> str:
    """Return the one clause with a number that has a word of the question which no other such clause has.

    Example: "x = 2 and y = 3" is "x = 2" where the question is to solve for x.
    """
    if _RESTATES.search(string):
        return string
    masked = re.sub(r"\([^()]*\)", lambda match: " " * len(match[0]), string)
    ends = [match.span() for match in _CLAUSES.finditer(masked)]
    bounds = zip([0, *(end for _, end in ends)], [*(begin for begin, _ in ends), len(string)], strict=True)
    told = [slice(*bound) for bound in bounds if _is_clause(string[slice(*bound)])]
    words = [_words(masked[clause], _VARIABLE) for clause in told]
    sought = _words(question, _ASKED_VARIABLE)
    others = [set().union(*words[:at], *words[at + 1 :]) for at in range(len(told))]
    asked = [clause for clause, own, rest in zip(told, words, others, strict=True) if (own - rest) & sought]
    return string[asked[0]] if len(told) > 1 and len(asked) == 1 else string


def _is_clause(string: str) -> bool:
    """Return whether a stretch says a number of something, and does not go on with a list or a unit."""
    return bool(re.search(r"\d", string)) and (
        "=" in string or len(re.findall(r"[a-zA-Z]{2,}|[\u4e00-\u9fff]", string)) > 1
    )


def _words(string: str, letter: re.Pattern[str]) -> set[str]:
    """Return a text's English words, pairs of Chinese characters, and letters that have or are asked for a value."""
    han = re.findall(r"(?=([\u4e00-\u9fff]{2}))", string)
    words = re.findall(r"\b[a-z]{3,}\b", string.lower())
    return {*words, *han, *map(str.lower, letter.findall(string))} - _COMMON
