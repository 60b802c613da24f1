"""What a text says of each option's letter, clause by clause: right, wrong, or nothing yet."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

NEGATIVE = re.compile(
    r"错|有(?:语病|歧义)|不对|不正确|不符|不是|不选|不能选|不成立|并非|排除|有误|均非|不属于|不合|不行|不准确|不恰当|无关|片面"
    r"|矛盾|除了?[A-H\s]|不可能|不能|不一致|无中生有|偷换|以偏概全|张冠李戴|[✗✘❌]|太绝对|过于绝对"
    r"|incorrect|wrong|false|\bnot\b|n't|eliminat|rule[ds]? out|irrelevant|unrelated|\bout\b|\bno\b|\bnone\b"
    r"|\bneither\b|\bnor\b",
    re.I,
)
_POSITIVE = re.compile(
    r"正确|准确|恰当|是对的|对的|只有.{0,4}对|成立|符合|才是|才对|最合适|最佳|最恰当|更恰当|更合适|当选|一致|吻合|[✓√✔✅]|无误"
    r"|correct|right|true|best|more likely|most likely|the answer|better|is the one|\byes\b|\bfits?\b",
    re.I,
)
CLAUSE = re.compile(
    r"[。，；,;!?！？\n]|\.\s|\bbut\b|\bwhile\b|\bwhereas\b|而(?!是|且)|但是?|因为|由于|\bbecause\b|\bsince\b"
    r"|(?<=[✗✘❌✓√✔✅])|(?<=[错对误确√]\))"
    r"|(?<=错误)(?!的)|(?<=正确)(?!的)|(?=其余|其他|其它|\bthe (?:other|rest|remaining)\b)"
    r"|(?:→|⇒|=>)(?=\s*[A-H](?![A-Za-z]))",
    re.I,
)
_FAULTLESS = re.compile(r"没有?(?:错误?|问题|语病|毛病|错别字|歧义)|无误|\bnot (?:wrong|false|incorrect)", re.I)
_BEFORE_WORD = re.compile(
    r"(?:vitamin|plan|hepatitis|type|grade|class|point|group|team|section|part|appendix|figure|维生素|维他命"
    r"|肝炎|方案|计划"
    r"|集合|事件|角|点|边|矩阵|函数|物质|元素|图)\s*$",
    re.I,
)
_AFTER_WORD = re.compile(
    r"^\s?(?:同学|先生|型|股|超|语言|君|城|市|楼|级|座|点|公司|队|车|国|地|厂|人|板|极|端|[+#]|柱|罩"
    r"|\([a-z0-9,]{1,4}\))"
)
_ARTICLE_BEFORE = re.compile(
    r"\s+(?!and\b|or\b|is\b|are\b|was\b|because\b|since\b|as\b|would\b|must\b|should\b|can\b|cannot\b|does\b"
    r"|has\b|seems\b|looks\b|fits\b"
    r"|matches\b|states\b|says\b|describes\b|correctly\b|to\b|nor\b|but\b|here\b|only\b|also\b|may\b|might\b"
    r"|could\b|isn\b|will\b|talks\b|refers\b"
    r"|mentions\b|remains\b|option\b|appears\b)[a-z]{2,}"
)
_DISCUSSED = re.compile(
    r"分析|来看|先看|考虑|看一?下|\bconsider\b|\blook(?:ing)? at\b|\bexamine\b|\bevaluate\b|\bbetween\b"
    r"|\bconsidered\b|\binitially\b|\b(?:says|states|claims|describes|talks about)\b|在.{1,8}(?:中|之间)"
    r"|虽然|尽管|\b(?:al)?though\b",
    re.I,
)
_VERDICT = re.compile(
    r"\s*(?:所以|因此|故|是|so (?:it|this|that)(?:'s| is) |it(?:'s| is) |so )*(?:说法|表述)?(?:错误?|不正确|不对"
    r"|不符合?.{0,4}|排除|正确|对|不选|当选|应选|符合题意?|wrong|incorrect"
    r"|correct|right|out|not correct|no|yes)(?:的|选项)?[。;；，,.!\s]*",
    re.I,
)
_LISTED = re.compile(
    r"(?<![A-Za-z])(?<!and )(?<!or )(?<![和或与])([A-H])\s*[,，]\s*(?=(?:and |or |和|或|以及)?\s*[A-H](?![A-Za-z]))"
)
_ENUMERATOR = re.compile(
    r"(?m)^([\s*#>-]*(?:选项|option )?[(（]?[A-H][)）]?)(\.)(?=\s*\S)(?!\s*[A-H](?![A-Za-z]))", re.I
)
_CONCLUDED = re.compile(
    r"(?:\b(?:so|therefore|thus|hence|it's|it is|it must be|must be|answer)|其实(?:应该)?是?|实际上(?:应该)?是?"
    r"|显然是?|那就是|只剩下?|剩下|即|\bleaves|\b(?:clearly|obviously|definitely|certainly)|所以|因此|综上|故"
    r"|最终还是)[\s,:]*(?:it'?s |it is |it must be "
    r"|option |the answer is |选项?|是)?"
    r"[\s*(\[【]*([A-H])[\s*)\]】]*(?:项|选项)?\s*[了啦]?(?=$|[\n.。;；!,，])",
    re.I,
)


@dataclass(frozen=True)
class Polarity:
    """Letters by what is said of them."""

    right: frozenset[str]
    wrong: frozenset[str]
    bare: frozenset[str]
    concluded: str | None
    """The letter of the last "therefore C"."""


def masked(string: str) -> str:
    """Return a text of the same length in which lists of letters and "A." at a line's begin stay in one clause."""
    string = string.replace("**", "  ")
    string = _LISTED.sub(lambda match: match[0].replace(",", "、").replace("，", "、"), string)
    return _ENUMERATOR.sub(lambda match: match[1] + ":", string)


def tokens(string: str, letters: str) -> list[int]:
    """List the places of letters that stand alone and can name an option."""
    places = []
    for match in re.finditer(rf"(?<![A-Za-z0-9_\\^=+*/<>’-])[{letters}](?![A-Za-z0-9_^=+*/<>’]|'[a-z])", string):
        at = match.start()
        before, after = string[max(0, at - 14) : at], string[at + 1 :]
        if _BEFORE_WORD.search(before) or _AFTER_WORD.match(after) or re.match(r"-[A-Za-z0-9]|\s*=", after):
            continue
        if string[at] in "Aa" and _ARTICLE_BEFORE.match(after):
            continue
        places.append(at)
    return places


def polarity(string: str, places: list[int]) -> Polarity:
    """Sort the letters at these places by what their clauses say of them."""
    bounds = [0, *(match.end() for match in CLAUSE.finditer(string)), len(string)]
    right: set[str] = set()
    wrong: set[str] = set()
    bare: set[str] = set()
    last: set[str] = set()
    for begin, end in pairwise(bounds):
        letters = {string[at] for at in places[bisect_left(places, begin) : bisect_left(places, end)]}
        clause = _FAULTLESS.sub("正确", string[begin:end])
        if not letters and _VERDICT.fullmatch(clause):
            letters, bare = last, bare - last
        last = set() if re.search(r"[。;!\n]|\.\s", clause) else letters or last
        if not letters:
            continue
        if NEGATIVE.search(clause):
            wrong |= letters
        elif _POSITIVE.search(clause):
            right |= letters
        elif not _DISCUSSED.search(clause) and not clause.endswith("?"):
            bare |= letters
    concluded = [match for match in _CONCLUDED.finditer(string) if match.start(1) in places]
    return Polarity(frozenset(right), frozenset(wrong), frozenset(bare), concluded[-1][1] if concluded else None)


_WRONG = re.compile(
    r"错误|有误|(?<!没)有错|不(?:正确|准确|恰当|妥|对|符|成立|属于|包括|包含|是|能|可|会|宜|应|合)|无关|除外|没有|未|并非"
    r"|incorrect|false|wrong|\bnot\b|n't|except|untrue|exception|\bleast\b",
    re.I,
)


def asks_wrong(question: str) -> bool:
    """Return whether a question asks for the option that is wrong, or whatever the options else are not."""
    return bool(_WRONG.search(re.split(r"[。\n]\s*(?=\S)", question.strip())[-1]))


def is_asked(described: str, question: str) -> bool:
    """Return whether a description such as 错误的 or "incorrect statement" is of what the question asks for."""
    return bool(_WRONG.search(described)) == asks_wrong(question)
