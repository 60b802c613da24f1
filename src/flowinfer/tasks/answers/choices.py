"""Which option of a single-choice question a text settles on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from flowinfer.tasks.answers.anchors import anchored, last_boxed
from flowinfer.tasks.answers.text import Found, Text

_NEGATIVE = re.compile(
    r"错|不对|不正确|不符|不是|不选|不能选|不成立|并非|排除|有误|均非|不属于|不合"
    r"|incorrect|wrong|false|\bnot\b|n't|eliminat|rule[ds]? out|\bno\b",
    re.I,
)
_POSITIVE = re.compile(r"正确|是对的|对的|成立|符合|才是|最合适|最佳|无误|correct|right|true|best", re.I)
_CLAUSE = re.compile(r"[。，；,;!?！？\n]|\.\s|\bbut\b|\bwhile\b|而(?!是|且)|但是?|(?<=错误)|(?<=正确)", re.I)
_BEFORE_WORD = re.compile(
    r"(?:vitamin|plan|hepatitis|type|grade|class|point|group|team|section|part|appendix|维生素|维他命|肝炎|方案|计划)\s*$",
    re.I,
)
_AFTER_WORD = re.compile(r"^\s?(?:同学|先生|型|股|超|语言|君|城|市|楼|级|座|点|公司|队|车|国|地|厂|人|[+#]|柱|罩)")
_JOIN = re.compile(
    r"^\s*(?:[、/&+]|和|与|及|或者?|还是|or|and)?\s*(?:选项|option)?\s*[(\[【]?([A-H])[)\]】]?(?![A-Za-z])",
    re.I,
)


def find_choice(text: Text, choices: Mapping[str, str]) -> Found:
    """Find the one option: boxed > anchored > judged right > alone > its text."""
    letters = "".join(choices)
    boxed = last_boxed(text)
    if boxed is not None:
        found = sorted(set(re.findall(rf"(?<![A-Za-z])[{letters}](?![A-Za-z])", _bare(boxed.string))))
        if len(found) == 1:
            return Found(found[0], "ok", "boxed", boxed.span())
        if len(found) > 1:
            return Found(None, "ambiguous", "boxed", boxed.span())
    anchored_answer = _anchored(text, letters, choices)
    if anchored_answer is not None:
        return anchored_answer
    return _unanchored(text, letters, choices)


def _bare(part: str) -> str:
    return re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*", "", part)


def _anchored(text: Text, letters: str, choices: Mapping[str, str]) -> Found | None:
    """Return what the last anchor with a letter, or with an option's text, says."""
    last: Found | None = None
    head = re.compile(
        rf"^[\s*_$\"'“”‘’(\[【「\\{{]*(?:text|选项|选择|选|option|choice|letter|第)?[\s*(\[【{{]*([{letters}{letters.lower()}])"
        r"(?![A-Za-z0-9_'’])",
        re.I,
    )
    for tail in anchored(text):
        match = head.match(tail.string)
        if match and not _is_article(tail.string, match.start(1)):
            rest = tail.string[match.end() :]
            if re.match(r"[\s)\]】*项]*(?:是|is)?\s*(?:错|不对|不正确|wrong|incorrect|false|not\b)", rest, re.I):
                continue
            several = {match[1].upper()} | _joined(rest, letters)
            span = tail.part(match.start(1), match.end(1)).span()
            if len(several) > 1:
                last = Found(None, "ambiguous", "anchor", span)
            else:
                last = Found(match[1].upper(), "ok", "anchor", span)
            continue
        option = _option_text(tail, choices)
        if option is not None:
            last = Found(option, "ok", "anchor_text", tail.span())
    return last


def _joined(rest: str, letters: str) -> set[str]:
    """Return further letters that are listed with the first: AC, A、C, A or C, A和C."""
    found: set[str] = set()
    rest = rest.lstrip(")]】* 项}")
    while match := _JOIN.match(rest):
        if match[1].upper() not in letters or (match[1].islower() and match[0].strip() == match[1]):
            break
        if re.match(
            r"[、和与及\s,]*[A-H、和与及\s,]*(?:都|均|皆|全)?(?:错|不对|不正确|不符|排除)",
            rest[match.end() :],
        ):
            break
        found.add(match[1].upper())
        rest = rest[match.end() :].lstrip(")]】* 项}")
    comma = re.fullmatch(rf"\s*(?:[,，]\s*([{letters}])\s*)+", rest)
    return found | ({comma[1]} if comma else set())


def _is_article(string: str, at: int) -> bool:
    """Return whether a letter is the English article: 'A good ...'."""
    return string[at] in "Aa" and bool(re.match(r"\s+[a-z]{2,}", string[at + 1 :]))


def _tokens(text: Text, letters: str) -> Iterator[int]:
    """Yield the places of letters that stand alone and can name an option."""
    string = text.string.replace("**", "  ")
    for match in re.finditer(rf"(?<![A-Za-z0-9_\\^=+*/<>'’-])[{letters}](?![A-Za-z0-9_^=+*/<>'’])", string):
        at = match.start()
        before, after = string[max(0, at - 14) : at], string[at + 1 :]
        if _BEFORE_WORD.search(before) or _AFTER_WORD.match(after) or _is_article(string, at):
            continue
        if re.match(r"-[A-Za-z0-9]", after):
            continue
        yield at


def _unanchored(text: Text, letters: str, choices: Mapping[str, str]) -> Found:
    places = list(_tokens(text, letters))
    if not places:
        option = _option_text(text, choices)
        if option is not None:
            return Found(option, "ok", "option_text", text.span())
        lone = re.fullmatch(rf"\W*([{letters.lower()}])\W*", text.string.strip())
        if lone:
            return Found(lone[1].upper(), "ok", "only_letter", text.span())
        return Found(None, "no_answer", "none", None)
    positive, negative, bare = _polarity(text, places)
    at_place = {text.string[at]: at for at in places}

    def found(letter: str, rule: str) -> Found:
        at = at_place[letter]
        return Found(letter, "ok", rule, text.part(at, at + 1).span())

    if len(positive - negative) == 1:
        return found(next(iter(positive - negative)), "judged_right")
    if len(positive) > 1:
        return Found(None, "ambiguous", "judged_right", None)
    if len(bare) == 1 and not bare & negative:
        return found(next(iter(bare)), "only_letter")
    last_line = text.string.rstrip().rsplit("\n", 1)[-1]
    alone = re.fullmatch(rf"[\W_]*([{letters}])[\W_]*", last_line)
    if alone:
        return found(alone[1], "last_line")
    first_line = text.string.strip().split("\n", 1)[0]
    leading = re.match(rf"[\W_]*([{letters}])[\W_]*(?:$|[.、:)])", first_line)
    if leading and not re.search(rf"\n\s*[\W_]*[{letters}]\s*[.、:)]", text.string.strip()):
        return found(leading[1], "first_line")
    if bare:
        return Found(None, "ambiguous", "letters", None)
    return Found(None, "no_answer", "negated", None)


def _polarity(text: Text, places: list[int]) -> tuple[set[str], set[str], set[str]]:
    """Sort the letters by what their clauses say of them: right, wrong, or nothing."""
    string = text.string
    bounds = [0, *(match.end() for match in _CLAUSE.finditer(string)), len(string)]
    positive: set[str] = set()
    negative: set[str] = set()
    bare: set[str] = set()
    for begin, end in pairwise(bounds):
        inside = [at for at in places if begin <= at < end]
        if not inside:
            continue
        clause = string[begin:end]
        letters = {string[at] for at in inside}
        if _NEGATIVE.search(clause):
            negative |= letters
        elif _POSITIVE.search(clause):
            positive |= letters
        else:
            bare |= letters
    return positive, negative, bare


def _option_text(text: Text, choices: Mapping[str, str]) -> str | None:
    """Return the one option whose text occurs, not counting clauses that deny it."""
    string = text.string
    found: dict[str, list[tuple[int, int]]] = {}
    for letter, option in choices.items():
        plain = option.strip()
        if not plain:
            continue
        left = r"(?<![A-Za-z0-9.])" if plain[0].isascii() and plain[0].isalnum() else ""
        right = r"(?![A-Za-z0-9]|\.\d)" if plain[-1].isascii() and plain[-1].isalnum() else ""
        for match in re.finditer(left + re.escape(plain) + right, string, re.I):
            found.setdefault(letter, []).append(match.span())
    for letter, spans in list(found.items()):
        others = [span for other, more in found.items() if other != letter for span in more]
        kept = [s for s in spans if not any(o[0] <= s[0] and s[1] <= o[1] and o != s for o in others)]
        kept = [s for s in kept if not _NEGATIVE.search(_clause_of(string, s))]
        if kept:
            found[letter] = kept
        else:
            del found[letter]
    return next(iter(found)) if len(found) == 1 else None


def _clause_of(string: str, span: tuple[int, int]) -> str:
    begin = max([0, *(m.end() for m in _CLAUSE.finditer(string) if m.end() <= span[0])])
    end = min([len(string), *(m.start() for m in _CLAUSE.finditer(string) if m.start() >= span[1])])
    outside = string[begin : span[0]] + " " + string[span[1] : end]
    return outside
